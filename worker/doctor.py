"""What of a machine is fit for sharing, in sentences: what works, what does not, and what to do.

Pure: from what worker.probe and worker.checks have seen, here or on a recorded machine.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from potluck.catalogue import ModelEntry
from worker import advice
from worker.cores import share
from worker.machine import Machine
from worker.models import BRIDGE, EMULATOR, NEEDS, TRAINED_WITH, TRAINER_NEEDS

PYTHON_MIN: Final = (3, 11)
DISK_BYTES_MIN: Final = 1 << 30  # less holds no model and soon no receipts
SKEW_S_MAX: Final = 120.0  # certificates are backdated by 5 minutes
HOT_C: Final = 85
DAY_S: Final = 86_400.0
MODELS_SHOWN_MAX: Final = 5

State = Literal["ok", "advice", "problem"]


class Finding(BaseModel):
    """`problem`: sharing does not work until it is mended. `advice`: it works, not as well as it could."""

    model_config = ConfigDict(frozen=True)

    topic: str
    state: State
    sentence: str
    remedy: str = ""


class Reach(BaseModel):
    """One way to the coordinator. `skew_s`: how far this machine's clock is ahead, if it was told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    works: bool
    why: str = ""
    skew_s: float | None = None


class Circumstances(BaseModel):
    """What is around the machine. Times are seconds; `certificate_s` is how long it is still good."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str = ""
    joined: str = ""  # the pool's name
    not_joined: str = ""  # why, in words
    certificate_s: float | None = None
    https: Reach | None = None
    grpc: Reach | None = None
    running: int = 0  # process of a daemon in this home
    neighbours: tuple[int, ...] = ()  # threads that other workers here asked for, 0: a share
    threads: int = Field(0, ge=0)  # that the owner sets
    engine: str = ""  # that the owner wants
    bridges: tuple[str, ...] = ()  # models that a server of the owner's answers for
    settings: str = ""  # what is wrong with worker.toml
    open_files: tuple[str, ...] = ()  # secrets that others can read
    damaged: tuple[str, ...] = ()  # model files whose bytes changed
    unwritable: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()  # what listens and should not, in words
    ray: str = ""  # version, if installed


Findings = Iterator[Finding]
Entries = Annotated[Iterable[ModelEntry], "of the pool's catalogue"]


def examine(machine: Machine, around: Circumstances, entries: Entries) -> list[Finding]:
    """In the order in which to mend them."""
    return [
        *_python(machine),
        *_engines(machine, around),
        *_cards(machine),
        *_memory(machine, around, list(entries)),
        *_disk(machine, around),
        *_threads(machine, around),
        *_battery(machine),
        *_files(around),
        *_membership(around),
        *_network(around),
        *_ports(around),
    ]


def can_share(findings: Iterable[Finding]) -> bool:
    return all(finding.state != "problem" for finding in findings)


def _python(machine: Machine) -> Findings:
    numbers = tuple(int(part) for part in machine.python.split(".")[:2] if part.isdecimal())
    where = f"Python {machine.python} on {machine.system} {machine.release} ({machine.architecture})"
    if numbers < PYTHON_MIN:
        yield Finding(
            topic="python",
            state="problem",
            sentence=f"{where} is too old.",
            remedy="Install Python 3.11 or newer, then potluck anew.",
        )
    else:
        yield Finding(topic="python", state="ok", sentence=f"{where}.")


def _engines(machine: Machine, around: Circumstances) -> Findings:
    here = [engine for engine in advice.engines(machine) if engine not in (EMULATOR, BRIDGE)]
    if around.bridges:
        said = ", ".join(around.bridges)
        yield Finding(topic="engines", state="ok", sentence=f"Bridges to a server of yours: {said}.")
    for module, library in machine.libraries.items():
        if library.error:
            yield Finding(
                topic="engines",
                state="advice" if here else "problem",
                sentence=f"The library {module} {library.version} cannot be used: {library.error}.",
                remedy=f"Install it again: pip install --force-reinstall '{module}=={library.version}'.",
            )
    if around.engine and around.engine not in advice.engines(machine):
        known = around.engine in NEEDS
        yield Finding(
            topic="engines",
            state="problem",
            sentence=f"The engine {around.engine} that worker.toml asks for is not here.",
            remedy="Install it with pip install 'potluck[worker]'." if known else "Correct its name.",
        )
    elif not here and not around.bridges:
        yield Finding(
            topic="engines",
            state="problem",
            sentence="No engine is installed that could run a model.",
            remedy="Install them with pip install 'potluck[worker]'.",
        )
    elif here:
        said = ", ".join(f"{e} ({_version(machine, e)})" for e in here)
        tuning = f" {_tuned(here[0])} {_training(machine)}" if TRAINED_WITH in here else ""
        yield Finding(
            topic="engines", state="ok", sentence=f"Engines: {said}. {here[0]} comes first.{tuning}"
        )


def _tuned(first: str) -> str:
    beside = "" if first == TRAINED_WITH else f" beside {first}"
    return f"{TRAINED_WITH} answers with tuned models{beside}."


def _training(machine: Machine) -> str:
    if advice.trains(machine):
        return "Models are trained as well."
    lacking = [name for name in TRAINER_NEEDS if name not in machine.libraries]
    return f"Nothing is trained: {' and '.join(lacking) or 'a library'} is missing or broken."


def _version(machine: Machine, engine: str) -> str:
    return ", ".join(f"{name} {machine.libraries[name].version}" for name in NEEDS[engine])


def _cards(machine: Machine) -> Findings:
    for card in machine.cards:
        size = f"{card.name} ({_gigabytes(card.memory_bytes)})" if card.memory_bytes else card.name
        why = advice.unusable(machine, card)
        if why:
            yield Finding(
                topic="gpu",
                state="advice",
                sentence=f"{size} cannot be used.",
                remedy=f"{why[0].upper()}{why[1:]}.",
            )
            continue
        used = f", {_gigabytes(card.memory_used_bytes)} of it taken" if card.memory_used_bytes else ""
        driver = f", driver {card.driver}" if card.driver else ""
        yield Finding(topic="gpu", state="ok", sentence=f"{size}{used}{driver}: torch can use it.")
        if card.temperature_c >= HOT_C:
            yield Finding(
                topic="gpu",
                state="advice",
                sentence=f"{card.name} is at {card.temperature_c} °C before anything runs.",
                remedy="Clean its fans, or lower its power limit with nvidia-smi --power-limit.",
            )
    best = advice.card(machine)
    idle = [card.name for card in machine.cards if card is not best and not advice.unusable(machine, card)]
    if best is not None and idle:
        yield Finding(
            topic="gpu",
            state="advice",
            sentence=f"A model lies on one card; beside {best.name} there are also {', '.join(idle)}.",
            remedy="Run a worker for each, with CUDA_VISIBLE_DEVICES and a POTLUCK_HOME of its own.",
        )
    if not machine.cards:
        yield Finding(topic="gpu", state="ok", sentence=_no_card(machine))


def _no_card(machine: Machine) -> str:
    seen = f" (NVIDIA's library: {machine.nvml})" if machine.nvml and machine.system != "Darwin" else ""
    return f"No GPU is seen{seen}: models run on the processor, {machine.cpu}."


def _memory(machine: Machine, around: Circumstances, entries: list[ModelEntry]) -> Findings:
    room = advice.room(machine, (*advice.engines(machine), "")[0])
    where = "of this machine's memory" if room.where == "memory" else f"on {room.where}"
    limit = machine.memory_bytes < machine.memory_all_bytes
    capped = f" A limit leaves {_gigabytes(machine.memory_bytes)} to this process." if limit else ""
    fits = advice.fits(machine, entries)
    good = [fit for fit in fits if fit.fits]
    names = ", ".join(fit.model for fit in good[:MODELS_SHOWN_MAX])
    more = f" and {len(good) - MODELS_SHOWN_MAX} more" if len(good) > MODELS_SHOWN_MAX else ""
    if good or not fits:
        said = f" Of the catalogue {names}{more} fit{'s' * (len(good) == 1)}." if good else ""
        yield Finding(
            topic="memory",
            state="ok",
            sentence=f"A model may take {_gigabytes(room.bytes)} {where}.{capped}{said}",
        )
        return
    runnable = [fit for fit in fits if fit.engine]
    if runnable:
        least = min(runnable, key=lambda fit: fit.needs_bytes)
        yield Finding(
            topic="memory",
            state="advice" if around.bridges else "problem",
            sentence=f"No model of the catalogue fits: {_gigabytes(room.bytes)} are free {where}, and the"
            f" smallest, {least.model}, needs {_gigabytes(least.needs_bytes)}.{capped}",
            remedy="End programs that take memory, or ask the pool for a smaller model.",
        )


def _disk(machine: Machine, around: Circumstances) -> Findings:
    free = f"{_gigabytes(machine.disk_free_bytes)} are free on the disk of {around.home or 'POTLUCK_HOME'}."
    if machine.disk_free_bytes < DISK_BYTES_MIN:
        yield Finding(
            topic="disk",
            state="problem",
            sentence=free,
            remedy="Make room, or put POTLUCK_HOME or POTLUCK_MODEL_CACHE on another disk.",
        )
    else:
        yield Finding(topic="disk", state="ok", sentence=free)


def _threads(machine: Machine, around: Circumstances) -> Findings:
    threads = around.threads or share(machine.cores, others=list(around.neighbours))
    others = f", shared with {len(around.neighbours)} other workers here" if around.neighbours else ""
    limit = f" of {machine.cores_all}" if machine.cores < machine.cores_all else ""
    said = f"{threads} threads on {machine.cores}{limit} cores{others}."
    if around.threads > machine.cores or threads + sum(around.neighbours) > machine.cores:
        yield Finding(
            topic="threads",
            state="advice",
            sentence=f"{said} Engines' threads spin: more of them than cores makes all of them slow.",
            remedy=f"Lower `threads` in worker.toml, to {machine.cores} for all workers together.",
        )
    else:
        yield Finding(topic="threads", state="ok", sentence=said)
    x86 = machine.architecture.lower() in {"x86_64", "amd64"}
    if x86 and machine.cpu_features and "avx2" not in machine.cpu_features:
        yield Finding(
            topic="threads",
            state="advice",
            sentence=f"{machine.cpu} has no AVX2: models on it are several times slower.",
            remedy="Share it for embeddings and small models, or use a GPU.",
        )


def _battery(machine: Machine) -> Findings:
    battery = machine.battery
    if battery is not None and not battery.plugged:
        yield Finding(
            topic="battery",
            state="advice",
            sentence=f"It runs on its battery, at {battery.percent} %.",
            remedy="Plug it in: a worker shares nothing on battery unless worker.toml allows it.",
        )
    elif battery is not None:
        yield Finding(
            topic="battery", state="ok", sentence=f"It has a battery ({battery.percent} %), plugged in."
        )


def _files(around: Circumstances) -> Findings:
    if around.settings:
        yield Finding(
            topic="settings", state="problem", sentence=_sentence(around.settings), remedy="Correct the file."
        )
    for path in around.unwritable:
        yield Finding(
            topic="files",
            state="problem",
            sentence=f"{path} cannot be written.",
            remedy="Give it to the user whom the worker runs as.",
        )
    for path in around.open_files:
        yield Finding(
            topic="files",
            state="problem",
            sentence=f"{path} is a secret, and others on this machine can read it.",
            remedy=f"chmod 600 {path}, and join the pool anew if somebody may have copied it.",
        )
    for path in around.damaged:
        yield Finding(
            topic="files",
            state="advice",
            sentence=f"{path} is damaged.",
            remedy="Nothing: it is fetched again when it is needed. If it happens often, check the disk.",
        )
    if not around.unwritable and not around.open_files:
        yield Finding(topic="files", state="ok", sentence=f"Files in {around.home} are as they should be.")


def _membership(around: Circumstances) -> Findings:
    if not around.joined:
        yield Finding(
            topic="pool",
            state="problem",
            sentence=_sentence(around.not_joined or "this worker has not joined a pool"),
            remedy="Ask a member for a token, then: potluck worker join URL --token TOKEN.",
        )
        return
    running = f", and runs as process {around.running}" if around.running else ""
    yield Finding(topic="pool", state="ok", sentence=f"It has joined {around.joined}{running}.")
    if around.certificate_s is None:
        return
    if around.certificate_s <= 0:
        yield Finding(
            topic="certificate",
            state="advice",
            sentence=f"The certificate ended {-around.certificate_s / DAY_S:.1f} days ago.",
            remedy="Nothing: the next start renews it by itself, if the pool can be reached over HTTPS.",
        )
    else:
        days = around.certificate_s / DAY_S
        yield Finding(
            topic="certificate", state="ok", sentence=f"The certificate is good for {days:.1f} more days."
        )


def _network(around: Circumstances) -> Findings:
    for name, reach in (("HTTPS", around.https), ("gRPC", around.grpc)):
        if reach is None:
            continue
        if not reach.works:
            yield Finding(
                topic="network",
                state="problem",
                sentence=f"The pool cannot be reached over {name} at {reach.address}: {reach.why}.",
                remedy="Check the network, a firewall on the way out, and that the coordinator runs.",
            )
            continue
        yield Finding(
            topic="network", state="ok", sentence=f"The pool answers over {name} at {reach.address}."
        )
        if reach.skew_s is not None and abs(reach.skew_s) > SKEW_S_MAX:
            way = "ahead of" if reach.skew_s > 0 else "behind"
            yield Finding(
                topic="clock",
                state="problem",
                sentence=f"This machine's clock is {abs(reach.skew_s):.0f} s {way} the pool's: handshakes and"
                " renewals fail.",
                remedy="Set it by the network (timedatectl set-ntp true, or the system's settings).",
            )


def _ports(around: Circumstances) -> Findings:
    for port in around.ports:
        yield Finding(
            topic="ray",
            state="advice",
            sentence=_sentence(port.rpartition(": ")[0] or port),
            remedy=_sentence(port.rpartition(": ")[2]),
        )
    if around.ray and not around.ports:
        yield Finding(topic="ray", state="ok", sentence=f"Ray {around.ray} has no port open to others.")


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "`")) else ".")


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
