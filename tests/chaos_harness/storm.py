"""One run: a pool is set up, asked without faults, asked under faults, healed, and looked at by every oracle."""

import hashlib
import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fixtures_margin import Judge
from fixtures_pool import COMMAND, Process, RealPool
from fixtures_tiny import write_tiny

from chaos_harness import oracles
from chaos_harness.clocks import Clock, forget_the_dead
from chaos_harness.faults import Faults
from chaos_harness.proxy import Proxy, between
from chaos_harness.traffic import PROMPTS, TINY, TOKENS, Asker, Notes
from potluck.catalogue import Catalogue

EMULATORS = {"rig1": "bob", "rig2": "dave"}
TORCH = {"box1": "bob", "box2": "dave"}
CLOCKS = ("coordinator", "rig1")  # of these, the clock is stepped
ASKERS = ("alice", "erin", "frank")
AT_WORK = 2  # of each of them at once
CREDIT_LINE = 1_000_000_000_000
PAUSE_S = (0.2, 2.0)  # between two faults
HEALED_S = 180.0
CALM_S = 0.5
LINES_SHOWN = 40  # of a process that ended


@dataclass
class Report:
    """What happened, and what should not have."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    retried: int = 0  # jobs that needed several attempts
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))

        lines = [
            f"{self.faults.total()} faults in {self.seconds:.0f} s: {listed(self.faults)}",
            f"asked: {listed(self.asked)}",
            f"{self.jobs.total()} jobs, {self.retried} with several attempts: {listed(self.jobs)}",
            *(f"WRONG: {what}" for what in self.wrong),
            f"{len(self.wrong)} things are wrong",
        ]
        return "\n".join(lines)


class Chaos:
    def __init__(self, folder: Path, seed: int, seconds: float, tell: Callable[[str], None] = print) -> None:
        self.folder, self.seconds, self.tell = folder, seconds, tell
        self.rng = random.Random(seed)
        self.pool = RealPool(folder, start_s=HEALED_S)
        self.pool.variables |= {
            "POTLUCK_REQUESTS_PER_MINUTE": "1000000",
            "POTLUCK_MACHINE_DIR": str(folder / "machine"),
            "POTLUCK_WAIT_FOR_WORKER_S": "30",
        }
        self.clocks = {name: Clock(folder / f"{name}.clock") for name in CLOCKS}
        self.pool.own_variables |= {name: clock.variables for name, clock in self.clocks.items()}
        self.proxies: dict[str, Proxy] = {}
        self.notes, self.report = Notes(), Report()
        self.right: dict[tuple[str, int], str] = {}
        self.pause = threading.Event()  # never set: whoever waits for it waits for a time

    def run(self) -> Report:
        (self.folder / TINY).mkdir()
        paths = write_tiny(self.folder / TINY)
        self._write_catalogue(paths)
        self.pool.start_coordinator()
        try:
            self._start_workers()
            self._ask_undisturbed()
            with self._askers():
                self._storm()
            self._heal()
            self._look(Judge(paths, self.folder / "judged"))
        finally:
            self.pool.close()
            for proxy in self.proxies.values():
                proxy.close()
            forget_the_dead()
        self._look_behind()
        return self.report

    # -- the pool

    def _write_catalogue(self, paths: list[Path]) -> None:
        """Beside the emulator's model, a tiny random one of the family of the one that comes with Potluck."""
        [known] = Catalogue.builtin().entries
        files = [
            {
                "name": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size_bytes": path.stat().st_size,
                "source": {"kind": "path", "path": str(path)},
            }
            for path in paths
        ]
        variant = {"format": "safetensors", "engines": ["torch"], "files": files, "memory_bytes": 1 << 28}
        entry = json.loads(known.model_dump_json()) | {"name": TINY, "aliases": [], "context_tokens": 512}
        home = self.folder / "coordinator"
        home.mkdir()
        catalogue = {"models": [entry | {"variants": [variant]}]}
        (home / "catalogue.json").write_text(json.dumps(catalogue), encoding="utf-8")

    def _start_workers(self) -> None:
        for name, owner in {**EMULATORS, **TORCH}.items():
            self.pool.join(name, owner)
            self.proxies[name] = between(self.pool, name)
            flags = ["--engine", "torch", "--models", TINY, "--threads", "1", "--slots", "2"]
            if name in EMULATORS:
                flags = ["--engine", "emulator", "--models", "emulator-small", "--slots", "4"]
                flags += ["--engine-option", "tpot_ms=20", "--engine-option", "features=lora"]
            self.pool.start_worker(name, *flags, ready=False)
        for name in self.proxies:
            self.pool.until(lambda name=name: self.pool.ready(name), f"{name} to be ready")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        for name in ASKERS:
            self.pool.member(name, CREDIT_LINE)

    def _ask_undisturbed(self) -> None:
        with self.pool.members[ASKERS[0]].openai() as client:
            for prompt, seed in PROMPTS:
                answer = client.completions.create(
                    model=TINY, prompt=prompt, max_tokens=TOKENS, temperature=0.7, seed=seed
                )
                self.right[prompt, seed] = answer.choices[0].text

    @contextmanager
    def _askers(self) -> Iterator[None]:
        askers = [
            Asker(self.pool.members[name], self.rng.randrange(1 << 31), self.notes)
            for name in ASKERS
            for _ in range(AT_WORK)
        ]
        for asker in askers:
            asker.start()
        yield
        for asker in askers:
            asker.over.set()
        for asker in askers:
            asker.join(HEALED_S)
            if asker.is_alive():
                self.report.wrong.append(f"{asker.name} waits for an answer that never comes")

    def _storm(self) -> None:
        faults = Faults(self.pool, self.proxies, self.clocks, self.rng)
        began = time.monotonic()
        while (past := time.monotonic() - began) < self.seconds:
            name, carry_out = faults.draw()
            self.tell(f"{past:6.1f} s  {name}")
            carry_out()
            self.report.faults[name] += 1
            self._raise_the_fallen()
            self.pause.wait(self.rng.uniform(*PAUSE_S))
        self.report.seconds = time.monotonic() - began

    def _heal(self) -> None:
        """Nothing fails any more: whatever was accepted must end."""
        self.tell("the faults are over; everything must end")
        for clock in self.clocks.values():
            clock.set(0.0)
        for proxy in self.proxies.values():
            proxy.heal()
        self._raise_the_fallen()
        for name in self.proxies:
            self.pool.until(lambda name=name: self.pool.ready(name), f"{name} to be ready again")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        ends = time.monotonic() + HEALED_S
        while (still := list(oracles.still_open(self.pool, self.notes))) and time.monotonic() < ends:
            self.pause.wait(CALM_S)
        self.report.wrong += still

    def _raise_the_fallen(self) -> None:
        """Whoever kills starts again: a process that is not there now has ended by itself."""
        pool, wrong = self.pool, self.report.wrong
        if pool.coordinator is not None and pool.coordinator.popen.poll() is not None:
            wrong.append(f"the coordinator ended by itself, {_last_words(pool.coordinator)}")
            pool.start_coordinator()
        for name, process in list(pool.workers.items()):
            if process.popen.poll() is not None:
                wrong.append(f"{name} ended by itself, {_last_words(process)}")
                pool.start_worker(name, ready=False)

    # -- what must be true

    def _look(self, judge: Judge) -> None:
        pool, wrong = self.pool, self.report.wrong
        self.tell("everything has ended; what came of it?")
        for job in oracles.all_jobs(pool):
            self.report.jobs[job["state"]] += 1
            self.report.retried += len(job.get("attempts") or ()) > 1
        if total := pool.ledger_sum():
            wrong.append(f"the ledger sums to {total}")
        if held := oracles.held(pool):
            wrong.append(f"{held} microcredits are still reserved")
        wrong += self.notes.wrong
        wrong += oracles.wrong_answers(self.notes)
        wrong += oracles.wrong_batches(self.notes)
        wrong += oracles.wrong_finetunes(self.notes)
        wrong += oracles.other_texts(self.notes, self.right, judge)
        if fault := oracles.unproven(pool.admin, self.folder):
            wrong.append(f"an auditor finds: {fault}")
        self.report.asked = self.notes.counts

    def _look_behind(self) -> None:
        """When all of it was stopped."""
        wrong = self.report.wrong
        wrong += [
            f"not held and closed once: {job}"
            for job in oracles.not_closed_once(self.folder / "coordinator" / "potluck.db")
        ]
        wrong += [f"left behind: {process}" for process in oracles.left_behind(self.folder)]
        arguments = [*COMMAND, "coordinator", "check"]
        check = Process.start("check", arguments[len(COMMAND) :], self.folder)
        try:
            code = check.popen.wait(HEALED_S)
        except subprocess.TimeoutExpired:
            check.kill()
            code = -1
        if code:
            wrong.append(f"potluck coordinator check ends with {code}: {''.join(check.lines)}")


def _last_words(process: Process) -> str:
    return f"with {process.popen.poll()}: {''.join(process.lines[-LINES_SHOWN:])}"
