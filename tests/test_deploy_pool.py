"""What deploy/ puts around a pool works with a real one: TLS in front, metrics behind, and names that exist."""

import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from fixtures_api import open_stand
from fixtures_pool import COMMAND, RealPool, free_port
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\b(?:potluck|process|python)_[a-z0-9_]+")


@contextmanager
def started(*command: str | Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, env={**os.environ, **variables}) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[RealPool]:
    """As behind Caddy, with one worker."""
    made = RealPool(tmp_path)
    made.variables |= {"POTLUCK_BEHIND_PROXY": "true"}
    made.start_coordinator()
    try:
        made.add_emulator("rig", "owner", tpot_ms=100)
        yield made
    finally:
        made.close()


@pytest.mark.processes
def test_members_come_in_through_caddy_and_answers_stream(pool: RealPool, tmp_path: Path) -> None:
    """TLS ends in Caddy; a first token arrives while the answer is being made; metrics stay inside."""
    port = free_port()
    url = f"https://localhost:{port}"
    variables = {
        "POTLUCK_DOMAIN": url,
        "POTLUCK_HTTP_PORT": str(free_port()),
        "POTLUCK_UPSTREAM": f"127.0.0.1:{pool.http_port}",
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    root = tmp_path / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with started("caddy", "run", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile", **variables):
        pool.until(root.exists, "Caddy's own authority")
        trust = ssl.create_default_context(cafile=str(root))
        member = pool.member("alice")
        with httpx2.Client(verify=trust, base_url=url, timeout=60) as client:

            def answers() -> bool:
                try:
                    return client.get("/readyz").status_code == 200
                except httpx2.TransportError:
                    return False

            pool.until(answers, "Caddy")
            admin = {"Authorization": f"Bearer {pool.admin.key}"}
            assert client.get("/metrics", headers=admin).status_code == 404
            body = {
                "model": "emulator-small",
                "messages": [{"role": "user", "content": "a b"}],
                "max_tokens": 200,
                "stream": True,
            }
            mine = {"Authorization": f"Bearer {member.key}"}
            with client.stream("POST", "/v1/chat/completions", json=body, headers=mine) as answer:
                assert answer.status_code == 200
                assert answer.headers["strict-transport-security"]
                first = next(line for line in answer.iter_lines() if '"content"' in line)
                assert first.startswith("data: ")
                running = member.api("GET", "/pool/v1/jobs").raise_for_status().json()
                assert [job["state"] for job in running["data"]] == ["running"]
        (tmp_path / "key").write_text(member.key, encoding="utf-8")
        home = {"POTLUCK_HOME": str(tmp_path / "alice"), "SSL_CERT_FILE": str(root)}
        login = [*COMMAND, "login", url, "--key", f"file:{tmp_path / 'key'}"]
        done = subprocess.run(
            login, env={**os.environ, **home}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_prometheus_reads_a_pool_with_a_key_that_may_only_read(pool: RealPool, tmp_path: Path) -> None:
    """Our own configuration, but for the address and where the key lies."""
    asked = {"name": "prometheus", "scopes": ["read"]}
    key = pool.admin.api("POST", "/pool/v1/keys", json=asked).raise_for_status().json()["key"]
    (tmp_path / "key").write_text(key + "\n", encoding="utf-8")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str(DEPLOY / "prometheus" / "potluck.rules.yml")]
    config["global"]["scrape_interval"] = config["global"]["evaluation_interval"] = "1s"
    scrape = config["scrape_configs"][0]
    scrape["authorization"]["credentials_file"] = str(tmp_path / "key")
    del scrape["dns_sd_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{pool.http_port}"]}]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", "--log.level=error"]

    def query(expression: str) -> list[Any]:
        try:
            answer = httpx2.get(f"http://{address}/api/v1/query", params={"query": expression}, timeout=10)
        except httpx2.TransportError:
            return []
        if answer.status_code == 503:  # it is starting
            return []
        found: list[Any] = answer.raise_for_status().json()["data"]["result"]
        return found

    with started("prometheus", *flags, f"--web.listen-address={address}"):
        pool.until(lambda: bool(query('potluck_workers{state="sharing"} == 1')), "a scrape")
        assert [row["metric"]["instance"] for row in query("potluck_ledger_sum_microcredits == 0")] == [
            "coordinator"
        ]
        groups = httpx2.get(f"http://{address}/api/v1/rules", timeout=10).json()["data"]["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
        assert not query("ALERTS{alertstate='firing'}")


async def test_every_metric_that_is_named_exists_and_the_board_shows_all_of_the_pools(tmp_path: Path) -> None:
    async with open_stand(tmp_path) as stand:
        answer = (await stand.ask("GET", "/metrics", by="admin")).raise_for_status()
    families = list(text_string_to_metric_families(answer.text))
    exist = {name for family in families for name in names_of(family)}
    files = [
        *sorted((DEPLOY / "prometheus").iterdir()),
        *(DEPLOY / "grafana").glob("*.json"),
        *(ROOT / "docs" / name for name in ("running.md", "runbook.md")),
    ]
    for path in files:
        text = path.read_text(encoding="utf-8")
        missing = set(NAME.findall(text)) - exist
        assert not missing, f"{path.name} names {sorted(missing)}"
    board = json.loads((DEPLOY / "grafana" / "potluck.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    shown = set(NAME.findall(asked))
    unseen = [f.name for f in families if f.name.startswith("potluck_") and not shown & set(names_of(f))]
    assert not unseen


def names_of(family: Any) -> set[str]:
    """As they stand in a query."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
    return {family.name + ending for ending in endings}
