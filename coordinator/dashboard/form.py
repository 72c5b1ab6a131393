"""What a page's form sends: application/x-www-form-urlencoded (URL Standard, section 5), bounded."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse

from coordinator.api.body import read_bytes
from coordinator.api.errors import ApiError
from potluck.credits import AmountError, parse

FORM_BYTES_MAX: Final = 64 * 1024
FIELDS_MAX: Final = 64


async def read_form(request: Request) -> dict[str, str]:
    """Its fields, blanks at the ends removed. Raises ApiError 400, 408, 413 or 415."""
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ApiError(415, "unsupported_media_type", "This takes what a form of a page sends.")
    raw = await read_bytes(request, FORM_BYTES_MAX)
    try:
        pairs = parse_qsl(
            raw.decode("utf-8"), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"
        )
    except (UnicodeDecodeError, ValueError):
        raise ApiError(400, "invalid_form", "This form cannot be read. Load the page again.") from None
    fields = {name: value.strip() for name, value in pairs}
    if len(fields) != len(pairs):
        raise ApiError(400, "invalid_form", "A field of this form came twice. Load the page again.")
    return fields


def credits_in(fields: Mapping[str, str], name: str) -> int:
    """Microcredits from what a person wrote. Raises ApiError 400."""
    try:
        return parse(fields.get(name, ""))
    except AmountError as error:
        raise ApiError(400, "invalid_value", str(error), param=name) from None


def whole_in(fields: Mapping[str, str], name: str) -> int:
    """A whole number that is not negative. Raises ApiError 400."""
    text = fields.get(name, "").replace(",", "").replace("_", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ApiError(400, "invalid_value", f"{name}: a whole number is needed.", param=name)
    return int(text)


def filled(fields: Mapping[str, str], **readers: Callable[[Mapping[str, str], str], Any]) -> dict[str, Any]:
    """The fields that were filled in, each read by its function."""
    return {name: read(fields, name) for name, read in readers.items() if fields.get(name)}


def text_in(fields: Mapping[str, str], name: str) -> str:
    return fields.get(name, "")


def without_blanks(request: Request) -> RedirectResponse | None:
    """A form that filters sends its empty fields, too: on to the address without them, if there are any."""
    given = request.query_params.multi_items()
    kept = [(name, value) for name, value in given if value.strip()]
    if len(kept) == len(given):
        return None
    return RedirectResponse(f"{request.url.path}?{urlencode(kept)}" if kept else request.url.path, 303)
