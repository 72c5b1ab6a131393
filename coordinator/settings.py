"""What the operator may set, and where each value came from.

Order: flag > POTLUCK_* variable > `coordinator.toml` in POTLUCK_HOME/coordinator > default.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from potluck.home import home as default_home

SETTINGS_FILE: Final = "coordinator.toml"
PREFIX: Final = "POTLUCK_"
MICROCREDITS: Final = 1_000_000  # in a credit
_FILE_BYTES_MAX: Final = 1 << 20
_CLOSE: Final = 3  # names proposed for a mistyped one

Origin = Literal["flag", "variable", "file", "default"]


class SettingsError(Exception):
    """A setting cannot be used; the message names it, its place and what to do."""


class Settings(BaseSettings):
    """Amounts are microcredits, times seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True
    )

    home: Path = Field(default_factory=default_home, description="where everything of this installation lies")
    pool_name: str = Field("potluck", min_length=1, max_length=64, description="what members see it called")
    http: str = Field("127.0.0.1:8420", description="HOST:PORT for members")
    grpc: str = Field("127.0.0.1:8421", description="HOST:PORT for workers")
    public_host: str | None = Field(None, max_length=253, description="the name by which others reach it")
    public_grpc: str | None = Field(
        None, max_length=261, description="HOST:PORT by which workers reach it, if not public_host"
    )
    database: str | None = Field(None, description="URL; without one, a SQLite file in home")
    database_password_file: Path | None = Field(
        None, description="holds the password that the URL of `database` leaves out"
    )
    behind_proxy: bool = Field(default=False, description="a reverse proxy in front ends TLS")
    tls_cert: Path | None = Field(None, description="certificate chain for HTTPS (PEM)")
    tls_key: Path | None = Field(None, description="its private key (PEM)")
    default_credit_line: int = Field(
        1_000 * MICROCREDITS, ge=0, le=2**62, description="how much a new member may owe"
    )
    commons_credit_line: int = Field(
        10_000 * MICROCREDITS, ge=0, le=2**62, description="how much the pool itself may owe"
    )
    transfer_day_max: int = Field(
        1_000 * MICROCREDITS, ge=0, le=2**62, description="what one account may send on a day (UTC)"
    )
    invite_credit_line: int = Field(
        100 * MICROCREDITS, ge=0, le=2**62, description="of an invited member, if the invitation names none"
    )
    fee_permille: int = Field(
        20, ge=0, le=1_000, description="thousandths of what workers earn, for the commons"
    )
    prompt_weight_permille: int = Field(
        250, ge=0, le=1_000, description="thousandths of a prompt's work that are charged"
    )
    default_max_tokens: int = Field(
        1_024, ge=1, le=2**24, description="tokens of output where a request names none"
    )
    trust: Literal["friends", "strangers"] = Field(
        "friends", description="whether earnings can be spent at once, or a new worker proves itself first"
    )
    proof_jobs: int = Field(10, ge=0, le=10_000, description="jobs that prove a worker among strangers")
    proof_hours: float = Field(
        24, ge=0, le=8_760, description="hours since its first job that it takes as well"
    )
    emulator: bool = Field(default=False, description="offer the model emulator-small, for tests")
    body_bytes_max: int = Field(4 * 1024 * 1024, ge=1_024, le=2**30, description="of a request's body")
    file_bytes_max: int = Field(10**9, ge=1, le=64 << 30, description="of one file of a member")
    files_bytes_max: int = Field(10 * 10**9, ge=0, le=2**53, description="of all files of one member")
    file_days: int = Field(
        30, ge=1, le=3_650, description="after which a file, or what a stored job kept, is deleted"
    )
    upload_s: float = Field(
        3_600, ge=1, le=2_592_000, description="without a new part, after which an upload expires"
    )
    checkpoint_s: float = Field(
        90.0,
        ge=1,
        le=3_600,
        description="of training between two checkpoints: what a dead worker loses at most",
    )
    connections_max: int = Field(2_000, ge=1, le=2**20, description="connections of members at once")
    address_connections_max: int = Field(
        500,
        ge=1,
        le=2**20,
        description="of them from one address; behind a proxy, requests at once by what it forwards",
    )
    sessions_max: int = Field(12_000, ge=1, le=2**20, description="workers that are connected at once")
    requests_per_minute: int = Field(600, ge=1, le=2**31, description="of one member")
    concurrent_jobs: int = Field(64, ge=1, le=2**20, description="of one member")
    tokens_per_minute: int = Field(0, ge=0, le=2**53, description="of one member; 0 is no limit")
    credits_per_day: int = Field(0, ge=0, le=2**62, description="of one member (UTC); 0 is no limit")
    credits_per_month: int = Field(0, ge=0, le=2**62, description="of one member (UTC); 0 is no limit")
    queue_jobs_max: int = Field(10_000, ge=1, le=2**24, description="jobs that wait at once, of all members")
    queue_bytes_max: int = Field(
        256 * 1024 * 1024, ge=2**20, le=2**40, description="of the requests of all jobs that are open"
    )
    interactive_wait_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="an interactive job that would wait longer for others is refused at once",
    )
    wait_for_worker_s: float = Field(
        60.0, gt=0, le=86_400, description="until an interactive job that no worker takes is given up"
    )
    fairness_half_life_s: float = Field(
        604_800.0, ge=60, le=2**31, description="after which what was given or taken counts half"
    )
    fairness_guaranteed_permille: int = Field(
        200, ge=1, le=1_000, description="thousandths of the work that all share equally"
    )
    fairness_proven: int = Field(
        100 * MICROCREDITS,
        ge=0,
        le=2**62,
        description="given more than taken, with which a member leaves its lender's place in the line",
    )
    fairness_interactive_permille: int = Field(
        100, ge=0, le=500, description="thousandths of all slots that interactive jobs keep"
    )
    fairness_batch_permille: int = Field(
        100, ge=0, le=500, description="thousandths of all slots that stored jobs keep"
    )
    fairness_finetune_permille: int = Field(
        100, ge=0, le=500, description="thousandths of all slots that fine-tuning keeps"
    )
    fairness_aged_s: float = Field(
        20.0, gt=0, le=2**31, description="without a turn, after which an interactive job passes the others"
    )
    fairness_batch_aged_s: float = Field(
        1_800.0, gt=0, le=2**31, description="without a turn, after which a stored job does"
    )
    terms_required: bool = Field(
        default=False, description="who has not accepted the pool's terms may only look"
    )
    webhooks_private: bool = Field(
        default=False, description="webhooks may go to private addresses, and by plain HTTP"
    )
    certificate_days: int = Field(7, ge=1, le=90, description="for which a worker's certificate is good")
    oidc_issuer: str | None = Field(
        None,
        max_length=2_048,
        description="URL of the OpenID provider at which members sign in to the dashboard",
    )
    oidc_client_id: str = Field("", max_length=255, description="what the OpenID provider calls this pool")
    oidc_client_secret: SecretStr | None = Field(None, description="what the pool proves its client id with")
    oidc_client_secret_file: Path | None = Field(None, description="a file that holds that secret instead")
    oidc_scopes: str = Field(
        "openid profile email", max_length=1_000, description="what the OpenID provider is asked for"
    )
    oidc_label: str = Field(
        "single sign-on", min_length=1, max_length=64, description="on the button, behind *Sign in with*"
    )
    oidc_name_claim: str = Field(
        "preferred_username", max_length=64, description="the claim that a new member is named after"
    )
    oidc_groups_claim: str = Field(
        "groups", max_length=64, description="the claim that lists somebody's groups"
    )
    oidc_join_domains: str = Field(
        "", max_length=10_000, description="whoever has a verified e-mail address there may become a member"
    )
    oidc_join_groups: str = Field(
        "", max_length=10_000, description="whoever is in one of these groups may become a member"
    )

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, variables, and the file in the home that they name."""
        del dotenv_settings, file_secret_settings
        named = {**env_settings(), **init_settings()}.get("home")
        path = _file_in(Path(named) if named else default_home())
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read(path))

    @classmethod
    def load(cls, flags: Mapping[str, object]) -> Self:
        """The settings now; flags that were not given are absent. Raises SettingsError with a sentence."""
        named = flags.get("home")
        path = _file_in(Path(str(named)) if named else default_home())
        given: dict[str, Any] = dict(flags)
        in_file = _read(path)
        variables = {name for name in cls.model_fields if os.environ.get(PREFIX + name.upper())}
        try:
            made = cls(**given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]) if problem["loc"] else ""
            reason = problem["msg"].removeprefix("Value error, ")
            if not name:
                raise SettingsError(reason) from None
            if name in flags:
                place = f"the flag --{name.replace('_', '-')}"
            else:
                place = f"the variable {PREFIX}{name.upper()}" if name in variables else f"`{name}` in {path}"
            raise SettingsError(f"{place} cannot be used: {reason}") from None
        origins: dict[str, Origin] = dict.fromkeys(in_file, "file")
        origins |= dict.fromkeys(variables, "variable")
        origins |= dict.fromkeys(flags, "flag")
        made._origins = origins
        return made

    def origin(self, name: str) -> Origin:
        """Where the value came from."""
        return self._origins.get(name, "default")

    def view(self) -> dict[str, dict[str, object]]:
        """Every setting with its value, secrets masked, and its origin."""
        values: dict[str, Any] = self.model_dump(mode="json")
        url = make_url(self.database_url)
        url = url.set(query=dict.fromkeys(url.query, "hidden"))  # drivers take passwords there, too
        values["database"] = url.render_as_string(hide_password=True)
        return {name: {"value": value, "origin": self.origin(name)} for name, value in values.items()}

    @property
    def folder(self) -> Path:
        """What belongs to the coordinator alone."""
        return self.home / "coordinator"

    @property
    def books_in_a_file(self) -> bool:
        """SQLite, not PostgreSQL."""
        return self.database is None or make_url(self.database).get_backend_name() == "sqlite"

    @property
    def database_url(self) -> str:
        """Raises SettingsError if the file with its password cannot be read."""
        if self.database is None:
            return f"sqlite:///{(self.folder / 'potluck.db').absolute().as_posix()}"
        if self.database_password_file is None:
            return self.database
        try:
            password = self.database_password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"database_password_file cannot be read: {error}.") from None
        return make_url(self.database).set(password=password).render_as_string(hide_password=False)

    @property
    def oidc_secret(self) -> str | None:
        """None for a client that proves itself by PKCE alone. Raises SettingsError."""
        if self.oidc_client_secret_file is None:
            return self.oidc_client_secret.get_secret_value() if self.oidc_client_secret else None
        try:
            return self.oidc_client_secret_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"oidc_client_secret_file cannot be read: {error}.") from None

    @field_validator("pool_name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("a pool's name has characters that can be printed, on one line")
        return value.strip()

    @field_validator("http", "grpc", "public_grpc")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("database")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        try:
            make_url(value or "sqlite://")
        except ArgumentError:
            # Not the value itself: it may hold a password.
            raise ValueError("give sqlite:////path/to/file or postgresql://user@host/name") from None
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        plain = parts.scheme == "http" and _is_loopback(parts.hostname or "")
        if not parts.hostname or not (parts.scheme == "https" or plain) or parts.query or parts.fragment:
            raise ValueError("an issuer is an https:// address without ? and #, as the provider writes it")
        if find_spec("authlib") is None:
            raise ValueError("this needs the extra oidc: pip install 'potluck[coordinator,oidc]'")
        return value

    @model_validator(mode="after")
    def _signed_in(self) -> Self:
        if self.oidc_issuer is not None and not self.oidc_client_id:
            raise ValueError("oidc_issuer and oidc_client_id are given together")
        if "openid" not in self.oidc_scopes.split():
            raise ValueError("oidc_scopes has the scope openid, without which nobody says who signs in")
        return self

    @model_validator(mode="after")
    def _closed(self) -> Self:
        """Keys and prompts do not cross a network in clear."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are given together or not at all")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise ValueError(f"the TLS file {path} does not exist")
        host = split_address(self.http)[0]
        if not (_is_loopback(host) or self.tls_cert is not None or self.behind_proxy):
            raise ValueError(
                f"HTTP on {host} would carry API keys in clear. Give --tls-cert and --tls-key, or"
                " --behind-proxy if a proxy in front ends TLS, or stay on 127.0.0.1."
            )
        return self


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT ([HOST]:PORT for IPv6). Raises ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError("give HOST:PORT, for instance 127.0.0.1:8420 or [::1]:8420")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError("a port is a number from 0 to 65535; 0 lets the system choose")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file_in(home: Path) -> Path:
    return home / "coordinator" / SETTINGS_FILE


def _read(path: Path) -> dict[str, Any]:
    """Raises SettingsError if it is not TOML or has a key that is no setting."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise SettingsError(f"{path} is larger than {_FILE_BYTES_MAX} bytes: this is no {SETTINGS_FILE}.")
        found = tomllib.loads(data.decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from None
    known = set(Settings.model_fields) - {"home"}  # the file lies in it
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), _CLOSE)
            hint = f"Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else "Remove it."
            raise SettingsError(f"{path} has a setting `{name}`, which does not exist. {hint}")
    return found
