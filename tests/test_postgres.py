"""A pool whose books are in PostgreSQL opens, pays, survives kill -9, and comes back as docs/running.md says."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fixtures_api import open_stand
from fixtures_pool import COMMAND, RealPool
from fixtures_postgres import PASSWORD, Postgres


def check(home: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "coordinator", "check"],
        env={**os.environ, **variables, "POTLUCK_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.processes
def test_a_pool_in_postgresql_pays_survives_and_comes_back_from_a_dump(
    postgres: Postgres, tmp_path: Path
) -> None:
    postgres.ask("createdb", "potluck")
    pool = RealPool(tmp_path)
    pool.variables |= postgres.variables("potluck")
    with contextlib.ExitStack() as stack:
        stack.callback(pool.close)
        pool.start_coordinator()
        pool.add_emulator("rig", "owner")
        asker = pool.member("asker", credit_line=10**9)

        def ask() -> int:
            body = {
                "model": "emulator-small",
                "messages": [{"role": "user", "content": "a b"}],
                "max_tokens": 8,
            }
            asker.api("POST", "/v1/chat/completions", json=body).raise_for_status()
            balance: int = asker.balance()["balance"]
            return balance

        assert ask() < 0
        assert pool.coordinator is not None
        pool.coordinator.kill()
        pool.start_coordinator()
        pool.until(lambda: pool.ready("rig"), "the worker to come back")
        owed = ask()
        pool.coordinator.stop()
        check(tmp_path, pool.variables)

        dump = str(tmp_path / "potluck.dump")
        postgres.ask("pg_dump", "--format=custom", f"--file={dump}", "potluck")
        postgres.ask("createdb", "again")
        postgres.ask("pg_restore", "--exit-on-error", "--dbname=again", dump)
        pool.variables |= postgres.variables("again")
        check(tmp_path, pool.variables)
        pool.start_coordinator()
        assert asker.balance()["balance"] == owed
        pool.until(lambda: pool.ready("rig"), "the worker to come back")
        assert ask() < owed
        assert pool.ledger_sum() == 0


NUL = "a\0b"  # which SQLite keeps, and PostgreSQL refuses in any text
ASKED: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/pool/v1/jobs/{}", {}),
    ("GET", "/pool/v1/jobs", {"params": {"before": NUL}}),
    ("GET", "/pool/v1/workers/{}", {}),
    ("GET", "/pool/v1/members/mem_{}", {}),
    ("GET", "/pool/v1/join-tokens/{}", {}),
    ("GET", "/pool/v1/audit", {"params": {"subject": NUL}}),
    ("GET", "/pool/v1/statement", {"params": {"model": NUL}}),
    ("DELETE", "/pool/v1/keys/{}", {}),
    ("DELETE", "/pool/v1/invites/{}", {}),
    ("POST", "/pool/v1/teams/{}/join", {}),
    ("GET", "/v1/files/{}", {}),
    ("GET", "/v1/batches/{}", {}),
    ("GET", "/v1/fine_tuning/jobs/{}", {}),
    ("GET", "/v1/uploads/{}", {}),
    ("GET", "/v1/models/{}", {}),
    ("GET", "/v1/webhook_endpoints/{}", {}),
    ("POST", "/pool/v1/members", {"json": {"name": NUL}}),
    ("POST", "/pool/v1/keys", {"json": {"name": NUL}}),
    ("POST", "/pool/v1/teams", {"json": {"name": NUL}}),
    ("POST", "/pool/v1/transfers", {"json": {"to": f"mem_{NUL}", "amount": 1}}),
    ("POST", "/v1/batches", {"json": {"input_file_id": NUL, "endpoint": "/v1/embeddings"}}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": "emulator-small", "training_file": NUL}}),
    (
        "POST",
        "/v1/webhook_endpoints",
        {"json": {"name": NUL, "url": f"https://a.example/{NUL}", "event_types": ["job.failed"]}},
    ),
]


async def test_a_nul_character_is_refused_and_no_fault(postgres: Postgres, tmp_path: Path) -> None:
    """Wherever a text reaches the database, and whoever asks: the books did not fail, the text is wrong."""
    with postgres.database() as name:
        url = f"postgresql://potluck:{quote(PASSWORD, safe='')}@127.0.0.1:{postgres.port}/{name}"
        async with open_stand(tmp_path, url) as stand:
            for method, path, more in ASKED:
                answer = await stand.ask(method, path.format(quote(NUL)), by="admin", **more)
                refused = answer.status_code in (400, 404) or answer.json().get("data") == []
                assert refused, (method, path, answer.status_code, answer.text)
            kept = {"model": "emulator-small", "messages": [{"role": "user", "content": NUL}], "user": NUL}
            stored = await stand.ask("POST", "/pool/v1/jobs", json={"kind": "chat", "request": kept})
            assert stored.status_code == 202, "a prompt is bytes, not text"
