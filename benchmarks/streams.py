"""Members at work: HTTP/1.1 clients that count what comes and do as little else as they can."""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from typing import Final, cast

import stand

ANSWER_S_MAX: Final = 60.0
SHOWN_BYTES: Final = 300  # of an answer that is an error
_CONTENT: Final = b'"content":"'
_COUNT: Final = b'"completion_tokens":'
_OWN_MS: Final = b"x-potluck-overhead-ms:"


class Refused(Exception):  # noqa: N818 -- named for what happened
    """An answer that is none."""


@dataclass(slots=True)
class Figures:
    """Of one time that something was driven. Times in seconds."""

    first: list[float] = field(default_factory=list)  # from the request to the first token
    whole: list[float] = field(default_factory=list)  # to the end of the answer
    own_ms: list[float] = field(
        default_factory=list
    )  # the coordinator's own part of the first, by its header
    errors: list[str] = field(default_factory=list)
    ends: float = math.inf  # what comes later counts for no rate, by the clock `perf_counter`
    tokens: int = 0
    all_tokens: int = 0  # with those that came later
    answers: int = 0
    seconds: float = 0.0

    def came(self, tokens: int) -> None:
        self.all_tokens += tokens
        if time.perf_counter() < self.ends:
            self.tokens += tokens

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return self.tokens / self.seconds

    def first_ms(self, q: float) -> float:
        """Infinite if there was no answer, as of `whole_ms`."""
        return 1e3 * stand.quantile(self.first or [math.inf], q)

    def whole_ms(self, q: float) -> float:
        return 1e3 * stand.quantile(self.whole or [math.inf], q)


class Connection(asyncio.Protocol):
    """One request at a time; the engine's tokens are counted by the space that each begins with."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.asked: asyncio.Future[None] | None = None
        self._figures = Figures()
        self._began = 0.0
        self._start(Figures())

    def _start(self, figures: Figures) -> None:
        self._figures, self._began = figures, time.perf_counter()
        self._rest, self._tokens, self._first = b"", 0, 0.0
        self._status, self._length = b"", -1  # a length of -1: not told, the answer comes in chunks
        self._head = True

    async def ask(self, request: bytes, tokens: int, figures: Figures) -> None:
        """Raises Refused unless all the tokens come."""
        assert self.transport is not None
        self._start(figures)
        self.asked = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(ANSWER_S_MAX):
            await self.asked
        took = time.perf_counter() - self._began
        if self._tokens != tokens:
            raise Refused(f"{self._tokens} tokens instead of {tokens}")
        figures.first.append(self._first)
        figures.whole.append(took)
        figures.answers += time.perf_counter() < figures.ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Refused(f"the connection closed: {exc or 'without a word'}"))

    def _end(self, error: Exception | None = None) -> None:
        if self.asked is not None and not self.asked.done():
            if error is None:
                self.asked.set_result(None)
            else:
                self.asked.set_exception(error)

    def data_received(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for number, line in enumerate(lines):
            if self._head:
                self._head = self._read_head(line)
                if not self._head and self._length >= 0:  # what follows is no lines
                    self._rest = b"\n".join([*lines[number + 1 :], self._rest])
                    break
            elif line.startswith(b"data: {"):
                self._read_event(line)
            elif line == b"0\r":  # the last chunk; an empty line follows, which the next head begins with
                return self._end()
        if not self._head and 0 <= self._length <= len(self._rest):
            self._read_body()
        return None

    def _read_head(self, line: bytes) -> bool:
        """Whether it goes on."""
        if line.startswith(b"HTTP/1.1 "):
            self._status = line[9:12]
        elif line.lower().startswith(b"content-length:"):
            self._length = int(line[15:])
        elif line.startswith(_OWN_MS):
            self._figures.own_ms.append(float(line[len(_OWN_MS) :]))
        elif line == b"\r" and self._status:
            if self._status != b"200" and self._length < 0:
                self._end(Refused(f"status {self._status.decode()}"))
            return False
        return True

    def _read_event(self, line: bytes) -> None:
        start = line.find(_CONTENT)
        if start < 0:
            if line.startswith(b'data: {"error"'):
                self._end(Refused(line[:SHOWN_BYTES].decode()))
            return
        start += len(_CONTENT)
        if tokens := line.count(b" ", start, line.find(b'"', start)):
            self._first = self._first or time.perf_counter() - self._began
            self._tokens += tokens
            self._figures.came(tokens)

    def _read_body(self) -> None:
        body, self._rest = self._rest, b""
        start = body.find(_COUNT)
        if self._status != b"200" or start < 0:
            said = f"status {self._status.decode()}: {body[:SHOWN_BYTES].decode(errors='replace')}"
            return self._end(Refused(said))
        self._tokens = int(body[start + len(_COUNT) :].split(b",")[0].rstrip(b"} "))
        self._first = time.perf_counter() - self._began
        self._figures.came(self._tokens)
        return self._end()


class Asker:
    """Asks one server the same again and again, over as many connections as there are answers under way."""

    def __init__(self, port: int, key: str, model: str, *, tokens: int, stream: bool = True) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": tokens,
            "stream": stream,
        }
        payload = json.dumps(body).encode()
        self.port, self.tokens = port, tokens
        self.request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        ).encode() + payload
        self._idle: list[Connection] = []

    async def answer(self, figures: Figures) -> None:
        """One; what goes wrong is counted as an error, and its connection is not used again."""
        try:
            connection = self._idle.pop() if self._idle else await self._connected()
        except OSError as error:
            figures.errors.append(f"no connection: {error}")
            await asyncio.sleep(0.1)
            return
        try:
            await connection.ask(self.request, self.tokens, figures)
        except (Refused, TimeoutError) as error:
            figures.errors.append(str(error) or f"no answer within {ANSWER_S_MAX:.0f} s")
            assert connection.transport is not None
            connection.transport.close()
        else:
            self._idle.append(connection)

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, "127.0.0.1", self.port))[1]

    def close(self) -> None:
        for connection in self._idle:
            assert connection.transport is not None
            connection.transport.close()
        self._idle.clear()


async def drive(asker: Asker, streams: int, seconds: float) -> Figures:
    """So many answers at a time, one after the other. Those under way at the end may end, uncounted but for
    their own times.
    """
    began = time.perf_counter()
    figures = Figures(ends=began + seconds, seconds=seconds)

    async def one() -> None:
        while time.perf_counter() < figures.ends:
            await asker.answer(figures)

    await asyncio.gather(*(one() for _ in range(streams)))
    asker.close()
    return figures
