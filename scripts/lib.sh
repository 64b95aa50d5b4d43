# Shared by the scripts here; sourced, never run.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# uv must use a Python that is here, never fetch one.
export UV_PYTHON_DOWNLOADS=never
# onnxruntime reports usage by default.
export ORT_DISABLE_TELEMETRY=1

die() {
    echo "error: $*" >&2
    exit 2
}

# The first Python on PATH that is new enough, or nothing.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

# A registry may be away for a moment; what stays wrong is told by the last try.
retry() {
    local try
    for try in 1 2 3; do
        "$@" && return
        [ "$try" = 3 ] || { echo "  again (try $try of 3 failed): $1" >&2; sleep $((try * 5)); }
    done
    return 1
}

# What the arguments' contents amount to, in one word. The folder counts: a virtual environment does not survive a move.
fingerprint() {
    { pwd; cat "$@"; } | sha256sum | cut -c1-16
}
