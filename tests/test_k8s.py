"""k8s/base as it is rendered: valid, and true to the worker it starts. No cluster is needed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from stream_worker.endpoints import Endpoints
from stream_worker.settings import PREFIX, Settings
from tests import needs

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES_VERSION = "1.36"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """What `kubectl apply -k k8s/base` would send, by kind."""
    kubectl = needs.command("kubectl")
    rendered = subprocess.run(
        [kubectl, "kustomize", str(ROOT / "k8s" / "base")], check=True, capture_output=True, text=True
    )
    assert rendered.stderr == "", "kustomize warns"
    return {found["kind"]: found for found in yaml.safe_load_all(rendered.stdout)}


@pytest.fixture(scope="module")
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["StatefulSet"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


def test_every_object_is_valid(objects: dict[str, dict[str, Any]]) -> None:
    assert set(objects) == {
        "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet",
    }  # fmt: skip
    for found in objects.values():
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)


def test_every_setting_is_real() -> None:
    files = [*(ROOT / "k8s").rglob("*.yaml"), ROOT / "compose.yaml"]
    named = {
        name: path for path in files for name in re.findall(rf"\b{PREFIX}[A-Z_]+(?=[=:]|$)", path.read_text(), re.M)
    }
    assert named, "the manifests set something"
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    unknown = {name: str(path.relative_to(ROOT)) for name, path in named.items() if name not in known}
    assert not unknown


def test_the_worker_accepts_the_settings(
    objects: dict[str, dict[str, Any]], container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    (variable,) = container["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    monkeypatch.setenv(variable["name"], "stream-worker-0")

    settings = Settings()

    assert settings.group_instance_id == "stream-worker-0"
    assert container["envFrom"] == [{"configMapRef": {"name": objects["ConfigMap"]["metadata"]["name"]}}]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts[str(settings.bundle)]["readOnly"]
    assert container["ports"] == [{"name": "http", "containerPort": settings.http_port}]


def test_the_probes_are_answered(container: dict[str, Any]) -> None:
    endpoints = Endpoints("127.0.0.1", 0, CollectorRegistry(), live=lambda: None, ready=lambda: None)
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    for name, probe in probes.items():
        assert probe["port"] == "http", name
        assert endpoints.answer(probe["path"], "")[0] == 200, name
    assert probes["readinessProbe"]["path"] != probes["livenessProbe"]["path"], (
        "a worker that is not ready must not be killed"
    )


def test_a_pod_has_time_to_drain(pod: dict[str, Any]) -> None:
    assert pod["terminationGracePeriodSeconds"] > 2 * Settings.model_fields["drain_timeout_s"].default


def test_kubernetes_adds_no_settings_of_its_own(pod: dict[str, Any]) -> None:
    """For a Service named stream-worker it would set STREAM_WORKER_PORT, which the worker refuses."""
    assert pod["enableServiceLinks"] is False


def test_the_pod_is_restricted(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The `restricted` Pod Security Standard, and nothing to write but /tmp."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp"}


def test_a_worker_has_whole_cpus_of_its_own(container: dict[str, Any]) -> None:
    """Requests equal to limits and an integer of CPUs: the kubelet can pin it."""
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1


def test_the_selectors_find_the_pods(objects: dict[str, dict[str, Any]]) -> None:
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        assert objects[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert objects["StatefulSet"]["spec"]["serviceName"] == objects["Service"]["metadata"]["name"]
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
