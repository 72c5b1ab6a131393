"""Workers in words: the filters and tests that their pages share."""

from typing import Any, Final

from jinja2 import Environment

LEVELS: Final = {"sharing": "good", "paused": "warn", "draining": "info", "away": "", "revoked": "bad"}
_STATES: Final = {
    "ready": "ready",
    "loading": "loading",
    "downloading": "fetching",
    "present": "loaded when asked for",
    "absent": "fetched when asked for",
    "failed": "failed",
}


def add_words(templates: Environment) -> None:
    templates.filters.update(machine=machine, level=level, serving=serving, share=share, ready=ready)


def machine(hardware: dict[str, Any] | None) -> str:
    """Hardware in one line: "2 x RTX 3090 (24 GB), 16 cores, 64 GB, Linux"."""
    if hardware is None:
        return "not seen yet"
    cards: dict[str, int] = {}
    for card in hardware["gpus"]:
        name = f"{card['name']} ({_gigabytes(card['memory_bytes'])})"
        cards[name] = cards.get(name, 0) + 1
    parts = [f"{count} x {name}" if count > 1 else name for name, count in cards.items()]
    if not cards and hardware["cpu"]:
        parts.append(hardware["cpu"])
    if hardware["cores"]:
        parts.append(f"{hardware['cores']} cores")
    if hardware["memory_bytes"]:
        parts.append(_gigabytes(hardware["memory_bytes"]))
    if hardware["nodes"] > 1:
        parts.append(f"{hardware['nodes']} machines")
    return (
        ", ".join([*parts, hardware["system"]] if hardware["system"] else parts) or "says nothing of itself"
    )


def level(state: str) -> str:
    """The class of its tag."""
    return LEVELS.get(state, "")


def serving(model: dict[str, Any]) -> str:
    """The state of one model in words: "ready", "fetching 42 %", "failed: why"."""
    words = _STATES.get(model["state"], model["state"])
    if (percent := share(model)) is not None:
        return f"{words} {percent} %"
    return f"{words}: {model['why']}" if model["why"] and model["state"] != "ready" else words


def share(model: dict[str, Any]) -> int | None:
    """Per cent of it that are here, while it comes."""
    if model["state"] not in {"loading", "downloading"} or not model["bytes_total"]:
        return None
    return int(min(100, model["bytes_done"] * 100 // model["bytes_total"]))


def ready(worker: dict[str, Any]) -> list[str]:
    """The models that it answers with at once."""
    return [model["name"] for model in worker["models"] if model["state"] == "ready"]


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.0f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
