"""What a test needs of the machine: skipped with the reason where it is missing, failed in CI."""

import os
import shutil

import pytest


def missing(what: str) -> None:
    """End the test: skipped on a developer's machine, failed in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (in CI nothing is skipped)", pytrace=False)
    pytest.skip(what)


def command(name: str) -> str:
    """The full path of a program on PATH."""
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not on PATH: scripts/install-test-tools installs it")
    return path or ""
