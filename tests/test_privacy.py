"""What docs/privacy.md says of the disk, with real processes: of a chat nothing is written, of a stored job its text is."""

from pathlib import Path

import pytest
from fixtures_pool import RealPool

pytestmark = pytest.mark.processes


def found(folder: Path, text: str) -> list[Path]:
    """The files in which the text stands."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_chat_is_on_no_disk_and_in_no_log_and_a_stored_job_is_in_the_database(real_pool: RealPool) -> None:
    real_pool.add_emulator("rig", "bob")
    carol = real_pool.member("carol")
    answer = carol.openai().chat.completions.create(
        model="emulator-small",
        messages=[{"role": "user", "content": "Say quasiperiodic twice."}],
        max_tokens=200,
        seed=11,
    )
    said = answer.choices[0].message.content
    assert said
    kept = [{"role": "user", "content": "Say pumpernickel twice."}]
    stored = {"model": "emulator-small", "messages": kept, "max_tokens": 8}
    job = carol.api("POST", "/pool/v1/jobs", json={"kind": "chat", "request": stored}).json()["id"]
    real_pool.until(lambda: real_pool.job(job)["state"] == "succeeded", "the stored job's end")
    assert all("potluck.db" in path.name for path in found(real_pool.folder, "pumpernickel"))
    assert found(real_pool.folder, "pumpernickel"), "or this search finds nothing at all"
    assert not found(real_pool.folder, "quasiperiodic")
    assert not found(real_pool.folder, said)
    assert real_pool.coordinator is not None
    processes = (real_pool.coordinator, *real_pool.workers.values())
    assert all(process.lines for process in processes), "they log"
    printed = "\n".join(line for process in processes for line in process.lines)
    assert "quasiperiodic" not in printed
    assert "pumpernickel" not in printed
    assert said not in printed
