"""The community: lists rank by recent contribution and name nobody who does not want it, teams add up, a month's sums are
those of the books, and energy is only what was measured.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fixtures_api import Stand, error_of, open_stand
from fixtures_browser import PHONE, Person, person
from hypothesis import given
from hypothesis import strategies as st
from playwright.async_api import Browser, expect

from coordinator.community.board import Giver, Profile, Team, of_members, of_teams
from coordinator.community.energy import Energy, Meter, month_of
from coordinator.core.jobs import JobId, Kind, MemberId
from coordinator.dashboard.shown import energy as shown_energy
from potluck.v1 import session_pb2

TEAMS = {name: Team(id=name, name=name.upper(), founder=MemberId("m"), created_at=0.0) for name in ("a", "b")}


@st.composite
def givers(draw: st.DrawFn) -> list[Giver]:
    amounts = st.integers(-(10**9), 10**9)
    made = draw(
        st.lists(
            st.tuples(amounts, st.integers(0, 10**9), st.booleans(), st.sampled_from([None, "a", "b", "x"]))
        )
    )
    return [
        Giver(
            member=MemberId(f"mem{number}"),
            name=f"name{number}",
            profile=Profile(listed, team),
            contribution=contribution,
            given=given_,
        )
        for number, (contribution, given_, listed, team) in enumerate(made)
    ]


@given(givers())
def test_lists_rank_by_contribution_and_name_only_who_is_listed(found: list[Giver]) -> None:
    places = of_members(found, TEAMS)
    assert {place.id for place in places} == {
        one.member for one in found if one.profile.listed and (one.contribution or one.given)
    }
    for place in places:
        assert place.rank == 1 + sum(other.contribution > place.contribution for other in places)
    assert [place.rank for place in places] == sorted(place.rank for place in places)


@given(givers())
def test_a_teams_sum_is_that_of_its_listed_members(found: list[Giver]) -> None:
    places = of_teams(found, TEAMS)
    assert {place.id for place in places} == set(TEAMS)
    for place in places:
        members = [one for one in found if one.profile == Profile(True, place.id)]
        assert place.members == len(members)
        assert place.contribution == sum(one.contribution for one in members)
        assert place.given == sum(one.given for one in members)


@given(st.lists(st.tuples(st.lists(st.none() | st.floats(1, 500)), st.floats(0, 60)), max_size=20))
def test_energy_is_what_was_measured_and_nothing_else(looks: list[tuple[list[float | None], float]]) -> None:
    energy = Energy("2026-11")
    for watts, seconds in looks:
        energy = energy.plus(watts, seconds)
    measured = [(power, s) for watts, s in looks for power in watts if power is not None]
    assert energy.joules == pytest.approx(sum(power * s for power, s in measured))
    assert energy.measured_s == pytest.approx(sum(s for _, s in measured))
    assert (energy.kwh is None) == (energy.measured_s == 0)
    assert 0 <= energy.measured_share <= 1


def test_energy_is_written_with_its_unit() -> None:
    assert [shown_energy(kwh) for kwh in (0.00123, 0.5, 1.0, 42.42, 1234.5)] == [
        "1.23 Wh", "500 Wh", "1 kWh", "42.4 kWh", "1,234 kWh",
    ]  # fmt: skip


async def test_a_meter_counts_working_machines_and_survives_a_restart(stand: Stand) -> None:
    now = [1_800_000_000.0]
    pool, store = stand.context.pool, stand.context.store
    meter = Meter(pool, store, lambda: now[0])
    await meter.load()
    worker = pool.engine.fleet.workers[stand.worker]
    pool.loads[stand.worker] = session_pb2.MachineLoad(gpus=[session_pb2.GpuLoad(power_w=120)] * 2)

    def look(after_s: float) -> Energy:
        now[0] += after_s
        meter.look()
        return meter.energy

    assert look(0) == look(5) == Energy(month_of(now[0]))  # nobody works
    worker.running.add((JobId("job_1"), 1))
    assert look(5).joules == 240 * 5
    del pool.loads[stand.worker]
    assert (look(5).joules, look(0).unmeasured_s) == (1_200, 5)
    look(100_000)
    assert meter.energy.unmeasured_s == 65  # a machine that slept is not counted for all that time
    await meter.keep()
    again = Meter(pool, store, lambda: now[0])
    await again.load()
    assert again.energy == meter.energy
    now[0] += 40 * 86_400
    assert look(0).joules == 0
    worker.running.clear()


async def community(stand: Stand, by: str = "alice") -> dict[str, Any]:
    answer = await stand.ask("GET", "/pool/v1/community", by=by)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def test_the_month_is_what_the_books_say(stand: Stand) -> None:
    """Jobs, tokens and what was charged; who earned it, and nobody more than once."""
    for _ in range(3):
        (await stand.chat()).raise_for_status()
    found = await community(stand)
    assert found["done"]["jobs"] == {"chat": 3}
    jobs = [job for job in await stand.context.store.jobs() if job.kind is Kind.CHAT]
    assert found["done"]["output_tokens"] == sum(job.output_tokens for job in jobs)
    assert found["done"]["prompt_tokens"] == sum(job.prompt_tokens for job in jobs)
    assert found["done"]["charged"] == sum(job.charge or 0 for job in jobs)
    first, last = found["members"]
    assert (first["name"], last["name"]) == ("bob", "alice")
    assert first["given"] == stand.available("bob")["balance"]
    assert first["contribution"] == pytest.approx(first["given"], rel=1e-3)
    assert last["given"] == 0
    assert last["contribution"] == pytest.approx(stand.available()["balance"], rel=1e-3)
    assert found["energy"]["kwh"] is None


async def test_who_does_not_want_to_be_listed_is_not(stand: Stand) -> None:
    """In no list, in no sum, whoever asks; and the choice outlives the coordinator."""
    (await stand.chat()).raise_for_status()
    (await stand.ask("POST", "/pool/v1/teams", by="bob", json={"name": "Basement"})).raise_for_status()
    assert (await community(stand))["teams"][0]["contribution"] > 0
    (await stand.ask("PUT", "/pool/v1/profile", by="bob", json={"listed": False})).raise_for_status()
    for asker in ("alice", "bob", "admin"):
        found = await community(stand, asker)
        assert [place["name"] for place in found["members"]] == ["alice"]
        assert [(team["members"], team["contribution"]) for team in found["teams"]] == [(0, 0)]
    assert (await community(stand, "bob"))["you"]["contribution"] > 0
    fresh = replace(stand.context.community, profiles={}, teams={})
    await fresh.load()
    assert fresh.profile(stand.members["bob"].id).listed is False
    assert fresh.teams == stand.context.community.teams


async def test_teams_are_founded_joined_and_left(stand: Stand) -> None:
    async def post(path: str, by: str, **body: Any) -> Any:
        return await stand.ask("POST", f"/pool/v1/teams{path}", by=by, json=body)

    assert (await post("", "alice", name="Basement")).status_code == 201
    assert error_of(await post("", "bob", name="basement"))["code"] == "name_taken"
    assert error_of(await post("", "bob", name="\u200b"))["code"] == "invalid_value"
    assert error_of(await post("/attic/join", "bob"))["code"] == "team_not_found"
    assert (await post("/BASEMENT/join", "bob")).json()["name"] == "Basement"
    assert (await community(stand, "bob"))["you"]["team"]["name"] == "Basement"
    (await post("", "alice", name="Attic")).raise_for_status()  # and out of the other one
    teams = {team["name"]: team["members"] for team in (await community(stand))["teams"]}
    assert teams == {"Basement": 1, "Attic": 1}
    (await post("/leave", "bob")).raise_for_status()
    assert [team["name"] for team in (await community(stand))["teams"]] == ["Attic"]
    (await post("", "bob", name="Basement")).raise_for_status()  # the name is free again


# -- in the browser


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


@pytest.mark.processes
async def test_a_member_leaves_the_list_and_founds_a_team(stand: Stand, alice: Person) -> None:
    (await stand.chat()).raise_for_status()
    await alice.goto("/community")
    board = alice.page.locator("#live-leaderboard tbody")
    await expect(board).to_contain_text("alice")
    await expect(alice.page.locator("#live-month")).to_contain_text("not measured")
    await alice.page.get_by_label("A new team").fill("Attic")
    await alice.page.get_by_role("button", name="Found the team").click()
    await expect(alice.page.locator("#live-teams tbody")).to_contain_text("Attic yours")
    await alice.page.get_by_role("button", name="Do not list me").click()
    await expect(board).not_to_contain_text("alice")
    await expect(board).to_contain_text("bob")
    await alice.page.get_by_role("button", name="Leave").click()
    await expect(alice.page.locator("#live-teams tbody")).to_contain_text("found the first")


@pytest.mark.processes
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_can_be_used_by_everybody(tmp_path: Any, browser: Browser, scheme: str) -> None:
    async with open_stand(tmp_path) as stand:
        (await stand.chat()).raise_for_status()
        (await stand.ask("POST", "/pool/v1/teams", by="bob", json={"name": "Basement"})).raise_for_status()
        meter = stand.context.community.meter
        meter.energy = replace(meter.energy, joules=5e6, measured_s=9.0, unmeasured_s=1.0)
        for viewport in (None, PHONE):
            options: dict[str, Any] = {"viewport": viewport} if viewport else {}
            async with person(browser, stand.url, color_scheme=scheme, **options) as somebody:
                await somebody.sign_in(stand.keys["alice"])
                await somebody.goto("/community")
                await expect(somebody.page.locator("#live-month")).to_contain_text("1.39 kWh")
                await expect(somebody.page.locator("#live-month")).to_contain_text("90 % of")
                assert await somebody.faults() == []
                assert not await somebody.overflows()
