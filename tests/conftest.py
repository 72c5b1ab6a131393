"""Fixtures that several files share live in `fixtures_*.py`; this file only names them."""

from importlib.util import find_spec

import pytest

pytest_plugins = [
    name
    for name in (
        "fixtures_api",
        "fixtures_sessions",
        "fixtures_pool",
        "fixtures_models",
        "fixtures_engine",
        "fixtures_ray",
        "fixtures_tiny",
    )
    if find_spec(name)
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What loads a model or starts processes runs one after the other: two at once would starve each other."""
    for item in items:
        if item.get_closest_marker("engine") or item.get_closest_marker("processes"):
            item.add_marker(pytest.mark.xdist_group("machine"))
