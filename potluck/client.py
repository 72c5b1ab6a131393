"""Which pool, which key, which model: where each of these comes from, and the file that remembers them.

The order is flag, environment variable (`POTLUCK_*`), `client.toml`, default. The file lies in `POTLUCK_HOME`
with mode 0600 and holds profiles: one address and one key each.
"""

import os
import re
import sys
import tomllib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from potluck.errors import InvalidRequest, NotLoggedIn, UsageError
from potluck.home import home, write_secret

DEFAULT_URL: Final = "http://127.0.0.1:8420"
DEFAULT_PROFILE: Final = "default"
KEY_PREFIX: Final = "sk-potluck-"
INVITE_PREFIX: Final = "pli_"
KEY_BYTES_MAX: Final = 4_096
FILE_BYTES_MAX: Final = 1 << 20
PROFILE_CHARS_MAX: Final = 64
POOL_KEY: Final = re.compile(r"[0-9a-f]{64}")
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
VARIABLES: Final[Mapping[str, str]] = {
    "profile": "POTLUCK_PROFILE",
    "url": "POTLUCK_URL",
    "key": "POTLUCK_KEY",
    "model": "POTLUCK_MODEL",
    "output": "POTLUCK_OUTPUT",
}
IN_PROFILE: Final = ("url", "key", "model", "output")
DEFAULTS: Final[Mapping[str, str]] = {"url": DEFAULT_URL, "output": "text"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and in words where it was found."""

    value: str | None = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a client needs to know, each value with its origin."""

    profile: Setting
    url: Setting
    key: Setting
    model: Setting
    output: Setting
    file: Path

    @property
    def address(self) -> str:
        """The pool's address without a slash at the end. Raises UsageError if it is none."""
        return checked_url(self.url.value or DEFAULT_URL)

    @property
    def secret(self) -> str:
        """The API key. Raises NotLoggedIn with what to do if there is none."""
        if self.key.value:
            return self.key.value
        if self.key.origin != "default":
            raise NotLoggedIn(self.key.origin)
        raise NotLoggedIn(
            f"Not logged in to {self.address}: run `potluck login {self.address}`, or set POTLUCK_KEY."
        )


@dataclass(frozen=True, slots=True)
class ClientFile:
    """`client.toml` as it was read; `profiles` maps a name to its settings."""

    path: Path
    default_profile: str | None = None
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path | None = None) -> "ClientFile":
        """Empty if there is no such file. Raises InvalidRequest with the place if it cannot be understood."""
        path = path or home() / "client.toml"
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise InvalidRequest(f"{path} is larger than {FILE_BYTES_MAX} bytes: this is no client.toml.")
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(path)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{path} is no valid TOML: {error}. Correct it or delete it.") from None
        profiles = data.get("profiles", {})
        default = data.get("default_profile")
        tables = isinstance(profiles, dict) and all(isinstance(table, dict) for table in profiles.values())
        if not tables or not isinstance(default, str | None):
            raise InvalidRequest(f"{path}: `profiles` must be tables, `default_profile` a name. Correct it.")
        for name, table in profiles.items():
            wrong = [key for key in IN_PROFILE if not isinstance(table.get(key, ""), str)]
            if wrong:
                raise InvalidRequest(f"{path}: {wrong[0]} of profile {name!r} must be a string. Correct it.")
        return cls(path, default, profiles)

    @property
    def open_to_others(self) -> bool:
        """Whether other users of this machine can read the file; on Windows a mode does not tell."""
        if sys.platform == "win32":
            return False
        try:
            return bool(self.path.stat().st_mode & 0o077)
        except OSError:
            return False

    def save_profile(self, name: str, url: str, key: str, *, default: bool) -> None:
        """Write address and key; everything else in the file stays as it is, comments included."""
        import tomlkit

        try:
            document = tomlkit.parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            document = tomlkit.document()
        if default or "default_profile" not in document:
            # Before the tables: after one, the name would belong to it.
            document.pop("default_profile", None)
            rest = list(document.items())
            for key_name, _ in rest:
                document.remove(key_name)
            document["default_profile"] = name
            for key_name, value in rest:
                document[key_name] = value
        profiles = document.setdefault("profiles", tomlkit.table(is_super_table=True))
        table = profiles.setdefault(name, tomlkit.table())
        table["url"], table["key"] = url, key
        write_secret(self.path, tomlkit.dumps(document).encode())

    def save_pool_key(self, name: str, public_key: str) -> None:
        """Remember the public key by which the pool of this profile signs."""
        import tomlkit

        document = tomlkit.parse(self.path.read_text(encoding="utf-8"))
        document["profiles"][name]["public_key"] = public_key
        write_secret(self.path, tomlkit.dumps(document).encode())

    def forget_profile(self, name: str, *, url: str) -> None:
        """Take the profile out if it is still the one for this address."""
        import tomlkit

        if self.profiles.get(name, {}).get("url") != url:
            return
        document = tomlkit.parse(self.path.read_text(encoding="utf-8"))
        profiles = document["profiles"]
        assert isinstance(profiles, MutableMapping)  # as `load` has checked
        del profiles[name]
        if document.get("default_profile") == name:
            del document["default_profile"]
        write_secret(self.path, tomlkit.dumps(document).encode())


def resolve(
    flags: Mapping[str, str | None],
    environment: Mapping[str, str] | None = None,
    file: ClientFile | None = None,
) -> Connection:
    """Every setting with its origin. Raises UsageError for a profile that does not exist.

    `flags` may name profile, url, key, model and output; None counts as not given.
    """
    environment = os.environ if environment is None else environment
    file = file or ClientFile.load()
    profile = _profile(flags, environment, file)
    table = file.profiles.get(profile.value or "", {})
    found = {name: _setting(name, flags, environment, table, file, profile) for name in IN_PROFILE}
    url, key = found["url"], found["key"]
    saved_url = table.get("url")
    saved_key = key.origin.startswith(str(file.path))
    if saved_key and (not saved_url or _place(url.value or "") != _place(saved_url)):
        # A key is a secret between two: it is sent to no other address than the one it was saved for.
        key = Setting(
            None,
            f"The saved key of profile {profile.value!r} is for {saved_url}, not for {url.value}. Run"
            f" `potluck login {url.value}`, or give --key.",
        )
    if key.value is not None:
        key = Setting(read_key(key.value), key.origin)
    return Connection(profile, url, key, found["model"], found["output"], file.path)


def saved_pool_key(connection: Connection, file: ClientFile | None = None) -> str | None:
    """The public key (hex) of the pool at this address, as it was seen when the profile was first used."""
    file = file or ClientFile.load()
    table = file.profiles.get(connection.profile.value or "", {})
    found, url = table.get("public_key"), table.get("url")
    known = isinstance(found, str) and POOL_KEY.fullmatch(found) and url
    return found if known and _place(str(url)) == _place(connection.address) else None


def _profile(flags: Mapping[str, str | None], environment: Mapping[str, str], file: ClientFile) -> Setting:
    variable = VARIABLES["profile"]
    if flags.get("profile"):
        profile = Setting(flags["profile"], "--profile")
    elif environment.get(variable):
        profile = Setting(environment[variable], variable)
    elif file.default_profile:
        profile = Setting(file.default_profile, f"{file.path} (default_profile)")
    else:
        return Setting(DEFAULT_PROFILE, "default")
    if profile.value not in file.profiles:
        names = ", ".join(sorted(file.profiles)) or "none yet"
        raise UsageError(
            f"There is no profile {profile.value!r} (from {profile.origin}); there are: {names}. Run"
            f" `potluck login URL --profile NAME` to make it."
        )
    return profile


def _setting(
    name: str,
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    table: Mapping[str, str],
    file: ClientFile,
    profile: Setting,
) -> Setting:
    if flags.get(name):
        return Setting(flags[name], f"--{name}")
    variable = VARIABLES[name]
    if environment.get(variable):
        return Setting(environment[variable], variable)
    if table.get(name):
        return Setting(table[name], f"{file.path} [profiles.{profile.value}]")
    return Setting(DEFAULTS.get(name), "default")


def read_key(given: str, *, what: str = "API key") -> str:
    """The secret itself, or what the file of `file:PATH` holds. Raises UsageError with a sentence."""
    if given.startswith("file:"):
        path = Path(given.removeprefix("file:")).expanduser()
        try:
            with path.open("rb") as file:
                given = file.read(KEY_BYTES_MAX + 1).decode("ascii")
        except OSError as error:
            raise UsageError(f"The key file {path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise UsageError(f"The file {path} holds no {what}.") from None
    key = given.strip()
    if not key or len(key) > KEY_BYTES_MAX or not key.isascii() or not key.isprintable() or " " in key:
        starts = KEY_PREFIX if what == "API key" else INVITE_PREFIX
        raise UsageError(f"This is no {what}: one starts with `{starts}` and holds no blanks.")
    return key


def checked_url(url: str) -> str:
    """The address without path and slash at its end. Raises UsageError if it is no HTTP address."""
    given = url.strip()
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.username or parts.query or parts.fragment or any(c.isspace() for c in given):
        raise UsageError(f"{url!r} is no address of a pool. Write it like https://pool.example.org:8420.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}".removesuffix("/v1")


def checked_profile(name: str) -> str:
    """Raises UsageError if this is no name for a profile."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or len(name) > PROFILE_CHARS_MAX:
        raise UsageError(
            f"{name!r} is no name for a profile: use at most {PROFILE_CHARS_MAX} letters, digits and - _ ."
        )
    return name


def is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "") in LOOPBACK


def masked(secret: str | None) -> str | None:
    """Enough of a key to tell it from another one, and no more."""
    if not secret:
        return None
    return f"{secret[: len(KEY_PREFIX) + 4]}..." if secret.startswith(KEY_PREFIX) else "..."


def _place(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port; what is no address is no place, and `checked_url` says so where it is used."""
    try:
        parts: SplitResult = urlsplit(url if "://" in url else f"http://{url}")
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None
