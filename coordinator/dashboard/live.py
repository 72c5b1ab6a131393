"""What open pages show of a pool that moves, as server-sent events (HTML Standard, section 9.2).

A page names the fragments that it shows. Each fragment says cheaply which version of it there is; about once
a second, what has another version than the page was sent is rendered, once for all who see the same, and
sent.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.api.auth import Caller
from coordinator.api.errors import ApiError
from coordinator.records import MemberState

EVERY_S: Final = 1.0
STREAM_S_MAX: Final = 300.0  # then the page comes again, and its sign-in is looked at again
STREAMS_MAX: Final = 1_000
STREAMS_OF_MEMBER_MAX: Final = 20
FRAGMENTS_MAX: Final = 12  # of one page
RENDERED_MAX: Final = 4_000
ARGUMENT_CHARS_MAX: Final = 128
_QUIET: Final = 15  # rounds without news, before a comment shows that the stream is alive


@dataclass(frozen=True, slots=True)
class Fragment:
    """One part of pages, in the element `live-NAME`; an argument says of what, such as a job's id.

    `version` is asked about once a second: it reads memory only. `whose` names those who see the same; what
    is for admins nobody else is sent.
    """

    name: str
    version: Callable[[Caller, str], Hashable]
    render: Callable[[Caller, str], Awaitable[str]]
    whose: Callable[[Caller], str] = lambda caller: str(caller.member.id)
    every_s: float = EVERY_S
    admin: bool = False


def everybody(_: Caller) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A fragment on a page."""

    fragment: Fragment
    argument: str


@dataclass(slots=True)
class Live:
    closing: asyncio.Event
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    fragments: dict[str, Fragment] = field(default_factory=dict)
    _streams: Counter[str] = field(default_factory=Counter)
    _rendered: OrderedDict[tuple[str, str, str], tuple[Hashable, "asyncio.Future[str]"]] = field(
        default_factory=OrderedDict
    )

    def add(self, fragment: Fragment) -> None:
        self.fragments[fragment.name] = fragment

    def seen(self, words: Sequence[str], caller: Caller) -> list[Seen]:
        """NAME or NAME:ARGUMENT. Raises ApiError 400, or 403 for what is not for this caller."""
        if len(words) > FRAGMENTS_MAX:
            raise ApiError(400, "too_many_fragments", f"see: at most {FRAGMENTS_MAX} at once.", param="see")
        found = []
        for word in words:
            name, _, argument = word.partition(":")
            fragment = self.fragments.get(name)
            if fragment is None or len(argument) > ARGUMENT_CHARS_MAX:
                raise ApiError(
                    400, "unknown_fragment", f"see: there is nothing called {name[:40]}.", param="see"
                )
            if fragment.admin and not (caller.admin and caller.member.state is MemberState.ACTIVE):
                raise ApiError(403, "admin_needed", f"see: {name} is for admins.", param="see")
            found.append(Seen(fragment, argument))
        return found

    async def html(self, caller: Caller, seen: Seen) -> str:
        """The inside of the fragment's element as it is now."""
        return await self._html(caller, seen, seen.fragment.version(caller, seen.argument))

    async def stream(self, caller: Caller, page: Sequence[Seen]) -> AsyncIterator[bytes]:
        """Raises ApiError 429 before the first byte if too many are open."""
        member = str(caller.member.id)
        if self._streams.total() >= STREAMS_MAX or self._streams[member] >= STREAMS_OF_MEMBER_MAX:
            message = "Too many pages are open. Close some; this one shows what is new when you load it."
            raise ApiError(429, "too_many_pages", message, retry_after_s=60)
        self._streams[member] += 1
        try:
            yield b": open\n\n"
            async for news in self._news(caller, page):
                yield news
        finally:
            self._streams[member] -= 1
            if not self._streams[member]:
                del self._streams[member]

    async def _news(self, caller: Caller, page: Sequence[Seen]) -> AsyncIterator[bytes]:
        sent: dict[int, Hashable] = {}
        quiet = 0
        for beat in range(int(STREAM_S_MAX / EVERY_S)):
            news = []
            for index, seen in enumerate(page):
                if beat % max(1, round(seen.fragment.every_s / EVERY_S)):
                    continue
                version = seen.fragment.version(caller, seen.argument)
                if index not in sent or sent[index] != version:
                    sent[index] = version
                    news.append(as_partial(seen.fragment.name, await self._html(caller, seen, version)))
            quiet = 0 if news else quiet + 1
            if news:
                yield as_event("".join(news))
            elif quiet % _QUIET == 0:
                yield b": alive\n\n"
            await self.sleep(EVERY_S)
            if self.closing.is_set():
                return

    async def _html(self, caller: Caller, seen: Seen, version: Hashable) -> str:
        """Rendered once for each version, whoever asks first and however many follow."""
        key = (seen.fragment.name, seen.argument, seen.fragment.whose(caller))
        known = self._rendered.get(key)
        if known is None or known[0] != version or (known[1].done() and known[1].exception() is not None):
            task = asyncio.ensure_future(seen.fragment.render(caller, seen.argument))
            known = self._rendered[key] = (version, task)
            self._rendered.move_to_end(key)
            if len(self._rendered) > RENDERED_MAX:
                self._rendered.popitem(last=False)
        return await asyncio.shield(known[1])


def as_partial(name: str, html: str) -> str:
    """For htmx 4: the element it belongs into, and that what is there and the same stays as it is."""
    return f'<hx-partial hx-target="#live-{name}" hx-swap="innerMorph">{html}</hx-partial>'


def as_event(text: str) -> bytes:
    return ("".join(f"data: {line}\n" for line in text.splitlines()) + "\n").encode()
