"""What a test needs of the machine: skipped with the reason where it is missing, failed in CI."""

import json
import os
import shutil
import subprocess

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


KUBECTL_MINOR = 27  # the first whose kustomize knows all that k8s/ uses


def kubectl() -> str:
    """The full path of a kubectl that can render k8s/."""
    path = command("kubectl")
    said = subprocess.run([path, "version", "--client", "-o", "json"], check=True, capture_output=True, text=True)
    version = json.loads(said.stdout)["clientVersion"]
    if int(version["minor"].split("+")[0]) < KUBECTL_MINOR:
        missing(f"kubectl is {version['gitVersion']}: the manifests need 1.{KUBECTL_MINOR} or newer")
    return path


def cluster() -> str:
    """kubectl, where KUBECONFIG names a cluster whose nodes all are pretend ones; skipped without, in CI, too.

    A test that drains nodes must never reach a cluster in which something runs.
    """
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster: the manifests are held to the schemas alone")
    path = kubectl()
    said = subprocess.run(
        [path, "get", "nodes", "-o", "json", "--request-timeout=10s"], check=False, capture_output=True, text=True
    )
    if said.returncode != 0:
        missing(f"the cluster of KUBECONFIG does not answer: {said.stderr.strip()}")
    nodes = json.loads(said.stdout)["items"]
    if not nodes or any(node["metadata"].get("labels", {}).get("type") != "kwok" for node in nodes):
        pytest.skip("the cluster of KUBECONFIG has nodes that are not kwok's: it is not touched")
    return path
