"""A server of the owner's that answers in OpenAI's shapes, for one model of the pool: `[bridge.NAME]`."""

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

KEY_BYTES_MAX = 4096
REQUESTS_AT_START = 7  # six that show what a server is, can do and how fast, and one to spare

_Word = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class Bridge(BaseModel):
    """Where the server is, what the model is called there, and, if the worker starts it, how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(max_length=2048, description="as the server's clients have it, with or without /v1")
    model: str = Field("", max_length=256, description="the model's name there; empty: the only one it has")
    key_file: str = Field("", max_length=4096, description="a file with the server's API key")
    remote: bool = Field(
        default=False, description="the server may be on another machine: it sees the prompts"
    )
    command: tuple[_Word, ...] = Field((), max_length=256, description="starts the server; no shell reads it")
    features: tuple[Literal["tools", "json_schema", "reasoning"], ...] | None = Field(
        None, description="what the server can do; left out: it is tried at the start"
    )
    start_timeout_s: float = Field(600.0, gt=0, le=86_400, description="until it must answer once started")
    answer_timeout_s: float = Field(300.0, gt=0, le=86_400, description="without a sign of life of an answer")

    @field_validator("url")
    @classmethod
    def _base(cls, value: str) -> str:
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a URL begins with http:// or https:// and a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("no user, password or query belongs into it: a key goes into key_file")
        return value.strip().rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _near(self) -> Self:
        if not self.remote and not _is_loopback(urlsplit(self.url).hostname or ""):
            raise ValueError(
                "the server is on another machine, which would see all prompts: say remote = true"
            )
        return self

    @property
    def load_s_max(self) -> float:
        """Until the model is there: the server's start, and then the requests that show what it can do."""
        return self.start_timeout_s + REQUESTS_AT_START * self.answer_timeout_s

    def options(self) -> dict[str, str]:
        """For the engine, where every value is a string."""
        given = self.model_dump(mode="json", exclude_defaults=True)
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}

    @classmethod
    def parse(cls, options: dict[str, str]) -> Self:
        """Of options(). Raises ValidationError, a ValueError."""
        plain = {"url", "model", "key_file"}
        return cls.model_validate(
            {name: value if name in plain else json.loads(value) for name, value in options.items()}
        )

    def key(self) -> str:
        """Raises OSError, ValueError."""
        if not self.key_file:
            return ""
        with Path(self.key_file).expanduser().open("rb") as file:
            return file.read(KEY_BYTES_MAX).decode("ascii").strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
