"""Length-prefixed protobuf between a daemon and its engine process.

Four bytes big-endian give the size of the message that follows (proto/potluck/v1/engine.proto). Blocking
reads serve the engine process, whose stdin asyncio cannot watch on Windows; the daemon reads through
asyncio.
"""

import os
import struct
from asyncio import StreamReader
from collections.abc import AsyncIterator, Iterator
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

# The largest message is the embedding of a full request: 2,048 inputs of 4,096 floats are 32 MiB.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES_MAX = 256 * 1024
_PREFIX = struct.Struct(">I")


class PipeError(Exception):
    """The other side sent what is no message: too large, cut off or malformed."""


M = TypeVar("M", bound=Message)


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def frame(message: Message, *, bytes_max: int = MESSAGE_BYTES_MAX) -> bytes:
    """The message with its length in front. Raises PipeError above `bytes_max`."""
    body = message.SerializeToString()
    if len(body) > bytes_max:
        raise PipeError(f"a message of {len(body)} bytes is above the limit of {bytes_max}")
    return _PREFIX.pack(len(body)) + body


class Unframer(Generic[M]):
    """Cuts a byte stream into messages, however the bytes are split."""

    def __init__(self, kind: type[M], *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._kind = kind
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """The messages that `data` completes, in order. Raises PipeError."""
        self._buffer += data
        messages: list[M] = []
        start, end = 0, len(self._buffer)
        while end - start >= _PREFIX.size:
            (size,) = _PREFIX.unpack_from(self._buffer, start)
            if size > self._bytes_max:
                raise PipeError(f"a message of {size} bytes is above the limit of {self._bytes_max}")
            if end - start < _PREFIX.size + size:
                break
            body = bytes(self._buffer[start + _PREFIX.size : start + _PREFIX.size + size])
            try:
                messages.append(self._kind.FromString(body))
            except DecodeError as error:
                raise PipeError("bytes on the pipe are no message") from error
            start += _PREFIX.size + size
        del self._buffer[:start]
        return messages

    def finish(self) -> None:
        """The stream has ended. Raises PipeError if that was in the middle of a message."""
        if self._buffer:
            raise PipeError(f"the pipe closed inside a message, {len(self._buffer)} bytes into it")


def read_messages(fd: int, kind: type[M], *, bytes_max: int = MESSAGE_BYTES_MAX) -> Iterator[M]:
    """Blocking: every message until the pipe closes. Raises PipeError, OSError."""
    unframer = Unframer(kind, bytes_max=bytes_max)
    while data := os.read(fd, READ_BYTES_MAX):
        yield from unframer.feed(data)
    unframer.finish()


async def receive_messages(
    reader: StreamReader, kind: type[M], *, bytes_max: int = MESSAGE_BYTES_MAX
) -> AsyncIterator[M]:
    """Every message until the stream closes. Raises PipeError."""
    unframer = Unframer(kind, bytes_max=bytes_max)
    while data := await reader.read(READ_BYTES_MAX):
        for message in unframer.feed(data):
            yield message
    unframer.finish()


def write_all(fd: int, data: bytes) -> None:
    """Blocking: all bytes, however small the pipe's buffer is. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
