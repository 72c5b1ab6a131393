"""`potluck demo`: a whole pool on this machine, of real processes of this same installation.

A coordinator, a worker of alice and one of bob, and carol, who asks. Everything lies in a temporary folder;
model files alone stay in the cache, so that the second time is quick.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from potluck import processes
from potluck.answers import Answer, Embeddings
from potluck.cli.conversation import Conversation
from potluck.cli.printing import Printer
from potluck.cli.session import Session
from potluck.cli.workers import model_line
from potluck.client import ClientFile, Connection, Setting
from potluck.errors import PotluckError
from potluck.home import home, make_folder, model_cache, write_secret
from potluck.pool import Pool
from potluck.processes import Child, ProcessFailed
from potluck.results import NewMember, Worker

OWNERS: Final = ("alice", "bob")
ASKER: Final = "carol"
PROFILE: Final = "demo"
QUESTION: Final = "In two sentences: why do neighbours share a meal?"
EMBEDDED: Final = "Everybody brings a dish, everybody eats."
ANSWER_TOKENS_MAX: Final = 96
PORT_TRIES_MAX: Final = 3
START_S_MAX: Final = 60.0
JOIN_S_MAX: Final = 60.0
LOAD_S_MAX: Final = 900.0  # without any progress
DRAIN_S: Final = 5
POLL_S: Final = 0.2
UNCONDITIONALLY: Final = {  # somebody watches: no rule about who else uses this machine is meant
    "POTLUCK_SHARING_ON_BATTERY": "true",
    "POTLUCK_IDLE_GPU_ALONE": "false",
    "POTLUCK_IDLE_FULLSCREEN": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    model: str
    engine: str
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    name: str
    balance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What there is to show at the end; amounts in microcredits."""

    url: str
    model: str
    answer: Answer
    embedding: Embeddings
    balances: tuple[Account, ...]
    ledger_sum: int
    seconds: float


@dataclass(slots=True)
class Demo:
    """One run. `printer` says in text mode what is going on; `stack` puts everything away."""

    plan: Plan
    printer: Printer
    root: Path
    stack: ExitStack
    started_at: float = field(default_factory=time.monotonic)
    children: list[Child] = field(default_factory=list)
    url: str = ""
    admin: Pool | None = None
    keys: dict[str, str] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Raises PotluckError, with the log of the process whose fault it is."""
        self.say("Starting the coordinator of a pool of its own.")
        self._coordinator()
        assert self.admin is not None
        for name in (*OWNERS, ASKER):
            made: NewMember = self.admin.add_member(name)
            self.keys[name] = made.key
        self.say(f"Members: {', '.join(self.keys)}. Workers of {' and '.join(OWNERS)} join.")
        self._workers()
        self._wait_for_models()
        self.say(f"{ASKER} asks: {QUESTION}")
        answer = self._chat()
        embedding = self._embed(answer)
        return self._settled(answer, embedding)

    def say(self, text: str) -> None:
        if self.printer.text:
            self.printer.line(f"[{time.monotonic() - self.started_at:5.1f} s] {text}")

    # ---- starting

    def _coordinator(self) -> None:
        folder = make_folder(self.root / "coordinator")
        for tries_left in range(PORT_TRIES_MAX - 1, -1, -1):
            http, grpc = processes.free_ports(2)
            arguments = ["coordinator", "start", "--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}"]
            if self.plan.engine == "emulator":
                arguments.append("--emulator")
            child = self._start("the coordinator", arguments, folder)
            self.url = f"http://127.0.0.1:{http}"
            try:
                self._until_ready(child, folder / "coordinator" / "admin.key")
            except ProcessFailed as error:
                if not tries_left or " in use" not in error.tail:
                    raise
                self.children.remove(child)  # somebody took the port in between
            else:
                return

    def _until_ready(self, child: Child, key_file: Path) -> None:
        deadline = time.monotonic() + START_S_MAX
        while True:
            child.check()
            if key_file.exists():
                pool = Pool(self.url, f"file:{key_file}", model=self.plan.model)
                try:
                    pool.status()
                except PotluckError:
                    pool.close()
                else:
                    self.admin = pool
                    self.stack.callback(pool.close)
                    return
            if time.monotonic() > deadline:
                raise ProcessFailed(f"The coordinator was not ready within {START_S_MAX:g} s.", child.tail())
            time.sleep(POLL_S)

    def _workers(self) -> None:
        """Both join at once, then both start; each gets its share of the cores."""
        joins = []
        for name in OWNERS:
            folder = make_folder(self.root / name)
            with Pool(self.url, self.keys[name]) as pool:
                write_secret(folder / "token", pool.join_token().token.encode())
            arguments = [
                "worker",
                "join",
                self.url,
                "--token",
                f"file:{folder / 'token'}",
                "--name",
                f"{name}-pc",
            ]
            joins.append((name, folder, self._start(f"the joining of {name}'s worker", arguments, folder)))
        threads = max(1, cores() // len(OWNERS))
        for name, folder, child in joins:
            child.finish(JOIN_S_MAX)
            self.children.remove(child)
            (folder / "token").unlink()
            wanted = ["--engine", self.plan.engine, "--models", self.plan.model, "--threads", str(threads)]
            arguments = ["worker", "start", *wanted, "--drain-timeout", str(DRAIN_S)]
            self._start(f"{name}'s worker", arguments, folder)

    def _start(self, name: str, arguments: list[str], folder: Path) -> Child:
        environment = processes.child_environment(
            POTLUCK_HOME=str(folder), POTLUCK_MODEL_CACHE=str(make_folder(model_cache())), **UNCONDITIONALLY
        )
        child = Child.start(name, arguments, environment, folder / "log.txt")
        self.children.append(child)
        return child

    def _wait_for_models(self) -> None:
        """Until both workers have the model loaded. Raises ProcessFailed when one fails or nothing moves."""
        assert self.admin is not None
        shown, moved_at = "", time.monotonic()
        while True:
            for child in self.children:
                child.check()
            workers = self.admin.workers()
            lines = [f"{worker.name}: {progress_of(worker)}" for worker in workers]
            line = "; ".join(sorted(lines)) or "no worker has connected yet"
            if line != shown:
                shown, moved_at = line, time.monotonic()
                self.say(line)
            if sum(self._state(worker) == "ready" for worker in workers) == len(OWNERS):
                return
            failed = [worker.name for worker in workers if self._state(worker) == "failed"]
            if failed:
                raise self._blamed(f"{failed[0]} cannot serve {self.plan.model}: {shown}.", failed[0])
            if time.monotonic() - moved_at > LOAD_S_MAX:
                raise self._blamed(f"Nothing has moved for {LOAD_S_MAX:g} s: {shown}.", f"{OWNERS[0]}-pc")
            time.sleep(POLL_S)

    def _state(self, worker: Worker) -> str:
        return next((model.state for model in worker.models if model.name == self.plan.model), "")

    def _blamed(self, message: str, worker: str) -> ProcessFailed:
        owner = worker.removesuffix("-pc")
        tail = next((child.tail() for child in self.children if child.name == f"{owner}'s worker"), "")
        return ProcessFailed(message, tail)

    # ---- asking

    def _chat(self) -> Answer:
        connection = carol(self.url, self.keys[ASKER], self.plan.model)
        # In JSON mode nothing but the outcome is printed, so the pieces have nowhere to go.
        if not self.printer.text:
            with Pool(self.url, self.keys[ASKER]) as pool:
                return self._checked(pool.chat(QUESTION, model=self.plan.model, max_tokens=ANSWER_TOKENS_MAX))
        with Session(connection, self.printer) as session:
            parameters = {"max_tokens": ANSWER_TOKENS_MAX}
            conversation = Conversation(session, self.plan.model, None, parameters, LOAD_S_MAX)
            return self._checked(conversation.ask(QUESTION))

    def _checked(self, answer: Answer) -> Answer:
        if not answer.text.strip() or answer.usage is None or not answer.usage.charge or not answer.job_id:
            raise PotluckError("The answer is empty, or nothing was charged for it.", code="demo_failed")
        return answer

    def _embed(self, answer: Answer) -> Embeddings:
        """A sentence as a vector, by the worker that did not answer the question: so both have earned."""
        assert self.admin is not None
        assert answer.job_id is not None  # as `_checked` has seen
        with Pool(self.url, self.keys[ASKER]) as pool:
            served = {attempt.worker for attempt in pool.job(answer.job_id).attempts}
            others = [worker for worker in self.admin.workers() if worker.id not in served]
            wanted: dict[str, Any] = {"potluck": {"workers": [others[0].id]}} if others else {}
            found = pool.embed(EMBEDDED, model=self.plan.model, **wanted)
        if not found.vectors or not any(found.vectors[0]):
            raise PotluckError("The embedding is empty.", code="demo_failed")
        by = f" by {others[0].name}" if others else ""
        self.say(f"{ASKER} embeds {EMBEDDED!r}{by}: {len(found.vectors[0])} numbers.")
        return found

    def _settled(self, answer: Answer, embedding: Embeddings) -> Outcome:
        """The balances. Raises PotluckError unless they add up to nothing and carol paid what she saw."""
        assert self.admin is not None
        balances = []
        for name in (*OWNERS, ASKER):
            with Pool(self.url, self.keys[name]) as pool:
                balances.append(Account(name=name, balance=pool.balance().balance))
        total = self.admin.status().ledger_sum
        known = sum(account.balance for account in balances) + self.admin.balance().balance
        balances.append(Account(name="the commons", balance=total - known))
        charged = [used.charge for used in (answer.usage, embedding.usage) if used and used.charge]
        earned = [account.balance for account in balances if account.name != ASKER]
        if total != 0 or balances[2].balance != -sum(charged) or min(earned) < 0 or len(charged) != 2:
            raise PotluckError(f"The books are wrong: {balances}, charged {charged}.", code="demo_failed")
        return Outcome(
            url=self.url,
            model=self.plan.model,
            answer=answer,
            embedding=embedding,
            balances=tuple(balances),
            ledger_sum=total,
            seconds=round(time.monotonic() - self.started_at, 1),
        )

    # ---- ending

    def end(self) -> None:
        """End every process by its handle: workers first, so that they need not look for their pool."""
        for group in (self.children[1:], self.children[:1]):
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.stopped()


def progress_of(worker: Worker) -> str:
    """How far a worker is on its way to serving. One that has not been there yet is away to the pool; here we
    know that it was only just started."""
    starting = "connecting" if worker.state == "away" else worker.state
    return ", ".join(model_line(model) for model in worker.models) or starting


def carol(url: str, key: str, model: str) -> Connection:
    """How the one who asks is connected."""
    return Connection(
        profile=Setting(ASKER, "demo"),
        url=Setting(url, "demo"),
        key=Setting(key, "demo"),
        model=Setting(model, "demo"),
        output=Setting("text", "demo"),
        file=home() / "client.toml",
    )


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def running(plan: Plan, printer: Printer) -> Iterator[Demo]:
    """A demo whose processes and folder are gone afterwards, unless it is to be kept and went well."""
    processes.raise_on_signals()
    root = Path(tempfile.mkdtemp(prefix="potluck-demo-"))
    with ExitStack() as stack:
        demo = Demo(plan, printer, root, stack)
        kept = False
        try:
            yield demo
            if plan.keep:
                keep(demo)
                kept = True
        finally:
            if not kept:
                processes.ignore_signals()
                demo.end()
                shutil.rmtree(root, ignore_errors=True)


def kept_file() -> Path:
    return home() / "demo.json"


def kept() -> dict[str, Any] | None:
    """What a `--keep` left, or None. Raises PotluckError if its file cannot be read."""
    try:
        found: dict[str, Any] = json.loads(kept_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        message = f"{kept_file()} cannot be read. End the processes of the demo by hand and delete it."
        raise PotluckError(message) from None
    return found


def keep(demo: Demo) -> None:
    """Leave the pool running, carol logged in, and a file that says how to end it."""
    file = ClientFile.load()
    file.save_profile(PROFILE, demo.url, demo.keys[ASKER], default=file.default_profile is None)
    last_first = [*demo.children[1:], *demo.children[:1]]
    processes.write_pids(kept_file(), last_first, root=str(demo.root), url=demo.url)


def stop(say: Callable[[str], None]) -> list[str]:
    """End what a `--keep` left; the names of what was still running."""
    found = kept()
    if found is None:
        say("No demo was left running here.")
        return []
    ended = processes.end_pids(found.get("processes", []))
    root = Path(str(found.get("root", "")))
    if root.name.startswith("potluck-demo-"):
        shutil.rmtree(root, ignore_errors=True)
    ClientFile.load().forget_profile(PROFILE, url=str(found.get("url", "")))
    kept_file().unlink(missing_ok=True)
    say(f"Ended: {', '.join(ended)}." if ended else "The demo had ended already; its traces are removed.")
    return ended
