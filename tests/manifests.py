"""k8s/ as `kubectl kustomize` renders it."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests import needs

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"
RENDERS = ["base", *sorted(str(path.relative_to(K8S)) for path in [*K8S.glob("overlays/*"), *K8S.glob("examples/*")])]
CRDS = {
    (crd["spec"]["group"], crd["spec"]["names"]["kind"]): crd
    for crd in (yaml.safe_load(path.read_text()) for path in sorted((ROOT / "tests" / "crds").glob("*.yaml")))
}

SECRETS = "/etc/stream-worker/"  # where the files of the Secret lie in a pod

Object = dict[str, Any]


@functools.cache
def render(name: str) -> list[Object]:
    """What `kubectl apply -k k8s/NAME` would send."""
    return kustomize(K8S / name)


def kustomize(folder: Path) -> list[Object]:
    """What `kubectl apply -k FOLDER` would send."""
    done = subprocess.run([needs.kubectl(), "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


def find(name: str, kind: str, object_name: str = "") -> Object:
    """The object of that kind, the only one unless named."""
    (found,) = (one for one in render(name) if one["kind"] == kind and object_name in ("", one["metadata"]["name"]))
    return found


def has(name: str, kind: str) -> bool:
    """Whether the render has such an object."""
    return any(one["kind"] == kind for one in render(name))


def crd_of(found: Object) -> Object | None:
    """The definition of a custom resource; None for Kubernetes' own."""
    return CRDS.get((found["apiVersion"].partition("/")[0], found["kind"]))


def pod_of(found: Object) -> Object | None:
    """The pod template of whatever makes pods."""
    spec = found.get("spec", {})
    if found["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Object | None = spec.get("template") if found["kind"] in {"StatefulSet", "Job", "CronJob"} else None
    return template


def pods(name: str) -> dict[str, Object]:
    """Every pod template of a render, by the name of what makes it."""
    return {
        f"{one['kind']}/{one['metadata']['name']}": template
        for one in render(name)
        if (template := pod_of(one)) is not None
    }


def environment(name: str, container: Object) -> dict[str, str]:
    """What a container's variables will be; an optional Secret is not there."""
    maps = {one["metadata"]["name"]: one["data"] for one in render(name) if one["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
        else:
            assert source["secretRef"]["optional"] is True
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value", "from the pod")
    return found


def with_secret_files(variables: dict[str, str], folder: Path) -> dict[str, str]:
    """The same, where the files of the Secret lie in `folder`; those that are missing there are made."""
    found = {}
    for name, value in variables.items():
        if value.startswith(SECRETS):
            file = folder / value.removeprefix(SECRETS)
            file.touch()
            value = str(file)
        found[name] = value
    return found
