"""A pool whose books are in PostgreSQL opens, pays, survives kill -9, and comes back as docs/running.md says."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from fixtures_pool import COMMAND, RealPool
from fixtures_postgres import Postgres


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
