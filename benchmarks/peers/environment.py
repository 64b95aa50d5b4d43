"""The peers' own environment under .cache: their pins are not ours, and neither the worker nor the tests need them."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import ROOT
from benchmarks.errors import BenchmarkError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".cache" / "peers"
INSTALL_TIMEOUT_S = 500


def is_there() -> bool:
    """Whether it has been made, for the requirements as they are."""
    stamp = FOLDER / "stamp"
    return stamp.is_file() and stamp.read_text() == _wanted()


def python() -> Path:
    """Its interpreter; makes it if need be, which downloads.

    Raises:
        BenchmarkError: there is no uv, or it failed.
    """
    interpreter = FOLDER / "venv" / "bin" / "python"
    if not is_there():
        uv = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "stamp").unlink(missing_ok=True)
        _do(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER / "venv"))
        _do(uv, "pip", "install", "--quiet", "--python", str(interpreter), "--requirement", str(REQUIREMENTS))
        (FOLDER / "stamp").write_text(_wanted())
    return interpreter


def _wanted() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()


def _do(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"the peers' environment: {error}") from None
    if done.returncode:
        raise BenchmarkError(f"the peers' environment: {' '.join(command[1:3])} failed\n{done.stderr.strip()}")
