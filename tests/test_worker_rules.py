"""The owner's tables in `worker.toml`: what may stand there, and what a mistake is answered with."""

from pathlib import Path

import pytest
import tzlocal

from worker.errors import WorkerConflict
from worker.policy import Rules
from worker.rules import guests_of, rules_of, size_bytes
from worker.settings import Settings, variable

FULL = """
threads = 4

[sharing]
kinds = ["chat"]
members = ["bob", "carol"]
members_refused = "eve"
models_refused = ["big"]
on_battery = true

[hours]
time_zone = "Europe/Berlin"
every_day = "22:00-07:00"
saturday = ["00:00-24:00"]
sunday = ""

[idle]
input_minutes = 5
gpu_alone = false
fullscreen = false
cpu_percent = 25
programs = ["Steam", "blender"]

[caps]
vram = "80%"
memory = "12 GB"
disk = "100 GiB"
gpus = [0, 2]
gpu_temperature_c = 75
gpu_power_w = 250
"""


def load(folder: Path, text: str = "", **environ: str) -> Settings:
    (folder / "worker.toml").write_text(text, encoding="utf-8")
    return Settings.load(flags={}, environ=environ, folder=folder)


def rules(settings: Settings) -> Rules:
    return rules_of(settings.sharing, settings.hours, settings.idle, settings.caps)


def test_every_rule_of_a_full_file_reaches_the_policy(tmp_path: Path) -> None:
    made = load(tmp_path, FULL)
    judged = rules(made)
    assert judged.week is not None
    assert [len(day) for day in judged.week.days] == [1, 1, 1, 1, 1, 1, 0]
    assert str(judged.week.zone) == "Europe/Berlin"
    assert (judged.input_s, judged.gpu_alone, judged.fullscreen, judged.cpu_percent) == (
        300,
        False,
        False,
        25,
    )
    assert judged.programs == {"steam", "blender"}
    assert (judged.temperature_c, judged.power_w, judged.on_battery) == (75, 250, True)
    guests = guests_of(made.sharing, "ada")
    assert [sorted(names) for names in (guests.kinds, guests.members, guests.members_refused)] == [
        ["chat"],
        ["bob", "carol"],
        ["eve"],
    ]
    assert (made.caps.gpus, made.sharing.models_refused, made.threads) == ((0, 2), ("big",), 4)
    assert made.origin("idle.cpu_percent") == "file"


def test_the_defaults_share_at_all_hours_with_the_owners_battery_games_and_fans_in_mind(
    tmp_path: Path,
) -> None:
    judged = rules(load(tmp_path))
    assert judged.week is None
    assert (judged.on_battery, judged.fullscreen, judged.gpu_alone) == (False, True, True)
    assert judged.temperature_c == 85.0
    assert (judged.input_s, judged.cpu_percent, judged.power_w) == (0, 0, 0)


def test_hours_without_a_zone_are_those_of_this_machine(tmp_path: Path) -> None:
    judged = rules(load(tmp_path, '[hours]\nevery_day = "22:00-07:00"'))
    assert judged.week is not None
    assert judged.week.zone == tzlocal.get_localzone()


def test_flag_comes_before_variable_before_file_inside_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text("[idle]\ninput_minutes = 1\ncpu_percent = 2\nfullscreen = false\n")
    environ = {variable("idle.input_minutes"): "3", "POTLUCK_IDLE_PROGRAMS": "a, b"}
    flags = {"idle.input_minutes": 7.0, "idle.cpu_percent": None}
    made = Settings.load(flags=flags, environ=environ, folder=tmp_path)
    assert (made.idle.input_minutes, made.idle.cpu_percent, made.idle.fullscreen) == (7.0, 2.0, False)
    assert made.idle.programs == ("a", "b")
    names = ("idle.input_minutes", "idle.programs", "idle.cpu_percent", "idle.gpu_alone")
    assert [made.origin(name) for name in names] == ["flag", "variable", "file", "default"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[idle]\ninput_minuts = 5", r"`idle.input_minuts` that does not exist. Did you mean `idle.input"),
        ("[caps]\nzzz = 5", r"Known are caps.disk, caps.gpu_power_margin_w.*caps.vram.$"),
        ("[hourz]\nmonday = ''", "`hourz` that does not exist"),
        ("idle = 5", r"sets `idle` wrongly: it is a table, written \[idle\]"),
        ("[idle]\ncpu_percent = 101", "sets `idle.cpu_percent` wrongly"),
        ("[hours]\nmonday = '25:00-26:00'", "sets `hours.monday` wrongly: .*does not exist"),
        ("[hours]\ntime_zone = 'Berlin/Europe'", "sets `hours.time_zone` wrongly: there is no time zone"),
        ("[hours]\ntime_zone = '../../etc/passwd'", "sets `hours.time_zone` wrongly"),
        ("[caps]\nvram = 'much'", "sets `caps.vram` wrongly: `much` is no size"),
        ("[caps]\nvram = '120%'", "sets `caps.vram` wrongly: more than 100%"),
        ("[sharing]\nkinds = ['poetry']", "sets `sharing.kinds` wrongly: Input should be 'chat', 'compl"),
    ],
)
def test_a_mistake_is_refused_with_the_settings_name_and_what_is_known(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(WorkerConflict, match=sentence):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("", 64), ("50%", 32), ("2 KB", 2000), ("2 KiB", 2048), ("1.5gb", 1_500_000_000), ("1TB", 10**12)],
)
def test_sizes_are_read_as_people_write_them(text: str, bytes_: int) -> None:
    assert size_bytes(text, 64) == bytes_
