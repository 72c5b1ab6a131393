"""A form with one file (multipart/form-data, RFC 7578), read while it arrives and never whole in memory.

Fields may stand before the file or behind it, so what they say is only known when the last byte has come.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from coordinator.api.body import BODY_S_MAX, drain
from coordinator.api.errors import ApiError

FIELDS_MAX: Final = 16
FIELD_BYTES_MAX: Final = 1_024
OVERHEAD_BYTES_MAX: Final = 64 << 10  # of a form, beside its file
CHUNK_BYTES: Final = 1 << 20
BOUNDARY_CHARS_MAX: Final = 70  # RFC 2046
BYTES_PER_S_MIN: Final = 4_096


class Form:
    """`fields` and `filename` are as far as has been read; the file is the part named `named`."""

    def __init__(self, request: Request, named: str = "file") -> None:
        """Raises ApiError 415 if the body is no form."""
        self._named = named
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._request = request
        self._parser = MultipartParser(
            _boundary(request),
            {
                "on_part_begin": self._part_began,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._headers_ended,
                "on_part_data": self._data,
                "on_part_end": self._part_ended,
                "on_end": self._ended,
            },
        )
        self._began, self._came = _clock(), 0
        self._body_over = self._form_over = False
        self._name, self._header, self._value = "", b"", b""
        self._disposition = b""
        self._field, self._file = bytearray(), bytearray()

    @property
    def declared_bytes(self) -> int | None:
        """What Content-Length says of the whole body."""
        text = self._request.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

    async def begin(self) -> None:
        """Read as far as the file, or to the end if there is none."""
        while self.filename is None and not self._body_over:
            await self._read()

    async def file(self) -> AsyncIterator[bytes]:
        """The file's bytes, then all that stands behind it. Raises ApiError 400 or 408."""
        while not self._body_over:
            if len(self._file) >= CHUNK_BYTES:
                yield self._taken()
            await self._read()
        if self._file:
            yield self._taken()
        if not self._form_over:
            raise _broken("it ends too early")
        if self.filename is None:
            message = f"{self._named}: a file is needed."
            raise ApiError(400, "missing_required_parameter", message, param=self._named)

    async def alone(self) -> AsyncIterator[bytes]:
        """`file` of a form that has nothing else. Raises ApiError 400, 408."""
        async for chunk in self.file():
            yield chunk
        if self.fields:
            shown = next(iter(self.fields))[:64]
            message = f"{shown}: there is no such parameter; only {self._named} is known."
            raise ApiError(400, "unknown_parameter", message, param=shown)

    async def drop(self) -> None:
        """Read what is left for a while, since who is still writing would not see the answer."""
        if not self._body_over:
            await drain(self._request, 1 << 40)

    async def _read(self) -> None:
        # The slower it comes, the less is left: so much a second, and a minute's delay.
        patience_s = self._began + BODY_S_MAX + self._came / BYTES_PER_S_MIN - _clock()
        try:
            async with asyncio.timeout(min(BODY_S_MAX, patience_s)):
                message = await self._request.receive()
        except TimeoutError:
            text = (
                f"The body came too slowly: {BYTES_PER_S_MIN:,} bytes a second are needed, and no pause"
                f" longer than {BODY_S_MAX:.0f} seconds."
            )
            raise ApiError(408, "request_timeout", text, close=True) from None
        self._came += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self._body_over = True
            raise ApiError(400, "client_disconnected", "The connection closed before the body was complete.")
        self._body_over = not message.get("more_body", False)
        try:
            self._parser.write(message.get("body", b""))
        except FormParserError as error:
            raise _broken(str(error)) from None

    def _taken(self) -> bytes:
        taken = bytes(self._file)
        self._file.clear()
        return taken

    def _part_began(self) -> None:
        self._name, self._disposition, self._header, self._value = "", b"", b"", b""
        self._field.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ended(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_ended(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name in self.fields or (self._name == self._named and self.filename is not None):
            raise ApiError(400, "invalid_form", f"{self._name[:64]}: it stands twice in the form.")
        if self._name == self._named:
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif len(self.fields) >= FIELDS_MAX:
            raise _broken(f"it has more than {FIELDS_MAX} fields")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._named:
            self._file += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > FIELD_BYTES_MAX:
            raise _broken(f"the field {self._name[:64]} has more than {FIELD_BYTES_MAX} bytes")

    def _part_ended(self) -> None:
        if self._name != self._named:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _ended(self) -> None:
        self._form_over = True


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/form-data" or not 0 < len(boundary) <= BOUNDARY_CHARS_MAX:
        message = "Send a form with the header `Content-Type: multipart/form-data; boundary=...`."
        raise ApiError(415, "unsupported_media_type", message)
    return boundary


def _broken(problem: str) -> ApiError:
    return ApiError(400, "invalid_form", f"The form cannot be read: {problem[:200].rstrip('.')}.", close=True)
