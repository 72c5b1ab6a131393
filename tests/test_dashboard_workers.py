"""The pages about workers in a real Chromium: a machine that joins by the page's own commands turns the page green."""

import asyncio
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_api import Stand, open_stand
from fixtures_browser import DESK, PHONE, Person, person
from fixtures_pool import Process, RealPool
from playwright.async_api import Browser, Dialog, expect

from potluck.v1 import session_pb2

pytestmark = pytest.mark.processes
JOINED_MS = 60_000
EMULATOR = {"POTLUCK_ENGINE": "emulator", "POTLUCK_MODELS": "emulator-small"}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with open_stand(tmp_path) as made:
        yield made


@pytest.fixture
async def bob(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    """Whose worker is `rig`."""
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["bob"])
        yield made


# --- enrolling


async def test_a_machine_that_joins_by_the_pages_own_commands_turns_it_green(
    real_pool: RealPool, browser: Browser
) -> None:
    """A real pool, real processes, and the commands as they stand on the page; nothing is loaded again."""
    key = (await asyncio.to_thread(real_pool.member, "bob")).key
    home = real_pool.folder / "attic"
    async with person(browser, real_pool.url) as somebody:
        await somebody.sign_in(key)
        await somebody.goto("/workers/enrol")
        await somebody.page.get_by_role("button", name="Make the commands").click()
        join, start = [shlex.split(await somebody.page.locator(f"#command-{n}").inner_text()) for n in (1, 2)]
        assert (join[:3], start) == (["potluck", "worker", "join"], ["potluck", "worker", "start"])
        said = somebody.page.locator("#live-enrolment")
        await expect(said).to_contain_text("Waiting for the machine")
        await somebody.page.evaluate("window.loadedOnce = true")
        joined = Process.start("join", [*join[1:], "--name", "attic"], home)
        assert await asyncio.to_thread(joined.popen.wait, JOINED_MS / 1_000) == 0, "".join(joined.lines)
        await expect(said).to_contain_text("attic has joined. Now the second command")
        real_pool.workers["attic"] = Process.start("attic", start[1:], home, **EMULATOR)
        green = said.locator(".callout.good")
        await expect(green).to_contain_text("attic is here and shares emulator-small", timeout=JOINED_MS)
        assert await somebody.faults() == []
        assert await somebody.page.evaluate("window.loadedOnce"), "without a reload"
        await green.get_by_role("link", name="Look at it").click()
        await expect(somebody.page.get_by_role("heading", level=1)).to_have_text("attic")


async def test_the_page_says_when_a_token_has_expired_unused(stand: Stand, bob: Person) -> None:
    await bob.goto("/workers/enrol")
    await bob.page.get_by_label("Good for").select_option(label="an hour")
    await bob.page.get_by_role("button", name="Make the commands").click()
    said = bob.page.locator("#live-enrolment")
    await expect(said).to_contain_text("Waiting for the machine")
    stand.clock.ahead_s = 3_601
    await expect(said).to_contain_text("The token has expired unused.")


async def test_a_token_for_no_machine_is_refused_in_words(bob: Person) -> None:
    bob.expected.add("Failed to load resource: the server responded with a status of 400 (Bad Request)")
    await bob.goto("/workers/enrol")
    uses = bob.page.get_by_label("For how many machines")
    await uses.evaluate("field => { field.removeAttribute('min'); field.value = '0'; }")
    await bob.page.get_by_role("button", name="Make the commands").click()
    await expect(bob.page.locator("#notice .bad")).to_contain_text("uses")


# --- all workers


async def test_the_list_follows_what_workers_say_without_a_reload(stand: Stand, bob: Person) -> None:
    fleet = stand.context.pool.engine.fleet
    rig = fleet.workers[stand.worker]
    await bob.goto("/workers")
    mine, row = bob.page.locator(f"#mine-{rig.id}"), bob.page.locator("#live-workers tbody tr")
    await expect(mine.locator(".tag")).to_have_text("sharing")
    await expect(row).to_contain_text("emulator-small ready")
    fleet.says(rig, draining=False, state="paused", why="it runs on battery")
    await expect(mine).to_contain_text("it runs on battery")
    await expect(row.locator(".tag")).to_have_text("paused")
    fleet.says(rig, draining=False, state="sharing", why="")
    await expect(mine.locator(".tag")).to_have_text("sharing")


async def test_what_a_worker_earned_is_shown_and_grows(stand: Stand, bob: Person) -> None:
    await bob.goto("/workers")
    earned = bob.page.locator(f"#mine-{stand.worker} data").first
    await expect(earned).to_have_attribute("value", "0")
    (await stand.chat()).raise_for_status()
    await expect(earned).not_to_have_attribute("value", "0")
    kept = (await stand.context.store.earned())[stand.worker]
    assert kept == stand.context.pool.earned.of(stand.worker) > 0
    await expect(earned).to_have_attribute("value", str(kept))


async def test_workers_are_found_by_a_word(bob: Person) -> None:
    """By name, member or model; what nobody is called says so."""
    for word, found in (("RIG", 1), ("bob", 1), ("small", 1), ("nobody here", 0)):
        await bob.goto("/workers")
        await bob.page.get_by_label("Worker, member or model").fill(word)
        await bob.page.get_by_role("button", name="Find").click()
        await expect(bob.page.locator("#live-workers tbody th")).to_have_count(found)


# --- one worker


async def test_all_about_a_worker_moves_without_a_reload(stand: Stand, bob: Person) -> None:
    """Models that load, cards and their load, what was tried; its owner sees for whom."""
    await bob.goto(f"/workers/{stand.worker}")
    fleet = stand.context.pool.engine.fleet
    rig, page = fleet.workers[stand.worker], bob.page
    await expect(page.locator("#live-worker-attempts")).to_contain_text("Nothing yet")
    (await stand.chat()).raise_for_status()
    row = page.locator("#live-worker-attempts tbody tr")
    await expect(row).to_contain_text("alice")
    paid = stand.context.pool.earned.of(stand.worker)
    await expect(row.locator("data")).to_have_attribute("value", str(paid))
    loading = replace(next(iter(rig.models.values())), state="downloading", bytes_done=42, bytes_total=100)
    fleet.serve(rig, {loading.name: loading})
    await expect(page.locator("#live-worker")).to_contain_text("fetching 42 %")
    card = session_pb2.Gpu(name="RTX 3090", memory_bytes=24 * 2**30, backend="cuda")
    stand.context.pool.hardware[rig.id].gpus.append(card)
    load = session_pb2.GpuLoad(memory_used_bytes=2**30, utilisation_percent=97, temperature_c=71, power_w=312)
    stand.context.pool.loads[rig.id] = session_pb2.MachineLoad(cpu_percent=12, gpus=[load])
    for words in ("97 %", "71 °C", "312 W", "RTX 3090 (24 GB)"):
        await expect(page.locator("#live-worker")).to_contain_text(words)
    assert await bob.faults() == []
    await bob.goto(f"/workers/{stand.worker}")
    twin = page.locator(".chart details tbody tr").first
    await expect(twin).to_contain_text(str(paid / 1e6))


async def test_others_see_the_machine_and_not_for_whom_it_works(stand: Stand, browser: Browser) -> None:
    (await stand.chat()).raise_for_status()
    async with person(browser, stand.url) as alice:
        await alice.sign_in(stand.keys["alice"])
        await alice.goto(f"/workers/{stand.worker}")
        await expect(alice.page.locator("#live-worker")).to_contain_text("bob")
        await expect(alice.page.get_by_role("heading", name="Attempts lately")).to_have_count(0)
        assert "attempts" not in (await stand.ask("GET", f"/pool/v1/workers/{stand.worker}")).json()


# --- what is done to one


async def test_its_owner_pauses_resumes_renames_and_drains_a_real_worker_from_its_page(
    real_pool: RealPool, browser: Browser
) -> None:
    """The page follows by itself; what cannot be undone from afar is asked about first."""
    process = await asyncio.to_thread(real_pool.add_emulator, "rig", "bob")
    worker = (await asyncio.to_thread(real_pool.view, "rig"))["id"]
    async with person(browser, real_pool.url) as bob:
        await bob.sign_in(real_pool.member("bob").key)
        await bob.goto(f"/workers/{worker}")
        page, state = bob.page, bob.page.locator("#live-worker .tag")
        await page.locator("#pause").get_by_label("How long").select_option(label="for an hour")
        await page.locator("#pause").get_by_role("button", name="Pause").click()
        await expect(page.locator("#notice .good")).to_contain_text("rig is told to pause")
        await expect(state).to_have_text("paused", timeout=JOINED_MS)
        await expect(page.locator("#live-worker")).to_contain_text("its owner paused it from afar")
        await expect(page.locator("#live-worker")).to_contain_text("shares again")
        assert await bob.faults() == []
        await page.locator("#resume").get_by_role("button", name="Resume").click()
        await expect(state).to_have_text("sharing", timeout=JOINED_MS)
        await page.locator("#rename").get_by_label("Name").fill("attic")
        await page.locator("#rename").get_by_role("button", name="Rename").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("attic")
        asked: list[str] = []

        async def answer(dialog: Dialog) -> None:
            asked.append(dialog.message)
            await (dialog.accept() if len(asked) > 1 else dialog.dismiss())

        page.on("dialog", answer)
        drain = page.locator("#drain").get_by_role("button", name="Drain")
        await drain.click()
        assert process.popen.poll() is None, "whoever says no to the question changes nothing"
        await drain.click()
        await expect(page.locator("#notice .good")).to_contain_text("brings it back")
        assert await asyncio.to_thread(process.popen.wait, JOINED_MS / 1_000) == 0
        await expect(state).to_have_text("away", timeout=JOINED_MS)
        assert all("Drain attic? It finishes what runs" in words for words in asked)


async def test_an_admin_may_not_resume_what_its_owner_paused_and_may_revoke(
    stand: Stand, bob: Person, browser: Browser
) -> None:
    await bob.goto("/workers")
    mine = bob.page.locator(f"#mine-{stand.worker}")
    await mine.get_by_role("button", name="Pause").click()
    await expect(mine.get_by_role("button", name="Resume")).to_be_visible()
    async with person(browser, stand.url) as admin:
        await admin.sign_in(stand.keys["admin"])
        await admin.goto(f"/workers/{stand.worker}")
        page = admin.page
        await expect(page.locator("#resume")).to_contain_text("only its owner may take that back")
        await expect(page.locator("#resume button")).to_have_count(0)
        await expect(page.locator("#pause")).to_have_count(0)
        await expect(page.locator("#rename")).to_have_count(0)
        page.on("dialog", lambda dialog: dialog.accept())
        await page.locator("#revoke").get_by_role("button", name="Revoke").click()
        await expect(page.locator("#live-worker .tag")).to_have_text("revoked")
        await expect(page.locator("#actions")).to_have_count(0)
    await expect(mine).to_have_count(0)


async def test_an_owner_is_told_on_the_first_page_that_an_admin_paused_the_worker_and_may_take_that_back(
    stand: Stand, bob: Person
) -> None:
    await bob.goto("/")
    callout = bob.page.locator("#live-attention .callout.warn")
    path = f"/pool/v1/workers/{stand.worker}/pause"
    (await stand.ask("POST", path, by="admin", json={"why": "too hot"})).raise_for_status()
    await expect(callout).to_contain_text("Your worker rig is paused: the admin admin paused it: too hot.")
    await callout.get_by_role("link", name="Look at it").click()
    await bob.page.locator("#resume").get_by_role("button", name="Resume").click()
    await expect(bob.page.locator("#resume")).to_have_count(0)
    assert stand.context.pool.pauses.of(stand.worker) is None


async def test_among_strangers_what_is_held_is_explained_and_an_admin_vouches(
    tmp_path: Path, browser: Browser
) -> None:
    async with open_stand(tmp_path, trust="strangers") as stand:
        (await stand.chat()).raise_for_status()
        async with person(browser, stand.url) as admin:
            await admin.sign_in(stand.keys["admin"])
            await admin.goto(f"/workers/{stand.worker}")
            page, worker = admin.page, admin.page.locator("#live-worker")
            await expect(worker).to_contain_text("9 more of 10 jobs without a dispute")
            page.on("dialog", lambda dialog: dialog.accept())
            await page.locator("#vouch").get_by_role("button", name="Vouch").click()
            await expect(page.locator("#notice .good")).to_contain_text("credits that were held are free")
            await expect(worker).to_contain_text("proven")
            await expect(page.locator("#vouch")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_of_workers_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: str) -> None:
    """As all pages: on a desk and on a phone, nothing that axe-core calls serious, nothing cut off."""
    (await stand.chat()).raise_for_status()
    for viewport in (DESK, PHONE):
        async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as somebody:
            await somebody.sign_in(stand.keys["bob"])
            for path in ("/workers", "/workers/enrol", f"/workers/{stand.worker}"):
                await somebody.goto(path)
                assert await somebody.faults() == [], path
                assert not await somebody.overflows(), path
