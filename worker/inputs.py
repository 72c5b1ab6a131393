"""Which files an attempt needs, as the pool names them: an adapter's two, a training's up to four."""

from typing import Final

from pydantic import ValidationError

from potluck.catalogue import Artifact, File
from potluck.v1 import work_pb2

WEIGHTS_BYTES_MAX: Final = 4 << 30
CONFIG_BYTES_MAX: Final = 1 << 20
TRAINING_BYTES_MAX: Final = 16 << 30  # each
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


class FilesError(Exception):
    """What the pool names cannot be such files; the message says why."""


def adapter_files(adapter: work_pb2.Adapter) -> list[File]:
    """Its weights and its configuration. Raises FilesError."""
    what = f"the adapter {adapter.name[:100]}"
    return [
        _file(what, WEIGHTS, adapter.weights_sha256, adapter.weights_bytes, WEIGHTS_BYTES_MAX),
        _file(what, CONFIG, adapter.config_sha256, adapter.config_bytes, CONFIG_BYTES_MAX),
    ]


def training_files(work: work_pb2.TrainingWork) -> dict[str, File]:
    """By the work's own names, those that there are. Raises FilesError."""
    named = {
        "examples": work.examples,
        "validation": work.validation,
        "adapter": work.adapter,
        "state": work.state,
    }
    found = {
        name: _file("the training", name, artifact.sha256, artifact.bytes, TRAINING_BYTES_MAX)
        for name, artifact in named.items()
        if artifact.sha256 or artifact.bytes
    }
    wanted = {"adapter": True, "examples": work.first_step < work.last_step, "validation": work.validate}
    for name, needed in wanted.items():
        if needed and name not in found:
            raise FilesError(f"the training names no {name}")
    return found


def _file(what: str, name: str, sha256: str, size_bytes: int, bytes_max: int) -> File:
    if size_bytes > bytes_max:
        raise FilesError(f"{name} of {what} is larger than such a file may be")
    try:
        return File(name=name, sha256=sha256, size_bytes=size_bytes, source=Artifact())
    except ValidationError:
        raise FilesError(f"the files of {what} are not named by digests") from None
