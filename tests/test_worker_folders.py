"""A model of many files lies in the store under digests, and loads from a folder in which they have their names."""

import hashlib
from pathlib import Path

import pytest
from fixtures_tiny import write_tiny

from potluck.catalogue import Artifact, File
from potluck.folders import folder_of
from worker.engines import weights
from worker.engines.engine import EngineError

CPU = weights.Device("cpu", "float32")


def stored(folder: Path, cache: Path, family: str) -> tuple[list[File], list[Path]]:
    """The files as a catalogue names them, and where `fetch` puts them."""
    files, paths = [], []
    for path in write_tiny(folder, family):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        files.append(File(name=path.name, sha256=digest, size_bytes=len(data), source=Artifact()))
        paths.append(cache / digest)
        paths[-1].write_bytes(data)
    return files, paths


def test_a_model_out_of_the_store_loads_by_the_names_of_its_files(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    (cache := tmp_path / "cache").mkdir()
    files, paths = stored(source, cache, "deepseek_v3")
    with pytest.raises(EngineError, match=r"no config\.json beside it"):
        weights.load_model(paths, tmp_path, CPU)
    folder = folder_of(files, paths, cache)
    named = [folder / file.name for file in files]
    loaded = weights.load_model(named, tmp_path, CPU)
    assert loaded.model.config.model_type == "deepseek_v3"
    assert folder_of(files[::-1], paths[::-1], cache) == folder
    assert sorted(folder.iterdir()) == sorted(named), "nothing half-made is left beside them"


def test_a_file_that_came_anew_takes_the_old_ones_place(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    files, paths = stored(source, tmp_path, "llama")
    folder = folder_of(files, paths, tmp_path)
    data = paths[0].read_bytes()
    (folder / files[0].name).write_bytes(b"damaged")  # a hard link: the store's file is damaged, too
    paths[0].unlink()
    paths[0].write_bytes(data)
    assert (folder_of(files, paths, tmp_path) / files[0].name).read_bytes() == data
