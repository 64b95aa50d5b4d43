"""Who the images run as, how large they are, and that what they are for works in them."""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from demo.broker import Broker
from stream_worker.messages import TopK
from tests.images.engine import SEEN, Image, podman, readable
from tests.worker.process import CLIENTS, Stage, wait_for

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 400  # of the image `worker`, base and all


def test_an_image_runs_as_nobody_and_writes_to_tmp_alone(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["WorkingDir"] == "/tmp"
    code, said = image.python(
        "import os; print(os.getuid(), os.getgid(), os.environ['ORT_DISABLE_TELEMETRY']); open('/tmp/ours', 'w');"
        "open('/opt/stream-worker/ours', 'w')"
    )
    assert said.startswith("10001 10001 1\n")
    assert code == 1
    assert "Read-only file system: '/opt/stream-worker/ours'" in said


def test_an_image_says_what_it_is(image: Image) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in image.config["Labels"].items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])
    assert labels["title"]
    assert labels["description"]


def test_an_image_starts_its_command_without_a_shell(image: Image) -> None:
    (command,) = image.config["Entrypoint"]
    assert command in ("stream-worker", "exporter")
    assert image.run("--help")[1].startswith(f"usage: {command} COMMAND")


def test_no_python_is_compiled_anew_at_every_start(image: Image) -> None:
    """The root file system is read-only: what is not compiled in the image never is."""
    code, said = image.python(
        "import importlib.util, pathlib, site; p = pathlib.Path(site.getsitepackages()[0]);"
        "print(*[f for f in p.rglob('*.py') if not pathlib.Path(importlib.util.cache_from_source(str(f))).exists()])"
    )
    assert code == 0
    # torch brings a file in the syntax of a newer Python.
    assert {Path(file).name for file in said.split()} <= {"py312_intrinsics.py"}


def test_the_size_of_an_image(image: Image) -> None:
    SEEN.append(f"{image.name}: {image.size_mb:.0f} MB, of which {image.ours_mb:.0f} MB are ours, the rest is its base")
    if image.name.endswith("-worker"):
        assert image.size_mb <= MOST_MB
        assert image.python("import torch")[0] == 1


@pytest.fixture
def stage(
    serving: Image, broker: Broker, models: dict[str, Path], tmp_path: Path, unique: Callable[[str], str],
    request: pytest.FixtureRequest,
) -> Iterator[Stage]:  # fmt: skip
    """Topics of one's own; workers are those of the image, with the bundle mounted as a volume."""
    bundle, name = readable(models["sasrec"], tmp_path / "bundle"), unique("stream-worker")
    with Stage(broker, bundle, tmp_path, unique, getattr(request, "param", CLIENTS[0])) as stage:
        stage.command = serving.command("--name", name, "--volume", f"{bundle}:{bundle}:ro")
        yield stage
        podman("rm", "--force", "--time", "0", "--ignore", name)


@pytest.mark.parametrize("stage", CLIENTS, indirect=True)
def test_a_worker_from_the_image_publishes_a_list(stage: Stage, serving: Image) -> None:
    worker = stage.worker()
    stage.send([("ann", "i7")])
    wait_for("a list", stage.lists)
    top: TopK = stage.lists()["ann"]
    assert top.because == ["i7"] * len(top.items)
    age_ms = top.published_time - top.received_time
    code, took_s = worker.terminate()
    assert code == 0
    log = [msgspec.json.decode(line) for line in worker.log.read_text().splitlines()]
    (taken,) = (line for line in log if line["event"] == "device auto: taking the CPU")
    assert taken["level"] == "info"
    (warm,) = (line for line in log if line["event"] == "model is warm")
    assert warm["device"] == "cpu"
    SEEN.append(
        f"{serving.name} with {stage.client}: {msgspec.json.encode(top).decode()}, "
        f"{age_ms} ms after the event; ended {took_s:.1f} s after SIGTERM with code {code}"
    )


def test_the_topics_are_made_by_the_image(serving: Image, broker: Broker, unique: Callable[[str], str]) -> None:
    names = [f"--{topic}-topic={unique(topic)}" for topic in ("events", "recommendations", "state", "rejected")]
    said = serving.run("topics", "--create", "--bootstrap", broker.bootstrap, *names)[1]
    assert said.count("created") == len(names), said


def test_without_cuda_the_device_is_refused(stage: Stage, serving: Image) -> None:
    worker = stage.worker("--device", "cuda", ready=False)
    assert worker.process.wait(60) == 3
    assert re.search("device cuda: (no NVIDIA driver|this ONNX Runtime is without CUDA)", worker.log.read_text())
    assert ("without CUDA" in worker.log.read_text()) == serving.name.endswith("-worker")


def test_what_the_exporter_trains_the_worker_takes(exporter: Image, tmp_path: Path) -> None:
    """Trained as its CronJob does it: on a file that it may only read, into a volume that is its own."""
    events, out = tmp_path / "events.csv", tmp_path / "models"
    lines = [f"u{user},i{(user + place) % 20},{1767225600 + 60 * place}" for user in range(40) for place in range(12)]
    events.write_text("user,item,time\n" + "\n".join(lines))
    events.chmod(0o644)
    out.mkdir()
    out.chmod(0o777)
    volumes = ("--volume", f"{events}:{events}:ro", "--volume", f"{out}:{out}")
    arguments = ["--events", str(events), "--out", str(out), "--max-epochs", "2", "--threads", "1"]
    said = exporter.run("train", *arguments, options=volumes)[1]
    assert exporter.run("verify", str(out), options=volumes)[0] == 0
    SEEN.append(f"{exporter.name} train: {said.splitlines()[-1]}")
    code, found = exporter.run(
        "-c", f"from stream_worker.bundle import Bundle; from pathlib import Path; b = Bundle(Path({str(out)!r}));"
        "b.warm_up(); print(b.manifest.model)", options=(*volumes, "--entrypoint", "/opt/stream-worker/bin/python"),
    )  # fmt: skip
    assert (code, found.startswith("hybrid-")) == (0, True), found
