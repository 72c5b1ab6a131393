"""Names of things: a prefix that says what it is, the moment in milliseconds, and 72 random bits.

The moment stands first, so that new rows lie side by side in every index (after UUIDv7, RFC 9562): with
random names alone, each row of a grown database dirties a page of its own in each index. Ids are no secrets.
"""

import base64
import secrets
import time
from typing import Final

_MOMENT_BYTES: Final = 6
_RANDOM_BYTES: Final = 9


def new_id(prefix: str) -> str:
    """For instance `job_0d6kq8hv1tm2c4r0p9s7b3fg`; prefixes are job, mem, wrk, key, acc and tok.

    Written in base32hex, whose order as text is that of the bytes.
    """
    moment = int(time.time() * 1000).to_bytes(_MOMENT_BYTES, "big")
    text = base64.b32hexencode(moment + secrets.token_bytes(_RANDOM_BYTES)).decode("ascii")
    return f"{prefix}_{text.lower()}"


def new_file_id() -> str:
    """`file-...`, as the OpenAI API writes it."""
    return new_id("file").replace("_", "-", 1)
