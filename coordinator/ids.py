"""Random names of things: a prefix that says what it is, and 80 random bits in base32."""

import base64
import secrets
from typing import Final

_RANDOM_BYTES: Final = 10


def new_id(prefix: str) -> str:
    """For instance `job_5q3zk2v7tq4mx6ha`; prefixes are job, mem, wrk, key, acc and tok."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(_RANDOM_BYTES)).decode('ascii').lower()}"
