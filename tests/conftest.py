"""Fixtures that several files share live in `fixtures_*.py`; this file only names them."""

from importlib.util import find_spec

pytest_plugins = [name for name in ("fixtures_pool", "fixtures_models", "fixtures_engine") if find_spec(name)]
