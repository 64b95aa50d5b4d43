"""k8s/ as it is rendered: valid, and true to the worker it starts. tests/test_cluster.py asks a real API server."""

import math
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # kubernetes-validate brings it
import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry

from exporter.settings import TrainSettings
from stream_worker.doctor import PROCESS_BYTES
from stream_worker.endpoints import Endpoints
from stream_worker.settings import PREFIX, Settings, TopicsSettings, refuse_unknown_variables
from stream_worker.state import bytes_of_user
from tests.manifests import (
    K8S,
    RENDERS,
    ROOT,
    SECRETS,
    Object,
    crd_of,
    environment,
    find,
    has,
    kustomize,
    pods,
    render,
    with_secret_files,
)

KUBERNETES_VERSION = "1.36"
EVERY_RENDER = pytest.mark.parametrize("name", RENDERS)
KEPT_OF_USERS_BYTES = 256 * 2**20  # the default of --vector-cache-users
OURS = re.compile(r"^\S*stream-worker(-exporter)?:")  # images that we build to run read-only


def strict(schema: Any) -> Any:
    """A schema that refuses fields it does not name, where the API server would drop them in silence."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if "(?i)" in str(schema.get("pattern")):  # Go's way to say so; Python wants it in front
        found.pop("pattern")
    return found


def worker(name: str) -> Object:
    """The worker's container."""
    (container,) = find(name, "StatefulSet", "stream-worker")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@EVERY_RENDER
def test_every_object_is_valid(name: str) -> None:
    for found in render(name):
        crd = crd_of(found)
        if crd is None:
            kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)
            continue
        version = found["apiVersion"].partition("/")[2]
        (schema,) = (one["schema"] for one in crd["spec"]["versions"] if one["name"] == version)
        root = strict(schema["openAPIV3Schema"])
        root["properties"]["metadata"] = {"type": "object"}
        jsonschema.validate(found, root)


def test_the_schemas_of_custom_resources_refuse_what_they_do_not_know() -> None:
    (crd,) = (
        crd for found in render("examples/production") if (crd := crd_of(found)) and found["kind"] == "PodMonitor"
    )
    schema = strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        jsonschema.validate({"spec": {"selector": {}, "podMetricsEndpoints": [{"intervall": "15s"}]}}, schema)


@EVERY_RENDER
def test_only_components_need_custom_resources(name: str) -> None:
    """So that a cluster without the operators can apply the rest."""
    custom = {found["kind"] for found in render(name) if crd_of(found)}
    assert custom == ({"PodMonitor", "PrometheusRule", "ScaledObject"} if name == "examples/production" else set())


def test_every_variable_is_a_real_setting() -> None:
    known = {PREFIX + field.upper() for field in (*Settings.model_fields, *TopicsSettings.model_fields)}
    known |= {"EXPORTER_" + field.upper() for field in TrainSettings.model_fields}
    files = [*K8S.rglob("*.yaml"), ROOT / "compose.yaml"]
    named = {
        variable: path
        for path in files
        for variable in re.findall(rf"\b(?:{PREFIX}|EXPORTER_)[A-Z_]+(?=[=:]|$)", path.read_text(), re.M)
    }
    for name in RENDERS:
        for found in pods(name).values():
            for container in found["spec"]["containers"]:
                if OURS.match(container["image"]):
                    named |= dict.fromkeys(environment(name, container), K8S / name)
    assert len(named) > 15
    assert {variable: str(path) for variable, path in named.items() if variable not in known} == {}


@EVERY_RENDER
def test_each_command_accepts_its_settings(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: dict[str, Any] = {"run": Settings, "topics": TopicsSettings, "train": TrainSettings}
    seen = set()
    for found in pods(name).values():
        (container,) = found["spec"]["containers"]
        if not OURS.match(container["image"]):
            continue
        command = container["args"][0]
        seen.add(command)
        with monkeypatch.context() as patch:
            for variable, value in with_secret_files(environment(name, container), tmp_path).items():
                patch.setenv(variable, value)
            refuse_unknown_variables([Settings, TopicsSettings])
            settings = commands[command]()
        limits = container["resources"]["limits"]
        if command in ("run", "train"):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            bundle = settings.bundle if command == "run" else settings.out
            assert mounts[str(bundle)].get("readOnly", False) == (command == "run")
            assert int(limits["cpu"]) == settings.threads, "as many threads as whole CPUs"
            assert container["resources"]["requests"] == limits, "so that the kubelet can pin it"
        if command == "run":
            assert container["ports"] == [{"name": "http", "containerPort": settings.http_port}]
            assert settings.device == ("cuda" if "nvidia.com/gpu" in limits else "cpu")
    assert {"run", "topics"} <= seen


@EVERY_RENDER
def test_everything_lies_in_one_namespace(name: str) -> None:
    """A component that an overlay adds comes after the namespace of the base was set."""
    (namespace,) = {found["metadata"].get("namespace") for found in render(name) if found["kind"] != "Namespace"}
    assert namespace == find(name, "Namespace")["metadata"]["name"]


@EVERY_RENDER
def test_users_of_all_partitions_find_room_when_a_worker_dies(name: str) -> None:
    variables = environment(name, worker(name))
    if has(name, "ScaledObject"):
        workers = find(name, "ScaledObject")["spec"]["minReplicaCount"]
    else:
        workers = find(name, "StatefulSet", "stream-worker")["spec"]["replicas"]
    partitions = math.ceil(int(variables[f"{PREFIX}PARTITIONS"]) / max(1, workers - 1))
    users = int(variables[f"{PREFIX}MAX_USERS_PER_PARTITION"])
    defaults = {field: one.default for field, one in Settings.model_fields.items()}
    user = bytes_of_user(defaults["history_length"], defaults["excluded_length"], 20)
    limit = worker(name)["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    room = int(limit.removesuffix("Gi")) * 2**30 - PROCESS_BYTES - KEPT_OF_USERS_BYTES
    assert partitions * users * user <= room


@EVERY_RENDER
def test_a_pod_keeps_its_partitions_over_a_restart(name: str) -> None:
    (variable,) = worker(name)["env"]
    assert variable["name"] == f"{PREFIX}GROUP_INSTANCE_ID"
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


@EVERY_RENDER
def test_the_probes_are_answered(name: str) -> None:
    endpoints = Endpoints("127.0.0.1", 0, CollectorRegistry(), live=lambda: None, ready=lambda: None)
    container = worker(name)
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    for kind, probe in probes.items():
        assert probe["httpGet"]["port"] == "http", kind
        assert endpoints.answer(probe["httpGet"]["path"], "")[0] == 200, kind
    assert probes["readiness"]["httpGet"]["path"] != probes["liveness"]["httpGet"]["path"], (
        "a worker that is not ready must not be killed"
    )


@EVERY_RENDER
def test_a_pod_has_time_to_drain(name: str) -> None:
    spec = find(name, "StatefulSet", "stream-worker")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > 2 * Settings.model_fields["drain_timeout_s"].default


@EVERY_RENDER
def test_every_pod_is_restricted(name: str) -> None:
    """The `restricted` Pod Security Standard, which the namespace enforces; ours write nowhere but where they must."""
    labels = find(name, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert find(name, "ServiceAccount")["automountServiceAccountToken"] is False
    for maker, found in pods(name).items():
        spec = found["spec"]
        assert spec["automountServiceAccountToken"] is False, maker
        # For a Service named stream-worker Kubernetes would set STREAM_WORKER_PORT, which the worker refuses.
        assert spec["enableServiceLinks"] is False, maker
        assert spec["securityContext"]["runAsNonRoot"] is True, maker
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, maker
        for volume in spec.get("volumes", []):
            if "secret" in volume:  # root's, and its group's
                assert volume["secret"]["defaultMode"] == 0o440, maker
                assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"], maker
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, maker
            assert context["capabilities"] == {"drop": ["ALL"]}, maker
            if OURS.match(container["image"]):
                assert context["readOnlyRootFilesystem"] is True, maker
                writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
                assert writable == ({"/tmp", "/bundle"} if container["args"] == ["train"] else {"/tmp"})


@EVERY_RENDER
def test_the_selectors_find_the_workers_and_only_them(name: str) -> None:
    workers = find(name, "StatefulSet", "stream-worker")
    selectors = {
        "StatefulSet": workers["spec"]["selector"]["matchLabels"],
        "Service": find(name, "Service", "stream-worker")["spec"]["selector"],
        "PodDisruptionBudget": find(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    }
    if has(name, "PodMonitor"):
        selectors["PodMonitor"] = find(name, "PodMonitor")["spec"]["selector"]["matchLabels"]
    for constraint in workers["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        selectors[constraint["topologyKey"]] = constraint["labelSelector"]["matchLabels"]
    for kind, selector in selectors.items():
        for maker, found in pods(name).items():
            matches = selector.items() <= found["metadata"]["labels"].items()
            assert matches == (maker == "StatefulSet/stream-worker"), (kind, maker)
    assert workers["spec"]["serviceName"] == find(name, "Service", "stream-worker")["metadata"]["name"]


@EVERY_RENDER
def test_kafka_is_reached_by_those_who_need_it(name: str) -> None:
    allowed = find(name, "NetworkPolicy", "stream-worker-kafka")["spec"]
    ports = allowed["egress"][0]["ports"][0]
    container = worker(name)
    for address in environment(name, container)[f"{PREFIX}BOOTSTRAP"].split(","):
        assert ports["port"] <= int(address.rpartition(":")[2]) <= ports.get("endPort", ports["port"])
    (expression,) = allowed["podSelector"]["matchExpressions"]
    for maker, found in pods(name).items():
        labels = found["metadata"]["labels"]
        if labels["app.kubernetes.io/name"] != "stream-worker":
            continue
        assert (labels["app.kubernetes.io/component"] in expression["values"]) == ("training" not in maker)
        fenced = find(name, "NetworkPolicy", "stream-worker")["spec"]["podSelector"]["matchLabels"]
        assert fenced.items() <= labels.items()


def test_files_that_the_settings_name_come_from_a_secret_that_must_be_there() -> None:
    name = "examples/tls"
    (told,) = re.findall(r"create secret generic (.*)", (K8S / name / "kustomization.yaml").read_text())
    secret, *files = told.split()
    keys = {SECRETS + file.removeprefix("--from-file=") for file in files}
    for maker in ("StatefulSet/stream-worker", "Job/stream-worker-topics"):
        spec = pods(name)[maker]["spec"]
        (container,) = spec["containers"]
        assert {value for value in environment(name, container).values() if value.startswith(SECRETS)} == keys
        mounted = {mount["mountPath"] + "/": mount["name"] for mount in container["volumeMounts"]}
        volume = {one["name"]: one for one in spec["volumes"]}[mounted[SECRETS]]["secret"]
        assert volume["secretName"] == secret
        assert volume["optional"] is False, "a pod without its password waits, instead of starting again and again"


def test_the_overlay_of_the_docs_renders(tmp_path: Path) -> None:
    """As the page says: in a folder of one's own, with a checkout of this repository in it."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.S)
    (tmp_path / "kustomization.yaml").write_text(text)
    (tmp_path / "stream-worker").symlink_to(ROOT)
    found = kustomize(tmp_path)
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)
    (settings,) = (one["data"] for one in found if "STREAM_WORKER_BOOTSTRAP" in one.get("data", {}))
    assert settings["STREAM_WORKER_SECURITY_PROTOCOL"] == "SASL_SSL"
    assert settings["STREAM_WORKER_EVENTS_TOPIC"] == "shop.events"


@EVERY_RENDER
def test_every_claim_that_a_pod_names_is_there(name: str) -> None:
    claims = {one["metadata"]["name"] for one in render(name) if one["kind"] == "PersistentVolumeClaim"}
    for maker, found in pods(name).items():
        for volume in found["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims, maker


def test_scaling_stays_within_the_partitions() -> None:
    name = "examples/production"
    scaled = find(name, "ScaledObject")
    assert "replicas" not in find(name, "StatefulSet")["spec"], "every apply would set the number back"
    assert scaled["spec"]["scaleTargetRef"]["name"] == find(name, "StatefulSet")["metadata"]["name"]
    assert scaled["spec"]["maxReplicaCount"] == int(environment(name, worker(name))[f"{PREFIX}PARTITIONS"])
    namespace = scaled["metadata"]["namespace"]
    for trigger in scaled["spec"]["triggers"]:
        assert f'namespace="{namespace}"' in trigger["metadata"]["query"]


def test_a_bundle_may_come_as_an_image() -> None:
    name = "overlays/dev"
    assert not has(name, "PersistentVolumeClaim")
    spec = find(name, "StatefulSet", "stream-worker")["spec"]["template"]["spec"]
    (init,) = spec["initContainers"]
    (given,) = init["volumeMounts"]
    taken = {mount["name"]: mount["mountPath"] for mount in worker(name)["volumeMounts"]}
    assert taken[given["name"]] == environment(name, worker(name))[f"{PREFIX}BUNDLE"]
    assert {volume["name"]: volume for volume in spec["volumes"]}[given["name"]].keys() == {"name", "emptyDir"}
    source = init["command"][2].removesuffix("/.")
    assert f"COPY --chown=10001:10001 . {source}\n" in (K8S / "components" / "bundle-image" / "Dockerfile").read_text()


def test_what_the_docs_name_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {path for page in pages for path in re.findall(r"\bk8s/[a-zA-Z/.-]+\b", page.read_text())}
    assert len(named) > 5
    assert {path for path in named if not (ROOT / path).exists()} == set()
