"""k8s/ against a real API server, scheduler and controllers; nothing runs in the pods of its pretend nodes."""

import copy
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests import needs
from tests.manifests import CRDS, RENDERS, Object, render
from tests.worker.process import wait_for

KUBELET_S = 80  # a pretend kubelet may look away for half a minute


class Cluster:
    """A namespace of one's own for each render, on the cluster of KUBECONFIG."""

    def __init__(self) -> None:
        self.kubectl = needs.cluster()
        self.namespaces: list[str] = []
        self.volumes: list[str] = []

    def run(self, *arguments: str, objects: Object | Sequence[Object] = (), check: bool = True) -> tuple[int, str]:
        """Exit code and all that kubectl said; `objects` are its standard input."""
        done = subprocess.run(
            [self.kubectl, *arguments], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            input=json.dumps(objects if isinstance(objects, dict) else items(objects)), timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}"
        return done.returncode, done.stdout

    def get(self, *arguments: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self.run("get", *arguments, "-o", "json")[1])

    def moved(self, name: str, namespace: str) -> list[Object]:
        """A render, in a namespace that is made for it."""
        objects = copy.deepcopy(render(name))
        for found in objects:
            if found["kind"] == "Namespace":
                found["metadata"]["name"] = namespace
                self.run("apply", "-f", "-", objects=found)
                self.namespaces.append(namespace)
            else:
                found["metadata"]["namespace"] = namespace
        return objects

    def evict(self, namespace: str, pod: str) -> None:
        """As a drain does; and say that the pod has ended, as its kubelet would."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.run("create", "--raw", path, "-f", "-", objects=eviction)
        self.run("delete", "pod", pod, "--namespace", namespace, "--grace-period=0", "--force")

    def close(self) -> None:
        """Take away what was made, without waiting for it."""
        for namespace in self.namespaces:
            self.run("delete", "namespace", namespace, "--wait=false", check=False)
        for volume in self.volumes:
            self.run("delete", "persistentvolume", volume, "--wait=false", check=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    found.run("apply", "--server-side", "-f", "-", objects=list(CRDS.values()))
    found.run("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    yield found
    found.close()


@pytest.mark.parametrize("name", RENDERS)
def test_the_api_server_accepts_every_object(name: str, cluster: Cluster, unique: Callable[[str], str]) -> None:
    objects = cluster.moved(name, unique("accepted"))
    said = cluster.run("apply", "--dry-run=server", "--validate=strict", "-f", "-", objects=objects)[1]
    assert said.count("(server dry run)") == len(objects), said
    assert "Warning" not in said, "such as a pod that would violate PodSecurity"


def test_the_namespace_refuses_what_is_not_restricted(cluster: Cluster, unique: Callable[[str], str]) -> None:
    namespace = unique("restricted")
    cluster.moved("base", namespace)
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": namespace},
        "spec": {"containers": [{"name": "root", "image": "busybox"}]},
    }  # fmt: skip
    code, said = cluster.run("apply", "--dry-run=server", "-f", "-", objects=pod, check=False)
    assert code != 0
    assert 'violates PodSecurity "restricted' in said


def test_workers_get_ready_and_a_drain_takes_one_at_a_time(cluster: Cluster, unique: Callable[[str], str]) -> None:
    namespace = unique("drained")
    objects = cluster.moved("base", namespace)
    (workers,) = (one for one in objects if one["kind"] == "StatefulSet")
    workers["spec"]["replicas"] = 2  # so that when one is away the other is the last
    for claim in (one for one in objects if one["kind"] == "PersistentVolumeClaim"):
        cluster.volumes.append(f"{namespace}-{claim['metadata']['name']}")
        cluster.run("apply", "-f", "-", objects=volume_for(claim, cluster.volumes[-1]))
    cluster.run("apply", "-f", "-", objects=objects)

    def ready() -> dict[str, str]:
        """The node of each worker that is ready."""
        label = "app.kubernetes.io/component=worker"
        return {
            pod["metadata"]["name"]: pod["spec"]["nodeName"]
            for pod in cluster.get("pods", "--namespace", namespace, "--selector", label)["items"]
            if {"type": "Ready", "status": "True"}.items()
            <= {c["type"]: c for c in pod["status"].get("conditions", [])}.get("Ready", {}).items()
        }

    wait_for("two workers", lambda: len(ready()) == 2, KUBELET_S)
    first, second = ready()["stream-worker-0"], ready()["stream-worker-1"]
    assert first != second, "they spread"

    def allowed() -> int:
        budget = cluster.get("poddisruptionbudget", "stream-worker", "--namespace", namespace)
        return int(budget["status"].get("disruptionsAllowed", 0))

    wait_for("the budget to see both", lambda: allowed() == 1)
    nodes = [node["metadata"]["name"] for node in cluster.get("nodes")["items"]]
    drain = ["--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app.kubernetes.io/component=worker"]
    try:
        cluster.run("cordon", *nodes)  # so that the one that goes finds no other place
        cluster.evict(namespace, "stream-worker-0")
        wait_for("the budget to be used up", lambda: allowed() == 0)
        code, said = cluster.run("drain", second, *drain, "--timeout=5s", check=False)
        assert code != 0
        assert "violate the pod's disruption budget" in said
        assert list(ready()) == ["stream-worker-1"], "the last one stays"

        cluster.run("uncordon", *(node for node in nodes if node not in (first, second)))
        wait_for("the first to be back", lambda: len(ready()) == 2, KUBELET_S)
        assert ready()["stream-worker-0"] not in (first, second)
        wait_for("the budget to allow the next", lambda: allowed() == 1)
        said = cluster.run("drain", second, *drain, "--dry-run=server")[1]
        assert f"evicting pod {namespace}/stream-worker-1" in said
    finally:
        cluster.run("uncordon", *nodes)


def items(objects: Sequence[Object]) -> Object:
    """Many as one."""
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


def volume_for(claim: Object, name: str) -> Object:
    """What a storage class would make; no pretend node ever mounts it."""
    return {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": claim["spec"]["resources"]["requests"], "accessModes": claim["spec"]["accessModes"],
            "claimRef": {"namespace": claim["metadata"]["namespace"], "name": claim["metadata"]["name"]},
            "nfs": {"server": "files.example.com", "path": "/bundle"}, "persistentVolumeReclaimPolicy": "Retain",
        },
    }  # fmt: skip
