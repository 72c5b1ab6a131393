"""kill -9 in the middle of commits: what was acknowledged is there, and nothing is torn."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_store import NOW, url_in

from coordinator.store import Store

pytestmark = pytest.mark.usefixtures("on_both")

COMMITTER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fixtures_store import world

async def main():
    async with world(Path(sys.argv[1])) as pool:
        while True:
            job = pool.assigned(pool.job(2, hold=10))
            await pool.store.commit(pool.held(job))
            await pool.store.commit(pool.closed(job, 10)[1])
            print(pool.number, flush=True)

asyncio.run(main())
"""


def committed_until_killed(folder: Path, commits: int) -> int:
    """Kill the committer after so many acknowledged pairs; the last entry that it acknowledged."""
    command = [sys.executable, "-c", COMMITTER, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = (
            line for line in process.stdout if line.endswith("\n") and line.strip().isdigit()
        )  # and no log's
        for _ in range(commits):
            acknowledged = int(next(said))
        process.kill()
        return [acknowledged, *(int(line) for line in said)][-1]


@pytest.mark.processes
@pytest.mark.parametrize("commits", [1, 13, 40])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, commits: int) -> None:
    acknowledged = await asyncio.to_thread(committed_until_killed, tmp_path, commits)
    store = await Store.open(url_in(tmp_path), NOW)
    try:
        loaded = await store.load()
        assert loaded.last_number >= acknowledged
        assert len(loaded.open_jobs) == loaded.last_number % 2
        assert await store.verify() == []
    finally:
        await store.close()
