"""What a newcomer's first two commands stand on: preflight, the Makefile, the foreground helper."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / ".ci" / "run", *sorted(path for path in (ROOT / "scripts").iterdir() if os.access(path, os.X_OK))]
SCRIPTS = [path for path in SCRIPTS if path.is_file()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_strict(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", str(script)], check=True)


def preflight(tmp_path: Path, present: list[str], java: str = "") -> subprocess.CompletedProcess[str]:
    """Run it where only these programs are on PATH, and `java -version` says `java`."""
    for name in ["bash", "env", "dirname", "sed", "head", "df", "awk", *present]:
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not on PATH"))
    if java:
        (tmp_path / "java").write_text(f"#!/usr/bin/env bash\necho '{java}' >&2\n")
        (tmp_path / "java").chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "preflight")],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_preflight_is_silent_where_all_is_there(tmp_path: Path) -> None:
    (tmp_path / "mvn").touch(mode=0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    done = preflight(tmp_path, ["make"], java='openjdk version "21.0.4" 2024-07-16')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_preflight_names_all_that_is_missing_in_one_line(tmp_path: Path) -> None:
    done = preflight(tmp_path, [])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in ("Java 17", "Maven", "make", "Python 3.11", "apt-get install openjdk-17-jre-headless maven"):
        assert word in done.stderr


def test_preflight_does_not_take_an_old_java(tmp_path: Path) -> None:
    (tmp_path / "mvn").touch(mode=0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    done = preflight(tmp_path, ["make"], java='openjdk version "1.8.0_402"')
    assert done.returncode == 2
    assert "Java 17 or newer (this is 1)" in done.stderr


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 2)])
def test_test_tools_that_cannot_be_installed_are_named(tmp_path: Path, ci: str, code: int) -> None:
    """Nobody is stopped by them but CI. (Where they can be installed, CI itself is the test.)"""
    for name in ("bash", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not on PATH"))
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "install-test-tools")],
        env={"PATH": str(tmp_path), "CI": ci}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    said = done.stderr if code else done.stdout
    assert said.count("\n") == 1
    wanted = "prometheus prometheus-alertmanager kcat openssl kubernetes-client chromium fonts-dejavu-core"
    assert f"apt-get install --no-install-recommends {wanted}" in said


def test_every_target_of_make_is_in_its_help() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert re.findall(r"^  make (\S+)", done.stdout, re.M) == phony.split()


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows, up to `wanted` or to the end of the last program on it."""
    seen = b""
    while wanted not in seen and select.select([terminal], [], [], 30)[0]:
        try:
            seen += os.read(terminal, 1000)
        except OSError:  # Linux says EIO when nobody holds the other end
            break
    return seen


def test_ctrl_c_ends_the_command_and_not_the_make_around_it(tmp_path: Path) -> None:
    """In a terminal: without the helper, make would say `Interrupt` and die of the signal."""
    command = tmp_path / "command.py"
    # Ready only inside the `try`: Ctrl-C comes as soon as the word is read.
    command.write_text(
        "import signal\ntry:\n print('ready', flush=True)\n signal.pause()\n"
        "except KeyboardInterrupt: print('summary')\n"
    )
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"play:\n\t@exec {sys.executable} -m demo.foreground {sys.executable} {command}\n")
    ours, its = pty.openpty()
    make = ["setsid", "--ctty", "make", "-f", str(makefile), "play"]
    with subprocess.Popen(make, cwd=ROOT, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        assert b"ready" in read_until(ours, b"ready")
        os.write(ours, b"\x03")
        seen = read_until(ours, b"make:")
        assert process.wait(30) == 0, seen
    os.close(ours)
    assert b"summary" in seen
    assert b"make:" not in seen


def test_the_version_of_uv_stands_in_one_place() -> None:
    pin = (ROOT / "scripts" / "uv.txt").read_text().strip()
    assert re.fullmatch(r"uv==[\d.]+", pin)
    for path in (ROOT / "Dockerfile", ROOT / "scripts" / "install"):
        assert "scripts/uv.txt" in path.read_text()
