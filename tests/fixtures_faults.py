"""Faults between a real caller and a real coordinator: a line of TCP that is cut, at a message that a test names.

`Line` carries bytes and knows nothing of them; `Cut` watches the messages of the caller's gRPC calls, lets one
through or not, and cuts the line. What happens then (which error, which retry) is the caller's own.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import grpc.aio
import pytest

from coordinator.reports import WorkerReports
from potluck.v1 import session_pb2


class Phase(StrEnum):
    """When the line is cut: before the message left, right behind it, or after it took effect."""

    LOST = "lost"
    IN_FLIGHT = "in flight"
    ANSWER_LOST = "answer lost"


@dataclass
class Line:
    """Forwards connections to `upstream` (host:port) until they are cut; new ones are taken at once."""

    upstream: str
    address: str = ""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _opened: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Resets every connection, whatever is on its way."""
        for writer in self._writers:
            writer.transport.abort()

    async def connected(self) -> None:
        """Somebody is there: a message that is lost is lost on a connection."""
        async with self._opened, asyncio.timeout(20):
            await self._opened.wait_for(lambda: any(not one.is_closing() for one in self._writers))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream.rpartition(":")
        above_reader, above = await asyncio.open_connection(host, int(port))
        ends = {writer, above}
        self._writers |= ends
        async with self._opened:
            self._opened.notify_all()
        try:
            await asyncio.gather(_copy(reader, above), _copy(above_reader, writer))
        finally:
            self._writers -= ends
            for one in ends:
                one.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


def kinds(message: Any) -> set[str]:
    """What a message of any service is, and those that travel in it."""
    body = message.WhichOneof("body") if "body" in message.DESCRIPTOR.oneofs_by_name else None
    if body == "bundle":
        return {"bundle"}.union(*(kinds(one) for one in message.bundle.messages))
    return {body or message.DESCRIPTOR.name}


@dataclass
class Cut:
    """The next message of this kind is the one at which the line is cut, once."""

    line: Line
    kind: str = ""
    phase: Phase = Phase.LOST
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: dict[str, int] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def arm(self, kind: str, phase: Phase) -> None:
        self.kind, self.phase = kind, phase
        self.done = asyncio.Event()

    def due(self, message: Any) -> bool:
        if self.kind not in kinds(message) or self.done.is_set():
            return False
        self.done.set()
        return True

    async def up(self, message: Any, send: Callable[[], Any]) -> None:
        if not self.due(message):
            await send()
            return
        before = self._heard.get(self.kind, 0)
        if self.phase is not Phase.LOST:
            await send()
        if self.phase is Phase.ANSWER_LOST:
            async with self._news, asyncio.timeout(20):
                await self._news.wait_for(lambda: self._heard.get(self.kind, 0) > before)
        await self.line.connected()
        self.line.cut()

    async def down(self, message: Any, again: Callable[[], Any]) -> Any:
        if not self.due(message):
            return message
        self.line.cut()
        while self.phase is Phase.LOST and hasattr(message, "DESCRIPTOR"):
            message = await again()  # what was in the reader's hands already is lost with it
        return message

    async def hear(self, *names: str) -> None:
        """The coordinator has done what these messages ask for."""
        async with self._news:
            for name in names:
                self._heard[name] = self._heard.get(name, 0) + 1
            self._news.notify_all()


class Call:
    """A call whose messages the cut sees."""

    def __init__(self, call: Any, cut: Cut) -> None:
        self._call, self._cut = call, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def write(self, message: Any) -> None:
        await self._cut.up(message, lambda: self._call.write(message))

    async def read(self) -> Any:
        message = await self._call.read()
        return await self._cut.down(message, self._call.read) if hasattr(message, "DESCRIPTOR") else message


class Channel:
    def __init__(self, channel: Any, cut: Cut) -> None:
        self._channel, self._cut = channel, cut

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.__aexit__(*error)

    def _method(self, made: Any) -> Callable[..., Call]:
        return lambda *arguments: Call(made(*arguments), self._cut)

    def stream_stream(self, *arguments: Any, **more: Any) -> Callable[..., Call]:
        return self._method(self._channel.stream_stream(*arguments, **more))

    def unary_stream(self, *arguments: Any, **more: Any) -> Callable[..., Call]:
        return self._method(self._channel.unary_stream(*arguments, **more))


def watch(monkeypatch: pytest.MonkeyPatch, line: Line) -> Cut:
    """Every call over this line is seen from now on, and what the coordinator has done with it."""
    cut, connect, receive, hello = (
        Cut(line),
        grpc.aio.secure_channel,
        WorkerReports.receive,
        WorkerReports.hello,
    )
    tasks: set[asyncio.Task[None]] = set()

    def secure_channel(target: str, *arguments: Any, **more: Any) -> Any:
        channel = connect(target, *arguments, **more)
        return Channel(channel, cut) if target == line.address else channel

    async def received(self: WorkerReports, worker: Any, message: session_pb2.WorkerMessage) -> int:
        worth = await receive(self, worker, message)
        await cut.hear(*kinds(message))
        return worth

    def greeted(self: WorkerReports, *arguments: Any) -> session_pb2.Welcome:
        welcome = hello(self, *arguments)
        tasks.add(asyncio.get_running_loop().create_task(cut.hear("hello")))
        return welcome

    monkeypatch.setattr(grpc.aio, "secure_channel", secure_channel)
    monkeypatch.setattr(WorkerReports, "receive", received)
    monkeypatch.setattr(WorkerReports, "hello", greeted)
    return cut


class Door:
    """An HTTP address in front of a pool's own, where the next request for a path is cut as a phase says."""

    def __init__(self, url: str) -> None:
        self._upstream = url.rpartition("/")[2]
        self.url, self.path, self.phase, self.cuts = "", "", Phase.LOST, 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def arm(self, path: str, phase: Phase) -> None:
        self.path, self.phase, self.cuts = path, phase, 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of a connection: whoever has more to ask comes back."""
        try:
            request = await _message(reader)
            due = bool(request) and not self.cuts and request.split(b" ", 2)[1].decode() == self.path
            self.cuts += due
            if due and self.phase is Phase.IN_FLIGHT:
                await self._forward(request[: len(request) * 2 // 3], whole=False)
            elif request and not (due and self.phase is Phase.LOST):
                answer = await self._forward(request)
                if not due:
                    writer.write(answer)
                    await writer.drain()
        except ConnectionError:
            pass  # whoever asked went away
        finally:
            writer.close()

    async def _forward(self, request: bytes, *, whole: bool = True) -> bytes:
        """The answer; who sends a part of a request and goes away gets none."""
        host, _, port = self._upstream.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            await writer.drain()
            return await _message(reader) if whole else b""
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One message of HTTP/1.1, with its body; empty if the connection ended before."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if b"content-length" in fields:
        return head + await reader.readexactly(int(fields[b"content-length"]))
    if fields.get(b"transfer-encoding") == b"chunked":
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.read(65_536)
        return head + body
    return head
