"""The small real model for tests: downloaded once for all runs, then found on disk."""

import asyncio
import os
from pathlib import Path

import pytest

from potluck.catalogue import DEFAULT_MODEL, Catalogue, File
from potluck.fetch import fetch


def smollm2_file() -> File:
    entry = Catalogue.builtin().get(DEFAULT_MODEL)
    assert entry is not None
    return entry.variants[0].files[0]


def model_cache() -> Path:
    """`POTLUCK_TEST_CACHE`, or `.cache/models` in the project's folder."""
    given = os.environ.get("POTLUCK_TEST_CACHE", "")
    return Path(given) if given else Path(__file__).parent.parent / ".cache" / "models"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF, verified. Several test processes at once share one download."""
    return asyncio.run(fetch(smollm2_file(), model_cache()))
