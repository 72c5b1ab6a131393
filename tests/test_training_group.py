"""Several engines that train together: the same steps as one alone; whoever fails or hangs takes none with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_engine import WAIT_S_MAX, Heard
from fixtures_training import adapter_of, case_of, examples, pairs, plan, shapes_of

from potluck import lora
from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine
from worker.hosts import group
from worker.hosts.group import GroupHost
from worker.hosts.host import EngineStartError, Host, OnEvent
from worker.hosts.process import EngineHost
from worker.ray.placement import Node, Place
from worker.ray.ranks import RANKS_MAX, ranks
from worker.training.peers import shares

GIB = 1 << 30
KEY = ("job", 1)


# -- decisions ---------------------------------------------------------------------------------------


def test_what_a_step_takes_is_shared_out_by_size() -> None:
    """Everything once, nobody with much more than others, the same for all who compute it; some may have none."""
    sizes = [90, 10, 40, 40, 30, 60, 20, 10]
    found = shares(sizes, 3)
    assert sorted(place for part in found for place in part) == list(range(8))
    loads = [sum(sizes[place] for place in part) for part in found]
    assert max(loads) - min(loads) <= 10
    assert all(part == sorted(part) for part in found)
    assert shares([5], 3) == [[0], [], []]
    assert shares([], 2) == [[], []]


def node(name: str, *cards: int, cpus: float = 16, memory: int = 64 * GIB) -> Node:
    return Node(name, "10.0.0.1", 1, cpus=cpus, memory_bytes=memory, cards=cards)


def test_a_training_takes_all_cards_of_the_node_that_has_most() -> None:
    site = [node("a", 24 * GIB), node("b", *[24 * GIB] * 4), node("c", *[48 * GIB] * 2)]
    found = ranks(site, memory_bytes=6 * GIB, models=2)
    assert found == tuple(Place("b", index, 0.0, 0.5) for index in range(4))
    assert [place.node for place in ranks(site, memory_bytes=30 * GIB, models=2)] == ["c", "c"]
    assert len(ranks([node("d", *[24 * GIB] * 40)], memory_bytes=GIB, models=1)) == RANKS_MAX
    assert ranks(site, memory_bytes=6 * GIB, models=2, wanted=2) == found[:2]


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        ([node("a", 24 * GIB, 24 * GIB)], 1),  # its owner wants one alone
        ([node("a", 24 * GIB), node("b", 24 * GIB)], 0),  # no machine has two cards
        ([node("a", 24 * GIB, 4 * GIB)], 0),  # on one of them the model does not fit
        ([node("a", 4 * GIB, 4 * GIB)], 0),
        ([node("a")], 0),  # processors do not help each other unasked
        ([node("a", memory=10 * GIB)], 4),
        ([], 0),
    ],
)
def test_else_one_engine_trains_alone(site: list[Node], wanted: int) -> None:
    assert ranks(site, memory_bytes=6 * GIB, models=2, wanted=wanted) == ()


def test_processors_train_together_where_their_owner_wants_it() -> None:
    site = [node("a", cpus=4), node("b", cpus=16)]
    found = ranks(site, memory_bytes=6 * GIB, models=2, wanted=3)
    assert found == tuple(Place("b", index, 2.0, 0.0) for index in range(3))


# -- as one host -------------------------------------------------------------------------------------


class Rank:
    """A host that does as it is told."""

    def __init__(self, heard: OnEvent) -> None:
        self.heard, self.commands, self.closed = heard, list[engine_pb2.EngineCommand](), 0
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.loaded = engine_pb2.Loaded(slots=1, memory_bytes=5)
        self.pids: tuple[int, ...] = (7,)
        self.running: frozenset[engine.Key] = frozenset()

    def memory_bytes(self) -> int:
        return 5

    def send(self, command: engine_pb2.EngineCommand) -> None:
        self.commands.append(command)

    async def close(self, grace_s: float = 0.0) -> None:
        del grace_s
        self.closed += 1
        if not self.exited.done():
            self.exited.set_result("it was closed")

    def say(self, **body: Any) -> None:
        self.heard(engine_pb2.EngineEvent(**body))

    def done(self, steps: int) -> None:
        trained = work_pb2.Trained(steps=steps)
        self.say(done=engine_pb2.Done(attempt=attempt(), trained=trained))

    def fail(self, code: str) -> None:
        self.heard(engine.failed(attempt(), engine.EngineError(code, "why")))


def attempt() -> work_pb2.Attempt:
    return work_pb2.Attempt(job_id=KEY[0], number=KEY[1])


class Team:
    """Three ranks and what their host says."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.ranks: list[Rank] = []
        self.host: GroupHost

    async def start(self) -> "Team":
        async def start_rank(rank: int, heard: OnEvent) -> Host:
            assert rank == len(self.ranks)
            self.ranks.append(Rank(heard))
            return self.ranks[-1]

        self.host = await GroupHost.start("m", self.heard, 3, start_rank)
        return self

    def begin(self) -> None:
        self.host.send(engine_pb2.EngineCommand(start=engine_pb2.Start(attempt=attempt())))

    def codes(self) -> list[str]:
        return [event.failed.failure.code for event in self.heard.events if event.HasField("failed")]


async def test_the_first_speaks_for_all_and_an_attempt_ends_when_all_have_ended_it() -> None:
    team = await Team().start()
    team.begin()
    assert all(len(rank.commands) == 1 for rank in team.ranks)
    assert team.host.running == {KEY}
    for rank in team.ranks:
        rank.say(output=engine_pb2.Output(attempt=attempt(), steps=[work_pb2.TrainingStep(step=1)]))
    assert len(team.heard.events) == 1
    for number in (2, 1, 0):
        assert team.host.running
        team.ranks[number].done(number + 1)
    end = team.heard.end()
    assert end is not None
    assert end.done.trained.steps == 1, "what the first made"
    assert not team.host.running
    assert (team.host.memory_bytes(), team.host.pids, team.host.loaded.slots) == (15, (7, 7, 7), 1)
    await team.host.close()


async def test_all_fail_alike_and_the_group_lives_on() -> None:
    team = await Team().start()
    team.begin()
    for rank, code in zip(team.ranks, ("bad_plan", "bad_plan", "bad_plan"), strict=True):
        rank.fail(code)
    assert team.codes() == ["bad_plan"]
    assert not team.host.exited.done()
    team.begin()
    assert team.host.running
    await team.host.close()
    assert team.codes() == ["bad_plan", "engine_closed"]
    assert [rank.closed for rank in team.ranks] == [1, 1, 1]


async def test_one_that_fails_alone_ends_the_group_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it in the middle of a step, for ever."""
    monkeypatch.setattr(group, "APART_S_MAX", 0.01)
    team = await Team().start()
    team.begin()
    team.ranks[1].fail("out_of_memory")
    async with asyncio.timeout(WAIT_S_MAX):
        assert await team.host.exited == "the engines of a training lost each other"
    assert team.codes() == ["out_of_memory"]
    team.begin()
    await team.heard.until(lambda: len(team.codes()) == 2)
    assert team.codes()[1] == "engine_died"
    await team.host.close()


async def test_one_that_dies_takes_the_group_with_it() -> None:
    team = await Team().start()
    team.begin()
    team.ranks[2].exited.set_result("killed by signal 9")
    async with asyncio.timeout(WAIT_S_MAX):
        assert await team.host.exited == "killed by signal 9"
    assert team.codes() == ["engine_died"]
    await team.host.close()
    assert [rank.closed for rank in team.ranks] == [1, 1, 1]


async def test_where_one_does_not_load_no_other_is_left() -> None:
    """The others wait to meet it: they are not waited for."""
    made: list[Rank] = []
    never = asyncio.Event()

    async def start_rank(rank: int, heard: OnEvent) -> Host:
        if rank == 1:
            raise EngineStartError("load_failed", "no room")
        if rank == 2:
            await never.wait()
        made.append(Rank(heard))
        return made[-1]

    with pytest.raises(EngineStartError, match="no room"):
        await GroupHost.start("m", Heard(), 3, start_rank)
    assert [rank.closed for rank in made] == [1]


# -- with the real trainer ---------------------------------------------------------------------------


def paths_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir())]


@asynccontextmanager
async def two_engines(base: Path, folder: Path) -> AsyncIterator[tuple[GroupHost, Heard]]:
    """Two processes of the trainer as one host."""
    heard = Heard()
    load = engine_pb2.Load(
        engine="trainer", model="tiny", paths=paths_in(base), threads=1, cache_dir=str(folder), kinds=["finetune"],
        options={"device": "cpu", "ranks": "2", "meet": str(folder / "meet")},
    )  # fmt: skip

    async def start_rank(rank: int, on_event: OnEvent) -> Host:
        own = engine_pb2.Load.FromString(load.SerializeToString())
        own.options["rank"] = str(rank)
        return await EngineHost.start(own, on_event)

    host = await GroupHost.start("tiny", heard, 2, start_rank)
    try:
        yield host, heard
    finally:
        await host.close()


def begin(host: GroupHost, job: str, work: work_pb2.TrainingWork, files: engine_pb2.TrainingFiles) -> None:
    at = work_pb2.Attempt(job_id=job, number=1)
    start = engine_pb2.Start(attempt=at, work=work_pb2.Work(training=work), files=files)
    host.send(engine_pb2.EngineCommand(start=start))


def told(heard: Heard, job: str) -> list[work_pb2.TrainingStep]:
    outputs = [event.output for event in heard.events if event.HasField("output")]
    return [step for output in outputs if output.attempt.job_id == job for step in output.steps]


@pytest.mark.xdist_group("training_group")
async def test_two_engines_do_the_steps_of_one(tmp_path: Path) -> None:
    """Examples and preference pairs: losses, counts, validation and adapter are those of one engine alone, up to
    rounding. A stop ends both between two steps, and what comes next is trained as before.
    """
    case = case_of(tmp_path / "base", tmp_path)
    adapter = lora.encode(adapter_of(shapes_of(case.base)))
    works: dict[str, tuple[work_pb2.TrainingWork, list[dict[str, Any]]]] = {
        "sft": (
            work_pb2.TrainingWork(plan=plan(), last_step=4, validate=True, validated=[0, 5, 7]),
            examples(24),
        ),
        "dpo": (work_pb2.TrainingWork(plan=plan(method="dpo"), last_step=2), pairs(24)),
    }
    endless = work_pb2.TrainingWork(plan=plan(steps=10_000, epochs=10_000), last_step=10_000)
    folders = {name: tmp_path / name for name in ("endless", *works)}
    for folder in folders.values():
        folder.mkdir()
    async with two_engines(case.base, tmp_path) as (host, heard):
        assert not (tmp_path / "meet").exists()
        begin(host, "endless", endless, case.files(folders["endless"], examples(24), adapter))
        await heard.until(lambda: told(heard, "endless"))
        at = work_pb2.Attempt(job_id="endless", number=1)
        host.send(engine_pb2.EngineCommand(stop=engine_pb2.Stop(attempt=at)))
        assert (await heard.ended("endless")).failed.failure.code == "stopped"
        assert not host.exited.done()
        for name, (work, lines) in works.items():
            begin(host, name, work, case.files(folders[name], lines, adapter, validation=lines))
            together = (await heard.ended(name)).done.trained
            alone = case.train(work, lines, adapter, validation=lines)
            counted = ("steps", "tokens", "square_tokens", "valid_tokens", "valid_target_tokens")
            assert [getattr(together, each) for each in counted] == [
                getattr(alone.trained, each) for each in counted
            ]
            assert together.valid_loss == pytest.approx(alone.trained.valid_loss, rel=1e-4)
            for one, two in zip(alone.steps, told(heard, name), strict=True):
                assert (one.step, one.tokens, one.target_tokens) == (two.step, two.tokens, two.target_tokens)
                assert two.train_loss == pytest.approx(one.train_loss, rel=1e-4)
                assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
            made = lora.decode((folders[name] / "out" / "adapter.safetensors").read_bytes())
            for tensor, array in alone.adapter().items():
                assert np.allclose(array, made[tensor], atol=2e-3), tensor
