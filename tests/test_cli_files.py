"""`potluck files` and `Pool.files` against a real pool: up, listed, down, deleted, and what goes wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_api import Stand, open_stand
from test_cli_finetune import terminal

from potluck import Pool
from potluck.cli.main import run
from potluck.cli.shown import bar
from potluck.errors import InvalidRequest, NotFound, Unreachable

GOOD = b'{"prompt": "2 + 2 =", "completion": " 4"}\n'


class Line:
    """The command line of alice, in a thread beside the pool."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, list(arguments))
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err


@pytest.fixture
def line(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Line:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POTLUCK_URL", stand.url)
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["alice"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return Line(capsys)


async def test_a_file_goes_up_and_comes_back(
    stand: Stand, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = GOOD * 20_000
    (tmp_path / "data.jsonl").write_bytes(data)
    code, out, err = await line("files", "upload", "data.jsonl", "--expires", "7d")
    file_id = out.strip()
    assert (code, file_id.startswith("file-")) == (0, True)
    assert f"{len(data):,} bytes" in err
    found = json.loads((await line("files", "show", file_id, "-o", "json"))[1])
    assert (found["purpose"], found["expires_at"] - found["created_at"]) == ("fine-tune", 7 * 86_400)
    assert found["sha256"] in (await line("files", "show", file_id))[1]
    assert file_id in (await line("files", "list"))[1]
    assert json.loads((await line("files", "list", "--purpose", "batch", "-o", "json"))[1]) == []
    code, _, err = await line("files", "download", file_id)
    assert (code, "is there already" in err) == (2, True)
    (tmp_path / "data.jsonl").unlink()
    assert await line("files", "download", file_id) == (0, f"data.jsonl: {len(data):,} bytes\n", "")
    assert (tmp_path / "data.jsonl").read_bytes() == data
    assert (await line("files", "download", file_id, "--to", "data.jsonl", "--force"))[0] == 0
    with monkeypatch.context() as at_a_terminal:
        terminal(at_a_terminal, "n\n")
        assert "Nothing was done." in (await line("files", "delete", file_id))[2]
    assert (await line("files", "delete", file_id))[0] == 0
    assert (await line("files", "show", file_id))[0] == 4
    assert (await line("files", "delete", "../members"))[0] == 4


async def test_training_data_is_checked_before_it_is_sent(stand: Stand, line: Line, tmp_path: Path) -> None:
    """All problems are named, with exit code 5; a batch file is the pool's to judge."""
    (tmp_path / "data.jsonl").write_bytes(GOOD * 6 + b"{\n" + GOOD * 6 + b"[]\n")
    code, out, err = await line("files", "upload", "data.jsonl")
    assert (code, out) == (5, "")
    assert "line 7, column 2" in err
    assert "line 14: it is not a JSON object" in err
    assert not stand.context.files.artifacts.names()
    assert (await line("files", "upload", "data.jsonl", "--purpose", "batch"))[0] == 0
    assert (await line("files", "upload", "none.jsonl"))[0] == 5
    assert (await line("files", "upload", "none.jsonl", "--purpose", "batch"))[0] == 5


async def test_the_sdk_says_how_far_it_is_and_lists_page_by_page(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potluck.files.PAGE", 2)
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 10_000)
    size = path.stat().st_size

    def work() -> None:
        sent: list[tuple[int, int]] = []
        got: list[tuple[int, int]] = []
        with Pool(stand.url, stand.keys["alice"]) as pool:
            made = [pool.files.upload(path, "batch", progress=lambda *at: sent.append(at)) for _ in range(5)]
            assert sorted(file.id for file in pool.files.list()) == sorted(file.id for file in made)
            pool.files.download(made[0].id, tmp_path / "out.jsonl", progress=lambda *at: got.append(at))
            with pytest.raises(NotFound):
                pool.files.get("file-none")
            with pytest.raises(InvalidRequest, match="cannot be written"):
                pool.files.download(made[0].id, path / "below")
        assert sent[-1] == got[-1] == (size, size)
        assert len(sent) > 5

    await asyncio.to_thread(work)
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes()


async def test_a_download_that_is_damaged_is_not_kept(stand: Stand, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)

    def work() -> Any:
        with Pool(stand.url, stand.keys["alice"]) as pool:
            made = pool.files.upload(path, "batch")
            stand.context.files.artifacts.path(made.sha256).write_bytes(GOOD.upper())
            with pytest.raises(Unreachable, match="not the whole file"):
                pool.files.download(made.id, tmp_path / "out.jsonl")

    await asyncio.to_thread(work)
    assert not (tmp_path / "out.jsonl").exists()


async def test_a_file_that_is_too_large_is_refused_in_words(tmp_path: Path) -> None:
    async with open_stand(tmp_path, file_bytes_max=1_000) as stand:
        path = tmp_path / "in.jsonl"
        path.write_bytes(GOOD * 300_000)  # 12 MB, refused by its length while it is being sent

        def work() -> None:
            with (
                Pool(stand.url, stand.keys["alice"]) as pool,
                pytest.raises(InvalidRequest, match="1,000 bytes"),
            ):
                pool.files.upload(path, "batch")

        await asyncio.to_thread(work)


def test_a_bar_fills_and_nothing_to_do_is_no_error() -> None:
    assert [bar(0, 10), bar(5, 10), bar(10, 10)] == [
        "[........................]",
        "[############............]",
        "[########################]",
    ]
    assert bar(0, 0) == "[........................]"
