"""The worker and its machine: locks, shares of the cores, what is in it, settings, state, choice of models."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fixtures_worker import EMULATOR

from potluck.catalogue import Catalogue, Variant
from potluck.errors import ExitCode
from potluck.lock import FileLock, Locked, holder
from worker import advice
from worker.cores import CoreShare, share, usable_cores
from worker.errors import WorkerConflict
from worker.loads import load_of
from worker.messages import Role
from worker.models import Choice, adapting_of, catalogue_from, choose, load_s_max, options_of, trainer_of
from worker.probe import Probe, disk_free_bytes, hardware_of
from worker.rules import Sharing
from worker.session import BACKOFF_S_MAX, BACKOFF_S_MIN, Backoff
from worker.settings import Settings, options_from
from worker.state import STATE_FILE, WorkerState, process_start

HOLD = """
import sys
from dataclasses import replace
from pathlib import Path
from potluck.lock import FileLock
lock = FileLock.acquire(Path(sys.argv[1]), sys.argv[2].encode())
print("held", flush=True)
sys.stdin.read()
"""


def held_by_another(path: Path, content: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path), content]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_keeps_others_out_and_tells_who_holds_it(tmp_path: Path) -> None:
    with FileLock.acquire(tmp_path / "x", b"me"):
        with pytest.raises(Locked) as raised:
            FileLock.acquire(tmp_path / "x", b"you")
        assert raised.value.content == b"me"
        assert holder(tmp_path / "x") == b"me"
    with FileLock.acquire(tmp_path / "x", b"you"):
        pass
    assert holder(tmp_path / "x") is None
    assert not (tmp_path / "x").exists()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with held_by_another(tmp_path / "x", "other") as process:
        assert holder(tmp_path / "x") == b"other"
        process.kill()
        process.wait()
    FileLock.acquire(tmp_path / "x", b"me").release()


@pytest.mark.parametrize(
    ("cores", "others", "threads"),
    [
        (8, [], 8),
        (8, [0], 4),
        (8, [0, 0], 2),
        (8, [2], 6),
        (8, [2, 0], 3),
        (2, [2], 1),
        (2, [0] * 5, 1),
        (1, [], 1),
    ],
)
def test_the_cores_are_shared_out(cores: int, others: list[int], threads: int) -> None:
    assert share(cores, others=others) == threads


def test_workers_on_one_machine_know_of_each_other_until_they_end(tmp_path: Path) -> None:
    mine = CoreShare(tmp_path, threads=0)
    assert mine.threads() == usable_cores()
    other = held_by_another(tmp_path / "workers" / "1-ab.lock", '{"pid": 1, "threads": 1}')
    with other:
        assert mine.others() == [1]
        assert mine.threads() == max(1, usable_cores() - 1)
        other.kill()
        other.wait()
    assert mine.others() == []
    mine.release()
    wished = CoreShare(tmp_path, threads=3)
    assert wished.threads() == 3
    wished.release()


def test_an_entry_that_cannot_be_read_counts_as_a_neighbour(tmp_path: Path) -> None:
    mine = CoreShare(tmp_path, threads=0)
    with FileLock.acquire(tmp_path / "workers" / "2-cd.lock", b"{half"):
        assert mine.others() == [0]
    mine.release()


def test_the_machine_is_seen_as_it_is(tmp_path: Path) -> None:
    probe = Probe(tmp_path / "not" / "there" / "yet", tmp_path)
    machine = probe.machine()
    hardware, load = hardware_of(machine), probe.load()
    probe.close()
    assert hardware.cores == usable_cores()
    assert 0 < hardware.memory_bytes <= psutil.virtual_memory().total
    assert hardware.disk_free_bytes > 0
    assert hardware.system
    assert hardware.nodes == 1
    assert 0 < advice.room(machine, "llamacpp").bytes <= hardware.memory_bytes
    assert 0 < load.memory_free_bytes <= hardware.memory_bytes
    assert load.disk_free_bytes > 0
    assert len(load.gpus) <= len(hardware.gpus)
    assert disk_free_bytes(tmp_path) > 0


def test_settings_come_from_flag_variable_file_default_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "worker.toml").write_text(
        'engine = "torch"\nthreads = 3\nslots = 5\n[engine_options]\na = 1\nb = true\n'
    )
    flags = {"engine": "emulator", "threads": None}
    made = Settings.load(
        flags=flags, environ={"POTLUCK_THREADS": "2", "POTLUCK_MODELS": "a, b"}, folder=tmp_path
    )
    assert (made.engine, made.threads, made.slots, made.models) == ("emulator", 2, 5, ("a", "b"))
    assert made.engine_options == {"a": "1", "b": "true"}
    names = ("engine", "threads", "slots", "drain_timeout_s")
    assert [made.origin(name) for name in names] == ["flag", "variable", "file", "default"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("thread = 3", "Did you mean `threads`"),
        ("threads = -1", "sets `threads` wrongly"),
        ("threads = ", "cannot be read"),
        ('log = "loud"', "sets `log` wrongly"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "worker.toml").write_text(text)
    with pytest.raises(WorkerConflict, match=sentence) as raised:
        Settings.load(flags={}, environ={}, folder=tmp_path)
    assert raised.value.exit_code == ExitCode.INVALID
    assert "worker.toml" in str(raised.value)


def test_a_wrong_variable_and_option_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerConflict, match="the variable sets `threads`"):
        Settings.load(flags={}, environ={"POTLUCK_THREADS": "many"}, folder=tmp_path)
    with pytest.raises(WorkerConflict, match="NAME=VALUE"):
        options_from(["ttft_ms"])
    assert options_from(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    assert options_from([]) is None


def test_the_state_of_a_daemon_that_is_gone_is_told_from_a_live_one(tmp_path: Path) -> None:
    assert WorkerState.load(tmp_path).state == "not running"
    live = WorkerState(pid=os.getpid(), process_started=process_start(os.getpid()), state="sharing")
    live.save(tmp_path)
    assert WorkerState.load(tmp_path) == live
    live.model_copy(update={"process_started": live.process_started - 100}).save(tmp_path)
    assert WorkerState.load(tmp_path).state == "not running", "another process has its number"
    (tmp_path / STATE_FILE).write_text("{")
    assert "cannot be read" in WorkerState.load(tmp_path).why


def test_the_first_try_after_a_loss_is_at_once_and_later_ones_are_bounded() -> None:
    backoff = Backoff()
    waits = [backoff.next_s() for _ in range(100)]
    assert waits[0] == 0.0
    assert all(BACKOFF_S_MIN <= wait <= BACKOFF_S_MAX for wait in waits[1:])
    assert len(set(waits[20:])) > 50, "a herd of workers does not come back in step"
    backoff.reset()
    assert backoff.next_s() == 0.0


# --- which models ---

CATALOGUE = Catalogue.builtin(emulator=True)
ALL = ("llamacpp", "torch", "emulator")
PLENTY = 1 << 40


def choice(
    memory_bytes: int = PLENTY, catalogue: Catalogue = CATALOGUE, **settings: object
) -> tuple[str, str, bool]:
    made = Settings.model_validate(settings)
    [found] = choose(catalogue, made, engines=ALL, memory_bytes=dict.fromkeys(ALL, memory_bytes))
    return found.entry.name, found.engine, found.eager


def test_without_wishes_the_default_model_is_served_by_the_first_engine() -> None:
    assert choice() == ("smollm2-135m-instruct", "llamacpp", False)
    assert choice(engine="torch") == ("smollm2-135m-instruct", "torch", False)


def test_a_bridge_serves_any_model_of_the_catalogue_under_the_pools_name() -> None:
    """Whatever files the catalogue has for it, and whatever memory is free: the owner's server has its own."""
    bridge = {"SmolLM2-135M-Instruct": {"url": "http://127.0.0.1:8000", "model": "theirs"}}
    settings = Settings.model_validate({"bridge": bridge})
    [found] = choose(CATALOGUE, settings, engines=ALL, memory_bytes=dict.fromkeys(ALL, 0))
    assert (found.entry.name, found.engine, found.eager) == ("smollm2-135m-instruct", "openai", True)
    assert found.variant.files == ()
    assert options_of(found, settings) == {"url": "http://127.0.0.1:8000", "model": "theirs"}
    patient = {name: table | {"start_timeout_s": 86_400} for name, table in bridge.items()}
    assert load_s_max(found, Settings.model_validate({"bridge": patient})) > 86_400, (
        "no other limit is sooner"
    )
    assert choice(engine="llamacpp", bridge=bridge) == ("smollm2-135m-instruct", "llamacpp", False)
    only = EMULATOR.model_copy(
        update={"variants": (Variant(format="none", engines=("openai",), memory_bytes=0),)}
    )
    with pytest.raises(WorkerConflict, match=rf'\[bridge."{only.name}"\]'):
        choice(catalogue=Catalogue((only,)), models=(only.name,))


def test_the_emulator_is_never_chosen_silently() -> None:
    only = Catalogue((EMULATOR,))
    with pytest.raises(WorkerConflict, match="no model of the pool fits"):
        choice(catalogue=only)
    with pytest.raises(WorkerConflict, match="runs with the engine emulator"):
        choice(models=("emulator-small",))
    assert choice(engine="emulator") == ("emulator-small", "emulator", False)


def test_models_named_by_the_owner_are_loaded_at_once() -> None:
    assert choice(models=("SmolLM2-135M-Instruct",)) == ("smollm2-135m-instruct", "llamacpp", True)


@pytest.mark.parametrize(
    ("settings", "memory_bytes", "sentence"),
    [
        ({"models": ("smollm",)}, PLENTY, "has no model `smollm`"),
        ({"models": ("smollm2-135m-instruct",)}, 1000, "needs 0.* GB of memory"),
        ({}, 1000, "no model of the pool fits"),
        ({"engine": "llama"}, PLENTY, "there is no engine `llama`"),
        ({"engine": "openai"}, PLENTY, "name it in worker.toml"),
        ({"bridge": {"other": {"url": "http://127.0.0.1"}}}, PLENTY, "has no model `other`"),
    ],
)
def test_what_cannot_be_served_is_said_with_its_reason(
    settings: dict[str, Any], memory_bytes: int, sentence: str
) -> None:
    with pytest.raises(WorkerConflict, match=sentence):
        choice(memory_bytes, **settings)


def test_the_smaller_variant_is_taken_where_the_larger_does_not_fit() -> None:
    variants = tuple(Variant(format="none", engines=("emulator",), memory_bytes=size) for size in (1000, 10))
    entry = EMULATOR.model_copy(update={"variants": variants})
    [found] = choose(
        Catalogue((entry,)), Settings(engine="emulator"), engines=ALL, memory_bytes=dict.fromkeys(ALL, 500)
    )
    assert found.variant.memory_bytes == 10


def test_a_catalogue_that_is_none_names_what_to_do() -> None:
    with pytest.raises(WorkerConflict, match="update this worker"):
        catalogue_from(b"{")
    catalogue, left_out = catalogue_from(Catalogue((EMULATOR,)).to_wire())
    assert ([entry.name for entry in catalogue.entries], left_out) == (["emulator-small"], [])


# --- what trains them ---


def trainer(
    served: Choice, *, here: bool = True, memory_bytes: int = PLENTY, number_bytes: int = 4, kinds: str = ""
) -> Choice | None:
    sharing = Sharing.model_validate({"kinds": kinds})
    return trainer_of(served, sharing, here=here, memory_bytes=memory_bytes, number_bytes=number_bytes)


def served(engine: str = "llamacpp", **changes: Any) -> Choice:
    settings = Settings(engine=engine, models=("emulator-small",) if engine == "emulator" else ())
    [found] = choose(CATALOGUE, settings, engines=ALL, memory_bytes=dict.fromkeys(ALL, PLENTY))
    return replace(found, entry=found.entry.model_copy(update=changes))


@pytest.mark.parametrize("engine", ["llamacpp", "torch"])
def test_whatever_serves_a_model_the_trainer_has_its_own_way_into_memory(engine: str) -> None:
    """In float32 on a processor, in half of it on a card, with room for what training needs beside."""
    found = trainer(served(engine))
    assert found is not None
    assert (found.engine, found.eager, found.key) == ("trainer", False, ("smollm2-135m-instruct", Role.TRAIN))
    assert found.variant.files == served().variant.files
    assert found.variant.memory_bytes == 134_515_008 * 5 + (1 << 30)
    on_card = trainer(served(engine), number_bytes=2)
    assert on_card is not None
    assert on_card.variant.memory_bytes == 134_515_008 * 5 // 2 + (1 << 30)
    options = {"device": "cpu", "batch": "4"}
    assert options_of(found, Settings(engine_options=options)) == {}
    assert options_of(found, Settings(engine="torch", engine_options=options)) == {"device": "cpu"}


def test_what_cannot_be_trained_here_is_not_offered() -> None:
    """Without the libraries, without the room, against the owner's word, vectors only, another's server."""
    assert trainer(served(), here=False) is None
    assert trainer(served(), memory_bytes=134_515_008 * 5) is None
    assert trainer(served(), kinds="chat,embedding") is None
    assert trainer(served(), kinds="chat,finetune") is not None
    assert trainer(served(kinds=("embedding",))) is None
    assert trainer(replace(served(), engine="openai")) is None
    only = served().variant.model_copy(update={"engines": ("llamacpp",)})
    assert trainer(served(variants=(only,))) is None


def test_the_emulator_trains_what_it_serves() -> None:
    found = trainer(served("emulator"), here=False)
    assert found is not None
    assert (found.engine, found.role) == ("emulator", Role.TRAIN)
    assert options_of(found, Settings(engine_options={"steps_per_s": "5"})) == {"steps_per_s": "5"}


def adapting(served: Choice, *, here: bool = True, memory_bytes: int = PLENTY) -> Choice | None:
    return adapting_of(served, here=here, memory_bytes=memory_bytes)


def test_beside_an_engine_without_adapters_torch_answers_with_them(tmp_path: Path) -> None:
    """Loaded on demand, under a name of its own in memory, without the options of the other engine."""
    found = adapting(served())
    assert found is not None
    assert (found.engine, found.eager, found.key) == ("torch", False, ("smollm2-135m-instruct", Role.ADAPT))
    assert found.tenant != served().tenant
    settings = Settings(slots=7, engine_options={"n_gpu_layers": "3"})
    load = load_of(found, settings, paths=[], threads=2, memory_bytes_max=5, cache_dir=tmp_path)
    assert (load.engine, list(load.kinds), load.slots) == ("torch", list(found.entry.kinds), 7)
    assert not load.options


def test_where_torch_cannot_or_need_not_there_is_no_engine_for_adapters() -> None:
    """It serves already, is not here, has no room or no variant; vectors only; bridges; the emulator."""
    assert adapting(served("torch")) is None
    assert adapting(served(), here=False) is None
    assert adapting(served(), memory_bytes=served().variant.memory_bytes - 1) is None
    only = served().variant.model_copy(update={"engines": ("llamacpp",)})
    assert adapting(served(variants=(only,))) is None
    assert adapting(served(kinds=("embedding",))) is None
    assert adapting(replace(served(), engine="openai")) is None
    assert adapting(served("emulator")) is None


def test_a_trainer_is_told_what_it_is_loaded_for(tmp_path: Path) -> None:
    choice = trainer(served())
    assert choice is not None
    settings = Settings(slots=7, engine_options={"threads": "3"})
    load = load_of(choice, settings, paths=[], threads=2, memory_bytes_max=5, cache_dir=tmp_path)
    assert (load.engine, list(load.kinds), load.slots, load.threads) == ("trainer", ["finetune"], 1, 2)
    assert not load.options


def test_each_engine_has_its_own_room() -> None:
    """A small card does not keep a model from the processor, nor a large one make the memory larger."""
    made, room = Settings(), {"llamacpp": 0, "torch": PLENTY, "emulator": 0}
    [found] = choose(CATALOGUE, made, engines=ALL, memory_bytes=room)
    assert found.engine == "torch"
