"""How fast each model was on this machine, kept over restarts, so that the pool knows before it is loaded.

An engine measures when it loads, which replaces what was known; what real answers reach is blended in. A
speed is of one model (by the digest of its files), engine, version and device; what has not been measured
for 30 days is forgotten.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from potluck.home import write_atomic
from potluck.v1 import engine_pb2

FILE: Final = "speeds.json"
FILE_BYTES_MAX: Final = 1 << 20
ENTRIES_MAX: Final = 256
KEPT_S: Final = 30 * 86_400.0
SAVE_S: Final = 60.0  # observations are not worth a write each
WEIGHT: Final = 0.2  # of one answer against what is known
TOKENS_MIN: Final = 32  # a shorter answer says little
TOKENS_PER_S_MAX: Final = 1e6
STREAMS_MAX: Final = 4_096
_LIBRARY: Final = {"llamacpp": "xllamacpp", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, 0 while unknown; `at` in seconds since the epoch."""

    prefill: float = 0.0
    decode: float = 0.0
    at: float = 0.0


class Speeds:
    """`now` gives seconds since the epoch. Without a file it only remembers for itself."""

    def __init__(self, path: Path | None, *, device: str = "", now: Callable[[], float]) -> None:
        self._path, self._device, self._now = path, device, now
        self._known = {} if path is None else _read(path, now())
        self._saved_at = now()

    def key(self, engine: str, digests: tuple[str, ...]) -> str:
        """What a speed is known by. `digests`: the sha256 of the model's files, or its name without any."""
        model = digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()
        return "|".join((model, engine, _version(engine), self._device))

    def get(self, key: str) -> Speed:
        found = self._known.get(key)
        return Speed() if found is None or self._now() - found.at >= KEPT_S else found

    def measured(self, key: str, *, prefill: float, decode: float) -> None:
        """By the engine itself, with nothing else running in it."""
        old = self.get(key)
        self._keep(key, Speed(_sound(prefill) or old.prefill, _sound(decode) or old.decode, self._now()))
        self.save()

    def observed(self, key: str, *, decode: float) -> None:
        """What one real answer reached."""
        old = self.get(key)
        if not _sound(decode):
            return
        blended = old.decode + WEIGHT * (decode - old.decode) if old.decode else decode
        self._keep(key, replace(old, decode=blended, at=self._now()))
        if self._now() - self._saved_at >= SAVE_S:
            self.save()

    def save(self) -> None:
        """What the disk does not take is measured again next time."""
        self._saved_at = self._now()
        if self._path is None:
            return
        entries = {k: {"prefill": s.prefill, "decode": s.decode, "at": s.at} for k, s in self._known.items()}
        try:
            write_atomic(self._path, json.dumps(entries, indent=1).encode(), durable=False)
        except OSError:
            return

    def _keep(self, key: str, speed: Speed) -> None:
        self._known.pop(key, None)
        self._known[key] = speed  # the newest last
        while len(self._known) > ENTRIES_MAX:
            del self._known[next(iter(self._known))]


class Streams:
    """The streams of one model as they run: how fast each one came, once it has ended."""

    def __init__(self) -> None:
        self._streams: dict[object, tuple[float, int]] = {}  # since its first output, and tokens after it

    def output(self, stream: object, tokens: int, now: float) -> None:
        """`tokens` of one stream have come; the first only start its clock: they hold its prefill."""
        begun = self._streams.get(stream)
        if begun is not None:
            self._streams[stream] = (begun[0], begun[1] + tokens)
        elif len(self._streams) < STREAMS_MAX:
            self._streams[stream] = (now, 0)

    def ended(self, stream: object, now: float) -> float:
        """Tokens per second; 0 if it was too short to tell."""
        since, tokens = self._streams.pop(stream, (now, 0))
        return tokens / (now - since) if tokens >= TOKENS_MIN and now > since else 0.0

    def clear(self) -> None:
        self._streams.clear()


class ModelSpeed:
    """What one model's service knows and learns of its speed."""

    def __init__(self, speeds: Speeds, key: str) -> None:
        self.key = key
        self._speeds, self._streams = speeds, Streams()

    @property
    def now(self) -> Speed:
        return self._speeds.get(self.key)

    def measured(self, loaded: engine_pb2.Loaded) -> None:
        """By an engine that has just been loaded; what ran in the one before is forgotten."""
        self._streams.clear()
        prefill, decode = loaded.prefill_tokens_per_s, loaded.decode_tokens_per_s
        self._speeds.measured(self.key, prefill=prefill, decode=decode)

    def heard(self, event: engine_pb2.EngineEvent, at: float) -> None:
        """What real answers reach is what the next one may expect; of several choices each runs like one."""
        if event.HasField("output"):
            stream = (event.output.attempt.job_id, event.output.attempt.number)
            for delta in event.output.deltas:
                if delta.choice == 0:
                    self._streams.output(stream, len(delta.token_ids) or delta.tokens, at)
        elif event.HasField("done"):
            stream = (event.done.attempt.job_id, event.done.attempt.number)
            self._speeds.observed(self.key, decode=self._streams.ended(stream, at))
        elif event.HasField("failed"):
            self._streams.ended((event.failed.attempt.job_id, event.failed.attempt.number), at)


def _sound(rate: float) -> float:
    return rate if 0.0 < rate < TOKENS_PER_S_MAX else 0.0


def _version(engine: str) -> str:
    try:
        return metadata.version(_LIBRARY.get(engine, "potluck"))
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path, now: float) -> dict[str, Speed]:
    """What is young enough; nothing of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            said: Any = json.loads(file.read(FILE_BYTES_MAX))
        found = {
            str(key): Speed(_sound(float(e["prefill"])), _sound(float(e["decode"])), float(e["at"]))
            for key, e in list(said.items())[-ENTRIES_MAX:]
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        return {}
    return {key: speed for key, speed in found.items() if 0 <= now - speed.at < KEPT_S}
