"""What the owner of a worker may set, and where each value came from.

Order: flag > POTLUCK_* variable > `worker.toml` in POTLUCK_HOME/worker > default. A setting inside a table
has the name `table.name`, and its variable is POTLUCK_TABLE_NAME.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from potluck.home import model_cache, worker_home
from worker.bridges import Bridge
from worker.cores import machine_folder
from worker.errors import WorkerConflict
from worker.rules import TABLES, Caps, Hours, Idle, Sharing, nested, split

SETTINGS_FILE: Final = "worker.toml"
PREFIX: Final = "POTLUCK_"
MODELS_MAX: Final = 32
OPTIONS_MAX: Final = 64

Origin = Literal["flag", "variable", "file", "default"]


class Settings(BaseModel):
    """The owner's wishes; 0 and "" mean that the worker decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str = Field(
        "", max_length=40, description="llamacpp, torch, openai or emulator; empty: what fits the model"
    )
    models: tuple[str, ...] = Field((), description="names of the catalogue; empty: its default that fits")
    threads: int = Field(0, ge=0, le=1024, description="of all engines together; 0: a share of the cores")
    slots: int = Field(
        0, ge=0, le=1024, description="attempts at once for each model; 0: the engine's choice"
    )
    context_tokens: int = Field(0, ge=0, le=2**24, description="0: the model's own")
    engine_options: dict[str, str] = Field(
        default_factory=dict, description="passed to the engine as they are"
    )
    bridge: dict[str, Bridge] = Field(
        default_factory=dict, description="servers of the owner's, by the model's name in the pool"
    )
    drain_timeout_s: float = Field(60.0, ge=0, le=86_400, description="for finishing what runs when stopped")
    unload_after_s: float = Field(
        600.0,
        ge=0,
        le=1e9,
        description="a model that was not asked for by name leaves memory when idle; 0: never",
    )
    download_bytes_per_s: float = Field(
        0.0, ge=0, le=1e12, description="for model files, all together (pip's wheels apart); 0: no limit"
    )
    sharing: Sharing = Field(default_factory=Sharing, description="for what and for whom")
    hours: Hours = Field(default_factory=Hours, description="when")
    idle: Idle = Field(default_factory=Idle, description="who else must not be using the machine")
    caps: Caps = Field(default_factory=Caps, description="how much of it")
    ray: bool = Field(False, description="serve with a private Ray cluster of this machine: several cards")
    ray_address: str = Field(
        "", max_length=300, description="HOST:PORT of the owner's own Ray cluster, to serve on all its nodes"
    )
    ray_token_file: str = Field(
        "", max_length=4096, description="that cluster's token; empty: ~/.ray/auth_token"
    )
    replicas: int = Field(
        0, ge=0, le=256, description="of each model on a site; 0: one for each card, or each node without"
    )
    training_ranks: int = Field(
        0,
        ge=0,
        le=16,
        description="engines that train together on a site; 0: one on each card of one machine, 1: one alone",
    )
    log: Literal["auto", "text", "json"] = Field("auto", description="auto: text in a terminal, else json")

    log_file: str = Field("", max_length=4096, description="where the log goes instead of to stderr")

    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @field_validator("engine_options", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """Options in a file may be numbers; engines take strings."""
        if isinstance(value, str):
            return dict(_pair(part) for part in value.split(",") if part.strip())
        if isinstance(value, dict):
            return {str(name): _word(item) for name, item in value.items()}
        return value

    @field_validator("models", "engine_options", "bridge")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        limit = MODELS_MAX if isinstance(value, tuple) else OPTIONS_MAX
        if len(value) > limit:
            raise ValueError(f"at most {limit}")
        return value

    def origin(self, name: str) -> Origin:
        """Of `threads`, or of `idle.input_minutes`."""
        return self._origins.get(name, "default")

    @classmethod
    def load(
        cls, *, flags: Mapping[str, object], environ: Mapping[str, str], folder: Path | None = None
    ) -> "Settings":
        """The settings now; flags that were not given are None, and those of a table are named with a dot.

        Raises WorkerConflict with a sentence that names the setting, and what is known where it is not.
        """
        path = (worker_home() if folder is None else folder) / SETTINGS_FILE
        known = _known(cls)
        in_file = _flat(_read(path), path)
        for name in in_file:
            if name not in known:
                raise WorkerConflict(
                    f"{path} has a setting `{name}` that does not exist.{_hint(name, known)}"
                )
        variables = {name: environ[key] for name in known if (key := variable(name)) in environ}
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            made = cls.model_validate(nested({**in_file, **variables, **given}))
        except ValidationError as error:
            name = _setting(error.errors()[0]["loc"])
            place = "the flag" if name in given else "the variable" if name in variables else str(path)
            wrong = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise WorkerConflict(f"{place} sets `{name}` wrongly: {wrong}.") from None
        origins: dict[str, Origin] = dict.fromkeys(in_file, "file")
        origins |= dict.fromkeys(variables, "variable")
        origins |= dict.fromkeys(given, "flag")
        made._origins = origins  # noqa: SLF001 -- of the class itself, in its own constructor
        return made


def variable(name: str) -> str:
    """`idle.input_minutes` is set by POTLUCK_IDLE_INPUT_MINUTES."""
    return PREFIX + name.replace(".", "_").upper()


def _known(settings: type[BaseModel]) -> list[str]:
    """The names of all settings, those in tables with a dot."""
    inner = [f"{table}.{name}" for table, model in TABLES.items() for name in model.model_fields]
    return sorted([name for name in settings.model_fields if name not in TABLES] + inner)


def _flat(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """As `nested`, the other way round. Raises WorkerConflict."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name not in TABLES:
            flat[name] = value
        elif isinstance(value, dict):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            raise WorkerConflict(f"{path} sets `{name}` wrongly: it is a table, written [{name}].")
    return flat


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    table = name.partition(".")[0]
    inside = [other for other in known if other.startswith(f"{table}.")] if "." in name else []
    return f" Did you mean `{close[0]}`?" if close else f" Known are {', '.join(inside or known)}."


def _setting(place: tuple[int | str, ...]) -> str:
    """The name of the setting at which a validation failed."""
    if not place:
        return "?"
    inner = place[0] in TABLES or place[0] == "bridge"
    return f"{place[0]}.{place[1]}" if inner and len(place) > 1 else str(place[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WorkerConflict(f"{path} cannot be read: {error}.") from None


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"`{text}` is not of the form NAME=VALUE")
    return name.strip(), value.strip()


def options_from(pairs: list[str]) -> dict[str, str] | None:
    """`--engine-option NAME=VALUE`, repeated; None if there is none. Raises WorkerConflict."""
    try:
        return dict(_pair(pair) for pair in pairs) or None
    except ValueError as error:
        raise WorkerConflict(f"--engine-option: {error}.") from None


class Places(BaseModel):
    """The folders of one worker."""

    model_config = ConfigDict(frozen=True)

    worker: Path = Field(default_factory=worker_home)
    cache: Path = Field(default_factory=model_cache)
    machine: Path = Field(default_factory=machine_folder)

    @property
    def training(self) -> Path:
        """Folders of training attempts, inside the model cache: all nodes of a site see it."""
        return self.cache / "training"

    @property
    def converted(self) -> Path:
        """Weights that engines have made out of model files, in folders named by the file's sha256."""
        return self.cache.parent / "converted"
