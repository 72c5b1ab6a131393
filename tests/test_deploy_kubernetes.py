"""What deploy/ has for Kubernetes is closed, names what is there, and is the chart as it stands.

Helm itself is too large to be fetched by a test: scripts/chart writes down what the chart comes out as.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_house import script

from coordinator.settings import PREFIX, Settings
from worker.settings import Settings as WorkerSettings
from worker.settings import variable

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "potluck"
FILES = [DEPLOY / "kubernetes.yaml", DEPLOY / "kuberay" / "site.yaml"]
NOT_SETTINGS = {"POTLUCK_HOME", "POTLUCK_MODEL_CACHE", "POTLUCK_MACHINE_DIR"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def templates(found: Any) -> Iterator[dict[str, Any]]:
    """What pods are made of, wherever it stands."""
    if isinstance(found, dict):
        if isinstance(found.get("spec"), dict) and "containers" in found["spec"]:
            yield found["spec"]
        for inner in found.values():
            yield from templates(inner)
    elif isinstance(found, list):
        for inner in found:
            yield from templates(inner)


def containers(path: Path) -> list[dict[str, Any]]:
    pods = [pod for document in documents(path) for pod in templates(document)]
    return [container for pod in pods for container in [*pod.get("initContainers", []), *pod["containers"]]]


def kind(path: Path, wanted: str) -> dict[str, Any]:
    found = [document for document in documents(path) if document["kind"] == wanted]
    assert len(found) == 1
    return found[0]


def test_what_lies_there_is_what_the_chart_comes_out_as() -> None:
    written = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8").splitlines()[1]
    assert written == f"# chart: {script('chart').digest(CHART)}", "run scripts/chart"


def test_the_charts_values_are_what_its_schema_and_its_templates_know() -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    command: list[str | Path] = [tool, "--schemafile", CHART / "values.schema.json", CHART / "values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    text = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    named = set(re.findall(r"\.Values\.([\w.]+)", text))
    for name in named:
        at: Any = values
        for part in name.split("."):
            assert part in at, f"a template names {name}, and values.yaml does not"
            at = at[part]
    assert {name.split(".")[0] for name in named} == set(values)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_pod_is_closed(path: Path) -> None:
    pods = [pod for document in documents(path) for pod in templates(document)]
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        whole = pod["securityContext"]
        assert (whole["runAsNonRoot"], whole["runAsUser"]) == (True, 10001)
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        assert whole["fsGroupChangePolicy"] == "OnRootMismatch", "or the keys are opened at each start"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    for container in containers(path):
        closed = container["securityContext"]
        assert closed["allowPrivilegeEscalation"] is False, container["name"]
        assert closed["readOnlyRootFilesystem"] is True, container["name"]
        assert closed["capabilities"] == {"drop": ["ALL"]}, container["name"]
        assert "memory" in container["resources"]["limits"], container["name"]
        assert (
            any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
            or container["name"] == "token"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_secrets_are_named_and_never_written_out_and_settings_exist(path: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    known |= {variable(name) for name in WorkerSettings.model_fields}
    for container in containers(path):
        for entry in container.get("env", []):
            name = entry["name"]
            assert name in known or not name.startswith(PREFIX), name
            assert "secretKeyRef" in entry.get("valueFrom", {}) or not name.endswith(
                ("TOKEN", "KEY", "PASSWORD")
            )


def test_one_coordinator_with_its_two_doors() -> None:
    path = DEPLOY / "kubernetes.yaml"
    made = kind(path, "StatefulSet")
    assert made["spec"]["replicas"] == 1
    labels = made["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in made["spec"]["template"]["spec"]["containers"][0]["ports"]}
    for service in (document for document in documents(path) if document["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    policy = kind(path, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert kind(path, "Ingress")["spec"]["tls"]


def test_the_sites_daemon_stands_on_a_node_of_its_own_cluster() -> None:
    """It speaks to the head beside it, with the token that only it can read; nodes see the models by one path."""
    path = DEPLOY / "kuberay" / "site.yaml"
    cluster = kind(path, "RayCluster")["spec"]
    pinned = re.search(r"(?m)^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]
    head = cluster["headGroupSpec"]["template"]["spec"]
    node, daemon = head["containers"]
    said = {entry["name"]: entry.get("value") for entry in daemon["env"]}
    port = node["ports"][0]["containerPort"]
    assert said["POTLUCK_RAY_ADDRESS"] == f"127.0.0.1:{port}"
    mounts = {mount["name"]: mount["mountPath"] for mount in daemon["volumeMounts"]}
    assert str(said["POTLUCK_RAY_TOKEN_FILE"]).startswith(mounts["token"])
    assert str(said["POTLUCK_MODEL_CACHE"]).startswith(mounts["models"])
    nodes = [node, cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]]
    for one in nodes:
        seen = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
        assert seen["models"] == mounts["models"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in one["env"]
    policy = kind(path, "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert {"from": [{"podSelector": {}}]} in policy["ingress"]
