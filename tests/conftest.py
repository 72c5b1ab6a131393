"""Fixtures that several files share live in `fixtures_*.py`; this file only names them."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import hypothesis
import pytest
import structlog

# No test asserts a time.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Tests start hundreds of processes. Where nobody may keep what was compiled, as containers often say, each of them
# compiles all that it imports anew: five seconds for a coordinator that otherwise takes one.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where no daemon has set up its log, structlog writes a traceback with all locals of each frame: minutes for some.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

pytest_plugins = [
    name
    for name in (
        "fixtures_api",
        "fixtures_sessions",
        "fixtures_pool",
        "fixtures_postgres",
        "fixtures_models",
        "fixtures_engine",
        "fixtures_ray",
        "fixtures_tiny",
        "fixtures_browser",
        "fixtures_webhooks",
    )
    if find_spec(name)
]


HEAVY = ("processes", "engine", "browser")


def group_of(item: pytest.Item) -> str:
    """What must run one after the other in one process, by name; "" where that is the test alone.

    Tests that start processes, and tests that load a model, would starve each other if two of a kind ran at once. A
    fixture that a module shares is made in one process.
    """
    names = item.fixturenames if isinstance(item, pytest.Function) else ()
    for mark in HEAVY:
        if item.get_closest_marker(
            mark
        ):  # a browser starts processes, but no pool's: a group of its own is shorter
            return "browser" if "browser" in names and "real_pool" not in names else mark
    fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    shared = any(made.scope == "module" for found in fixtures.values() for made in found)
    return item.path.stem if shared else ""


def place_of(item: pytest.Item) -> int:
    group = group_of(item)
    return HEAVY.index(group) if group in HEAVY else len(HEAVY) + (not group)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """The long groups begin first, each beside the other; what is short fills up whoever ends sooner."""
    for item in items:
        if group := group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))
    yield  # names get their groups, and pytest its own order
    items.sort(key=place_of)
