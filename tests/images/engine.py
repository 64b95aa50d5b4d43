"""podman, without a daemon, on the images that `scripts/image-test` has built."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# As the manifests have it: read-only root, no capabilities, no way to more rights.
LOCKED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--pull", "never")
SEEN: list[str] = []  # what is worth a look at the end of the run


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run it; its words are in the error."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=170, check=False)
    assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
    return done


class Image:
    """A target of the Dockerfile."""

    def __init__(self, target: str) -> None:
        if target not in os.environ.get("IMAGE_TARGETS", "").split():
            pytest.skip(f"target {target} was not built: scripts/image-test {target}")
        self.name = f"localhost/stream-worker-{target}"
        (found,) = json.loads(podman("image", "inspect", self.name).stdout)
        self.config: dict[str, Any] = found["Config"]
        self.size_mb = found["Size"] / 1e6
        (base,) = json.loads(podman("image", "inspect", os.environ["IMAGE_BASE"]).stdout)
        self.ours_mb = self.size_mb - base["Size"] / 1e6

    def command(self, *options: str) -> list[str]:
        """The start of a command line; what follows are the entrypoint's arguments."""
        return ["podman", "run", "--rm", *LOCKED, *options, self.name]

    def run(self, *arguments: str, options: tuple[str, ...] = (), check: bool = True) -> tuple[int, str]:
        """Run it to its end: exit code and all that it said."""
        done = podman(*self.command(*options)[1:], *arguments, check=check)
        return done.returncode, done.stdout + done.stderr

    def python(self, code: str) -> tuple[int, str]:
        """The same for a line of Python in place of the entrypoint."""
        return self.run("-c", code, options=("--entrypoint", "/opt/stream-worker/bin/python"), check=False)


def readable(folder: Path, copy: Path) -> Path:
    """A copy that any user may read, as a volume is; pytest's folders are their owner's alone."""
    shutil.copytree(folder, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy
