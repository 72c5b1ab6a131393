"""Potluck: a group pools the machines that its members already own. `from potluck import Pool`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potluck.errors import PotluckError
    from potluck.pool import Pool

__all__ = ["Pool", "PotluckError"]


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for: `import potluck` alone costs nothing (PEP 562)."""
    if name == "Pool":
        from potluck.pool import Pool

        return Pool
    if name == "PotluckError":
        from potluck.errors import PotluckError

        return PotluckError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
