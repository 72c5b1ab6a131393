"""`potluck models` and `Pool.tuned` against a real pool: tuned models listed, taken along, shared and deleted."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
from fixtures_api import MODEL, Stand
from test_cli_finetune import Line, terminal
from test_tuned import NAME, tuned

from potluck import Pool
from potluck.errors import Unreachable
from potluck.tuned import folder_name

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture
def line(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Line]:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POTLUCK_URL", stand.url)
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["alice"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    with structlog.testing.capture_logs():  # the pool's own words, which are none of the command's
        yield Line(capsys)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_own_and_shared_models_stand_below_their_bases(
    stand: Stand, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' private ones do not, and nothing is asked of a tuned model that was not named."""
    await tuned(stand.context, stand.members["alice"].id)
    await tuned(stand.context, stand.members["bob"].id, f"{MODEL}:ft-private")
    await tuned(stand.context, stand.members["bob"].id, f"{MODEL}:ft-shared", shared=True)
    await line("chat", "-m", NAME, "hello")
    code, out, _ = await line("models")
    below = [row.split() for row in out.partition("TUNED MODEL")[2].splitlines()[1:]]
    assert code == 0
    assert sorted(below) == [
        [f"{MODEL}:ft-shared", "ready", "1", "bob", "everybody"],
        [NAME, "ready", "1", "alice", "its", "owner"],
    ]
    found = await line.json("models")
    assert {row["name"]: row["base"] for row in found}[NAME] == MODEL
    with Pool() as pool:
        assert await asyncio.to_thread(pool.model) == MODEL
        assert {model.name for model in await asyncio.to_thread(pool.tuned.list)} == {
            NAME,
            f"{MODEL}:ft-shared",
        }
    code, out, err = await line("models", "-o", "json", "share", NAME)
    assert (code, out) == (2, ""), err


async def test_a_model_is_taken_along_as_a_folder(stand: Stand, line: Line, tmp_path: Path) -> None:
    """Under a name that any system takes, never over what is there unless it is asked for."""
    await tuned(stand.context, stand.members["alice"].id)
    code, out, err = await line("models", "download", NAME)
    assert (code, out) == (0, "emulator-small-ft-supper\n")
    assert "README.md" in err
    folder = tmp_path / "emulator-small-ft-supper"
    assert names(folder) == FILES
    assert (folder / FILES[-1]).read_bytes() == f"weights of {NAME}".encode()
    (folder / "README.md").write_text("my own notes")
    code, _, err = await line("models", "download", NAME)
    assert (code, "README.md" in err, "--force" in err) == (2, True, True)
    assert (folder / "README.md").read_text() == "my own notes"
    told = await line.json("models", "download", NAME, "--force", "--to", str(folder))
    assert told["folder"] == str(folder)
    assert (folder / "README.md").read_bytes() == f"card of {NAME}".encode()
    assert (await line("models", "download", MODEL))[0] == 5
    assert (await line("models", "download", f"{NAME}-not"))[0] == 4
    assert (await line("models", "download", ".."))[0] == 4
    code, _, err = await line("models", "download", NAME, "--to", str(folder / "README.md"))
    assert (code, "cannot be written" in err) == (5, True)


async def test_what_comes_damaged_is_not_kept_and_leaves_the_folder_as_it_was(
    stand: Stand, line: Line, tmp_path: Path
) -> None:
    """The last of three files: the first two are not replaced either."""
    model = await tuned(stand.context, stand.members["alice"].id)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("before")
    stand.context.pool.training_store.path(model.card.sha256).write_bytes(b"CARD of " + NAME.encode())
    told: list[tuple[int, int]] = []

    def work() -> None:
        with Pool() as pool, pytest.raises(Unreachable, match=r"not the file README\.md"):
            pool.tuned.download(NAME, folder, force=True, progress=lambda *at: told.append(at))

    await asyncio.to_thread(work)
    assert names(folder) == FILES
    assert {(folder / name).read_text() for name in FILES} == {"before"}
    assert told[-1][0] == told[-1][1]


async def test_a_model_is_shared_and_is_its_owners_again(
    stand: Stand, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tuned(stand.context, stand.members["alice"].id)
    assert (await line("models", "share", NAME))[1] == f"{NAME} is for every member of this pool now.\n"
    with monkeypatch.context() as as_bob:
        as_bob.setenv("POTLUCK_KEY", stand.keys["bob"])
        assert (await line("models", "download", NAME, "--to", "bobs"))[0] == 0
        for verb in (("share", NAME), ("delete", NAME, "--yes")):
            code, _, err = await line("models", *verb)
            assert (code, "another member's" in err) == (1, True)
    assert json.loads((await line("models", "share", NAME, "--off", "-o", "json"))[1])["shared"] is False
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["bob"])
    assert (await line("models", "download", NAME, "--to", "again"))[0] == 4


async def test_a_model_is_deleted_when_it_was_meant(
    stand: Stand, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tuned(stand.context, stand.members["alice"].id)
    code, _, err = await line("models", "delete", NAME)
    assert (code, "Here is nobody to ask: give --yes" in err) == (2, True)
    terminal(monkeypatch, "n\n")
    assert "Nothing was done." in (await line("models", "delete", NAME))[2]
    terminal(monkeypatch, "y\n")
    assert (await line("models", "delete", NAME))[1] == f"{NAME} is deleted.\n"
    assert (await line("models", "delete", NAME, "--yes"))[0] == 4
    assert (await line("models", "delete", MODEL, "--yes"))[0] == 5


def test_a_models_name_becomes_a_folders_name() -> None:
    assert folder_name("smollm2:ft-supper") == "smollm2-ft-supper"
    assert folder_name("../..:?") == "model"
    assert folder_name("Org/Model:ft-1") == "Org-Model-ft-1"
