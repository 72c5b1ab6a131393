"""The owner's rules as they stand in `worker.toml`: the tables [sharing], [hours], [idle] and [caps]."""

import re
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import tzlocal
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from worker.hours import DAYS, WINDOWS_MAX, Week, Window
from worker.policy import Guests, Rules

LISTED_MAX: Final = 256
BYTES_MAX: Final = 1 << 50
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(%|[KMGT]i?B)", re.IGNORECASE)
_UNITS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}


def split(value: object) -> object:
    """A list may be written as one text with commas, which is how variables and flags hold it."""
    if isinstance(value, str):
        return tuple(part for piece in value.split(",") if (part := piece.strip()))
    return value


def _listed(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > LISTED_MAX:
        raise ValueError(f"at most {LISTED_MAX}")
    return value


def _windows(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > WINDOWS_MAX:
        raise ValueError(f"at most {WINDOWS_MAX} windows a day")
    for text in value:
        Window.parse(text)
    return value


def _zone(name: str) -> str:
    try:
        if name:
            ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # a name that is none, or leads out of the folder of zones
        raise ValueError(f"there is no time zone `{name}`; write it like Europe/Berlin") from None
    return name


def _size(text: str) -> str:
    size_bytes(text, 1)
    return text


def size_bytes(text: str, total: int) -> int:
    """`12 GB`, `500 MiB`, `80%` (of `total` bytes); empty: `total`. Raises ValueError with a sentence."""
    if not text:
        return total
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"`{text}` is no size: write it like 12 GB or 80%")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if number > 100:
            raise ValueError("more than 100% is not there")
        return int(total * number / 100)
    size = number * (1024 if "i" in unit else 1000) ** _UNITS[unit[0]]
    if size > BYTES_MAX:
        raise ValueError(f"`{text}` is more than any machine has")
    return int(size)


Listed = Annotated[tuple[str, ...], BeforeValidator(split), AfterValidator(_listed)]
Windows = Annotated[tuple[str, ...], BeforeValidator(split), AfterValidator(_windows)]
Day = Annotated[Windows | None, Field(description="for this day instead; left out: as every day")]
Size = Annotated[str, Field(max_length=40), AfterValidator(_size)]
Kinds = Annotated[tuple[Literal["chat", "completion", "embedding", "finetune"], ...], BeforeValidator(split)]


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sharing(Table):
    """For what and for whom; empty lists allow all. The owner's own jobs are always served, and first."""

    kinds: Kinds = Field((), description="chat, completion, embedding, finetune; empty: all")
    members: Listed = Field((), description="names of members to serve; empty: all")
    members_refused: Listed = Field((), description="names of members never to serve")
    models_refused: Listed = Field((), description="names of models never to serve")
    on_battery: bool = Field(default=False, description="share while this machine runs on battery")


class Hours(Table):
    """Windows like `22:00-07:00`; one that crosses midnight belongs to the day on which it begins."""

    time_zone: Annotated[str, Field(max_length=100), AfterValidator(_zone)] = Field(
        "", description="like Europe/Berlin; empty: this machine's own"
    )
    every_day: Windows = Field(("00:00-24:00",), description="for days that are not named; empty: not at all")
    monday: Day = None
    tuesday: Day = None
    wednesday: Day = None
    thursday: Day = None
    friday: Day = None
    saturday: Day = None
    sunday: Day = None

    def week(self) -> Week | None:
        """None: always open."""
        zone = ZoneInfo(self.time_zone) if self.time_zone else tzlocal.get_localzone()
        given: tuple[tuple[str, ...] | None, ...] = tuple(getattr(self, day) for day in DAYS)
        windows = (self.every_day if day is None else day for day in given)
        week = Week(tuple(tuple(Window.parse(text) for text in day) for day in windows), zone)
        return None if week.always else week


class Idle(Table):
    """When the machine counts as used by others, and this worker gets out of the way; 0 and empty: off."""

    input_minutes: float = Field(
        0.0, ge=0, le=10_080, description="share only after so long without keyboard and mouse; 0: always"
    )
    gpu_alone: bool = Field(default=True, description="pause while another program computes on a card")
    fullscreen: bool = Field(default=True, description="pause while a program fills the screen")
    cpu_percent: float = Field(
        0.0, ge=0, le=100, description="pause while others use more of all cores; 0: never"
    )
    programs: Listed = Field((), description="pause while one of these runs, by the name of its file")


class Caps(Table):
    """What the worker may take at most: sizes like `12 GB` or `80%`; 0 and empty: what is there."""

    vram: Size = Field("", description="of each card's memory, all models together")
    memory: Size = Field("", description="of the machine's memory, all models together")
    disk: Size = Field("", description="for model files")
    gpus: tuple[Annotated[int, Field(ge=0, lt=64)], ...] = Field(
        (), description="cards that may be used, as nvidia-smi numbers them; empty: all"
    )
    gpu_temperature_c: float = Field(
        85.0, ge=0, le=120, description="pause above; go on below this less the margin; 0: no cap"
    )
    gpu_temperature_margin_c: float = Field(10.0, ge=0, le=60, description="how far a card must cool down")
    gpu_power_w: float = Field(0.0, ge=0, le=5_000, description="as the temperature, in watts; 0: no cap")
    gpu_power_margin_w: float = Field(20.0, ge=0, le=1_000, description="as the temperature's margin")


TABLES: Final[dict[str, type[Table]]] = {"sharing": Sharing, "hours": Hours, "idle": Idle, "caps": Caps}


def rules_of(sharing: Sharing, hours: Hours, idle: Idle, caps: Caps) -> Rules:
    """What the policy judges by."""
    return Rules(
        week=hours.week(),
        on_battery=sharing.on_battery,
        input_s=idle.input_minutes * 60.0,
        gpu_alone=idle.gpu_alone,
        cpu_percent=idle.cpu_percent,
        fullscreen=idle.fullscreen,
        programs=frozenset(name.lower() for name in idle.programs),
        temperature_c=caps.gpu_temperature_c,
        temperature_margin_c=min(caps.gpu_temperature_margin_c, caps.gpu_temperature_c),
        power_w=caps.gpu_power_w,
        power_margin_w=min(caps.gpu_power_margin_w, caps.gpu_power_w),
    )


def guests_of(sharing: Sharing, owner: str) -> Guests:
    return Guests(
        owner=owner,
        kinds=frozenset(sharing.kinds),
        members=frozenset(sharing.members),
        members_refused=frozenset(sharing.members_refused),
    )


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"idle.input_minutes": 5}` as the tables have it."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        table, dot, inner = name.partition(".")
        if dot:
            out.setdefault(table, {})[inner] = value
        else:
            out[name] = value
    return out
