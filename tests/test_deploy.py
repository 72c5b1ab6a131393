"""What lies in deploy/ is what its own tools take, is closed where it can be, and names nothing that is not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePath
from typing import Any

import pytest
import yaml

from coordinator.settings import PREFIX, Settings
from worker.units import Service, systemd

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent  # those that come as Python packages
UNITS = sorted((DEPLOY / "systemd").iterdir())
OPEN_TO_THE_WORLD = {"caddy": {"80:80", "443:443", "443:443/udp"}, "coordinator": {"8421:8421"}}
EXACT = re.compile(r"[\w./-]+:v?\d+\.\d+(\.\d+)?[\w.-]*(@sha256:[0-9a-f]{64})?")
EXPOSURE_MAX = 30  # tenths, as `systemd-analyze security` counts: 100 is all open


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What it said; the test fails with it if it did not like what it was given."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -- images


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stages() -> dict[str, list[tuple[str, str]]]:
    """By name; each begins with what its base has."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, name = rest.split(" AS ")
            assert base in found or EXACT.fullmatch(base), f"{base} is not pinned"
            found[name] = list(found.get(base, []))
        else:
            found[name].append((word, rest))
    return found


def test_the_dockerfile_has_no_faults_that_hadolint_knows() -> None:
    run(TOOLS / "hadolint", DEPLOY / "Dockerfile")


@pytest.mark.parametrize("image", ["coordinator", "worker", "worker-cuda"])
def test_an_image_runs_as_nobody_and_holds_no_secret(image: str) -> None:
    said = stages()[image]
    assert [rest for word, rest in said if word == "USER"] == ["10001:10001"]
    assert any(word == "HEALTHCHECK" for word, _ in said)
    assert not [
        rest for word, rest in said if re.search(r"sk-potluck|password|secret|token", rest, re.IGNORECASE)
    ]


def test_what_goes_into_a_build_is_there_and_nothing_else() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert "*" in ignored
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


# -- compose


def test_the_compose_file_is_one() -> None:
    """By the schema of the Compose specification."""
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_every_container_is_closed() -> None:
    found = read(DEPLOY / "compose.yaml")
    for name, service in found["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert set(service.get("cap_add", [])) <= ({"NET_BIND_SERVICE"} if name == "caddy" else set()), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert "privileged" not in service, name
        assert "build" in service or EXACT.fullmatch(service["image"]), name
        for port in service.get("ports", []):
            assert port in OPEN_TO_THE_WORLD.get(name, set()) or port.startswith("127.0.0.1:"), name
        nets = {net for net in service["networks"] if not (found["networks"][net] or {}).get("internal")}
        assert not nets or service.get("ports"), f"{name} has a way out and no need for one"


def test_compose_names_files_targets_and_settings_that_are_there() -> None:
    found = read(DEPLOY / "compose.yaml")
    for service in found["services"].values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert source in found["volumes"] or (DEPLOY / source).exists(), source
        assert set(service.get("secrets", [])) <= set(found["secrets"])
    coordinator = found["services"]["coordinator"]
    assert coordinator["build"]["target"] in stages()
    assert (DEPLOY / coordinator["build"]["context"] / coordinator["build"]["dockerfile"]).exists()
    named = {name.removeprefix(PREFIX).lower() for name in coordinator["environment"]}
    assert named <= set(Settings.model_fields)
    for secret in found["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


# -- systemd


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With programs that this machine has: systemd looks whether they are there."""
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/potluck/bin/potluck", str(TOOLS / "potluck"))
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^User=.*\n", "", text), encoding="utf-8")
    assert not run("systemd-analyze", "verify", *(tmp_path / unit.name for unit in UNITS))


@pytest.mark.parametrize(
    "unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.name
)
def test_a_unit_reaches_little(unit: Path) -> None:
    run("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", unit)


def test_the_workers_unit_is_the_one_that_install_service_writes() -> None:
    home = PurePath("/var/lib/potluck-worker")
    made = Service(
        command=("/opt/potluck/bin/potluck", "worker", "start"),
        environment={"POTLUCK_HOME": str(home), "POTLUCK_MACHINE_DIR": str(home / "machine")},
        drain_s=60,
        writes=(home,),
        user="potluck-worker",
    )
    lies = (DEPLOY / "systemd" / "potluck-worker.service").read_text(encoding="utf-8")
    assert lies.partition("\n")[2] == systemd(made, system=True)


@pytest.mark.parametrize("unit", ["potluck-coordinator", "potluck-backup", "potluck-worker"])
def test_a_unit_calls_a_command_that_exists(unit: str) -> None:
    text = (DEPLOY / "systemd" / f"{unit}.service").read_text(encoding="utf-8")
    called = re.findall(r"(?m)^ExecStart=/opt/potluck/bin/potluck (\w+ \w+)", text)
    assert len(called) == 1
    run(sys.executable, "-m", "potluck", *called[0].split(), "--help")


# -- Prometheus and Grafana, as their own tools see them


def test_prometheus_takes_its_files_and_the_alerts_fire_when_they_should() -> None:
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "config", "--syntax-only", folder / "prometheus.yml")
    run("promtool", "check", "rules", folder / "potluck.rules.yml")
    run("promtool", "test", "rules", folder / "potluck.rules.test.yml")
    rules = read(folder / "potluck.rules.yml")["groups"][0]["rules"]
    tested = (folder / "potluck.rules.test.yml").read_text(encoding="utf-8")
    for rule in rules:
        assert f"alertname: {rule['alert']}\n        exp_alerts:\n" in tested, (
            f"{rule['alert']} is never seen to fire"
        )


def headings(path: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    found = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


def test_an_alert_says_where_what_to_do_stands() -> None:
    for rule in read(DEPLOY / "prometheus" / "potluck.rules.yml")["groups"][0]["rules"]:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor in headings(ROOT / path), rule["annotations"]["runbook"]


def test_the_board_asks_what_prometheus_understands(tmp_path: Path) -> None:
    """Each of its expressions as the expression of a rule."""
    board = json.loads((DEPLOY / "grafana" / "potluck.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"board:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(asked)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}), encoding="utf-8")
    assert f"{len(asked)} rules found" in run("promtool", "check", "rules", path)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_grafana_is_told_where_its_files_are() -> None:
    mounts = read(DEPLOY / "compose.yaml")["services"]["grafana"]["volumes"]
    folder = read(DEPLOY / "grafana" / "boards.yaml")["providers"][0]["options"]["path"]
    assert f"./grafana/potluck.json:{folder}/potluck.json:ro" in mounts
    source = read(DEPLOY / "grafana" / "sources.yaml")["datasources"][0]
    assert source["url"].split("//")[1].split(":")[0] in read(DEPLOY / "compose.yaml")["services"]


# -- Caddy


def test_caddy_takes_its_file_and_finds_nothing_to_put_right(tmp_path: Path) -> None:
    path = DEPLOY / "Caddyfile"
    environment = {**os.environ, "POTLUCK_DOMAIN": "pool.example.org", "XDG_DATA_HOME": str(tmp_path)}
    run("caddy", "validate", "--adapter", "caddyfile", "--config", path, env=environment)
    assert run("caddy", "fmt", path) == path.read_text(encoding="utf-8")
