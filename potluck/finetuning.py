"""The part of the SDK about fine-tunes: `Pool.finetunes`.

    with Pool() as pool:
        file = pool.files.upload("examples.jsonl")
        made = pool.finetunes.create("smollm2-135m-instruct", file.id, Recipe(epochs=3), suffix="supper")
        print(pool.finetunes.wait(made.id).fine_tuned_model)

Every method raises a class of `potluck.errors` and nothing else.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from potluck.errors import PotluckError, Unavailable, Unreachable
from potluck.finetune import (
    FineTune,
    FineTuneCheckpoint,
    FineTuneEvent,
    FineTuneQuote,
    Recipe,
    given,
    id_of,
    not_finished,
    succeeded,
)
from potluck.results import read
from potluck.transport import Transport, path_of

JOBS: Final = "/v1/fine_tuning/jobs"
PAGE: Final = 100
EVENTS_PAGE: Final = 1_000
POLL_S: Final = 1.0
AWAY_S_MAX: Final = 300.0  # a coordinator may be away so long: fine-tunes outlive it
IDEMPOTENCY_BYTES: Final = 16


class FineTuneCalls:
    """Where a fine-tune's id is asked for, that of its job does, too."""

    def __init__(self, transport: Transport, sleep: Callable[[float], None] = time.sleep) -> None:
        self._transport, self._sleep = transport, sleep

    def create(
        self,
        model: str,
        training_file: str,
        recipe: Recipe | None = None,
        *,
        validation_file: str | None = None,
        suffix: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> FineTune:
        """Train an adapter of the model on an uploaded file; it becomes the model `MODEL:ft-SUFFIX`.

        The files are read afterwards: what is wrong with them, or too dear, ends it with an `error`.
        """
        body = _body(model, training_file, recipe, validation_file, suffix)
        if metadata:
            body["metadata"] = dict(metadata)
        key = idempotency_key or secrets.token_hex(IDEMPOTENCY_BYTES)
        return read(FineTune, self._transport.post(JOBS, body, idempotency_key=key))

    def quote(
        self,
        model: str,
        training_file: str,
        recipe: Recipe | None = None,
        *,
        validation_file: str | None = None,
        suffix: str | None = None,
    ) -> FineTuneQuote:
        """What `create` would read and could cost. Nothing is made."""
        body = _body(model, training_file, recipe, validation_file, suffix)
        body["potluck"]["dry_run"] = True
        return read(FineTuneQuote, self._transport.post(JOBS, body))

    def get(self, finetune_id: str) -> FineTune:
        return read(FineTune, self._transport.get(_path(finetune_id)))

    def list(self) -> Iterator[FineTune]:
        """All of them, the newest first."""
        return (read(FineTune, one) for one in self._pages(JOBS, PAGE))

    def cancel(self, finetune_id: str) -> FineTune:
        """End it: what was trained up to the last checkpoint is paid, and there is no model."""
        return self._post(finetune_id, "cancel")

    def pause(self, finetune_id: str) -> FineTune:
        """Stop it for a while; its last checkpoint is kept."""
        return self._post(finetune_id, "pause")

    def resume(self, finetune_id: str) -> FineTune:
        """Go on with one that was paused."""
        return self._post(finetune_id, "resume")

    def checkpoints(self, finetune_id: str) -> Iterator[FineTuneCheckpoint]:
        """The newest first."""
        return (read(FineTuneCheckpoint, one) for one in self._pages(_path(finetune_id, "checkpoints"), PAGE))

    def events(self, finetune_id: str, *, limit: int = EVENTS_PAGE) -> tuple[FineTuneEvent, ...]:
        """The newest ones, in the order in which they happened."""
        found = self._pages(_path(finetune_id, "events"), min(limit, EVENTS_PAGE))
        newest = [read(FineTuneEvent, one) for one in islice(found, limit)]
        return tuple(reversed(newest))

    def stream(self, finetune_id: str, *, after: str | None = None) -> Iterator[FineTuneEvent]:
        """Each event as it happens, from the first one or from behind `after`, up to the end."""
        gone_since: float | None = None
        while True:
            try:
                for event in self._streamed(finetune_id, after):
                    after, gone_since = event.id, None
                    yield event
            except (Unreachable, Unavailable) as error:
                gone_since = self._away(error, gone_since)
            else:
                return

    def follow(self, finetune_id: str, *, timeout_s: float | None = None) -> Iterator[FineTune]:
        """The fine-tune now and whenever something changes, up to its end. Raises JobNotFinished in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: FineTune | None = None
        gone_since: float | None = None
        while True:
            try:
                found, gone_since = self.get(finetune_id), None
            except (Unreachable, Unavailable) as error:
                gone_since = self._away(error, gone_since)
                continue
            if found != last:
                last = found
                yield found
            if found.ended:
                return
            if deadline is not None and time.monotonic() + POLL_S > deadline:
                raise not_finished(found, timeout_s)
            self._sleep(POLL_S)

    def wait(self, finetune_id: str, *, timeout_s: float | None = None) -> FineTune:
        """The fine-tune once it succeeded. Raises JobFailed, JobCancelled, or JobNotFinished in time."""
        *_, found = self.follow(finetune_id, timeout_s=timeout_s)
        return succeeded(found)

    def _streamed(self, finetune_id: str, after: str | None) -> Iterator[FineTuneEvent]:
        params = {"stream": "true"} | ({} if after is None else {"after": after})
        with self._transport.events(_path(finetune_id, "events"), params) as events:
            for event in events:
                yield read(FineTuneEvent, event)

    def _away(self, error: PotluckError, since: float | None) -> float:
        """Wait for a coordinator that restarts; since when it is away. Raises the error in the end."""
        since = since or time.monotonic()
        if time.monotonic() - since > AWAY_S_MAX:
            raise error
        self._sleep(POLL_S)
        return since

    def _post(self, finetune_id: str, what: str) -> FineTune:
        return read(FineTune, self._transport.post(_path(finetune_id, what), {}))

    def _pages(self, path: str, limit: int) -> Iterator[Any]:
        asked: dict[str, str | int] = {"limit": limit}
        while True:
            page = self._transport.get(path, asked)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            asked["after"] = page["data"][-1]["id"]


def _body(
    model: str, training_file: str, recipe: Recipe | None, validation_file: str | None, suffix: str | None
) -> dict[str, Any]:
    named = {"validation_file": validation_file, "suffix": suffix}
    return {"model": model, "training_file": training_file, **given(named), **(recipe or Recipe()).body}


def _path(finetune_id: str, *more: str) -> str:
    return path_of(JOBS, id_of(finetune_id), *more)
