"""The Ray cluster of one owner's site: a private one of this machine, or the owner's own that is joined.

Ray has no walls between those who can reach it, so a cluster never has more than one owner, and a worker
serves on none that lets somebody in without its token. A private cluster lives as long as its daemon.
"""

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from potluck.lock import FileLock, Locked
from worker.errors import WorkerConflict
from worker.machine import Card, Machine
from worker.ray.placement import Node
from worker.ray.ports import Door, ask, findings, open_ports

OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024  # events are small, and Ray would take a third of the memory
TOKEN_BYTES: Final = 32
TOKEN_BYTES_MAX: Final = 4096
PROBE_S_MAX: Final = 30.0
NAMESPACE: Final = "potluck"
PREFIX: Final = "potluck-ray-"
LOCK_FILE: Final = "lock"
SHORT: Final = "/tmp"  # noqa: S108 -- a folder closed to others, where the path of a socket is not too long
_ADDRESS: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:.]{2,45}\]:[0-9]{1,5}")
_VARIABLES: Final = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ADDRESS",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
)


class Cluster:
    """Connected from its making until close(). One in the life of a process: Ray keeps the first token."""

    def __init__(self, folder: Path | None, before: dict[str, str | None]) -> None:
        import ray  # only now: it reads the environment when it is loaded, and never again

        self._ray: Any = ray
        self._folder = folder
        self._lock: FileLock | None = None
        self._before = before
        self._cards: dict[str, tuple[Card, ...]] = {}
        self._log = structlog.get_logger("worker.ray")

    @classmethod
    def private(cls, *, cpus: int) -> "Cluster":
        """Start a cluster of this machine alone. Blocks for some seconds. Raises WorkerConflict."""
        _need("--ray")
        root = Path(tempfile.gettempdir() if sys.platform == "win32" else SHORT)
        tidy(root)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))  # 0700
        lock = FileLock.acquire(folder / LOCK_FILE, b"")
        token = folder / "token"
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
        cluster = cls(folder, _environment(token))
        cluster._lock = lock
        cluster._connect(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=str(folder / "ray"),  # which Ray opens to everybody
        )
        return cluster

    @classmethod
    def join(cls, address: str, token: Path) -> "Cluster":
        """Connect to the owner's own cluster, of which this machine is a node. Raises WorkerConflict."""
        if not _ADDRESS.fullmatch(address):
            raise WorkerConflict(
                f"--ray-address is HOST:PORT of the cluster's head, as `ray start --head` prints it, and not"
                f" `{address}`."
            )
        _need("--ray-address")
        check_token(token)
        check_head(address)
        cluster = cls(None, _environment(token))
        cluster._connect(address=address)
        return cluster

    def _connect(self, **options: Any) -> None:
        try:
            with _signals_kept():
                self._ray.init(**options, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
            self._check_ports()
        except WorkerConflict:
            self.close()
            raise
        except Exception as error:  # Ray raises bare ones too: when it was too slow, for example
            self.close()
            raise WorkerConflict(
                f"Ray does not start here: {_first_line(error)}.", code="ray_failed"
            ) from None

    def _check_ports(self) -> None:
        """Raises WorkerConflict if a port of a Ray process here lets in somebody without a token."""
        ports = open_ports(also=[os.getpid()])
        if wrong := [port for port in ports if port.door is Door.OPEN]:
            raise WorkerConflict(
                f"a Ray cluster on this machine lets in everybody who reaches port {wrong[0].number}"
                f" ({wrong[0].process}): nothing is served beside it. Stop it, or start it with"
                " RAY_AUTH_MODE=token.",
                code="ray_open",
            )
        for sentence in findings(ports):
            self._log.warning(sentence, action="ray_ports")

    def nodes(self) -> list[Node]:
        """The machines that are there now. Blocking for milliseconds; seconds when one with cards is new."""
        found = []
        for node in self._ray.nodes():
            if not node["Alive"]:
                continue
            has = node["Resources"]
            found.append(
                Node(
                    id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    port=node["NodeManagerPort"],
                    cpus=float(has.get("CPU", 0)),
                    memory_bytes=int(has.get("memory", 0)),
                    cards=self._cards_of(node["NodeID"], int(has.get("GPU", 0))),
                )
            )
        return sorted(found, key=lambda node: node.id)

    def machine(self, own: Machine) -> tuple[Machine, int]:
        """The site as one machine: this one with the processors and cards of all; and how many they are."""
        nodes = self.nodes()
        cards = tuple(card for node in nodes for card in self._cards.get(node.id, ()))
        cores = int(sum(node.cpus for node in nodes)) or own.cores
        return own.model_copy(update={"cores": cores, "cards": cards or own.cards}), len(nodes)

    def _cards_of(self, node: str, count: int) -> tuple[int, ...]:
        """Bytes of memory of each card, asked once; 0 for those that cannot be asked."""
        if not count:
            return ()
        if node not in self._cards:
            self._cards[node] = self._ask_node(node)
        sizes = [card.memory_bytes for card in self._cards[node][:count]]
        return (*sizes, *[0] * (count - len(sizes)))

    def _ask_node(self, node: str) -> tuple[Card, ...]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked = self._ray.remote(_cards_here).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        try:
            texts = json.loads(self._ray.get(asked.remote(), timeout=PROBE_S_MAX))
        except self._ray.exceptions.RayError as error:
            why = _first_line(error)
            self._log.warning("a node does not tell its cards", action="ray_probe", node=node, why=why)
            return ()
        return tuple(Card.model_validate_json(text) for text in texts)

    def close(self) -> None:
        """Disconnect; a private cluster ends with all its processes and files. May be called again."""
        with _signals_kept():
            self._ray.shutdown()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if self._lock is not None:
            self._lock.release()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def tidy(root: Path) -> None:
    """Remove what clusters left whose daemon was killed: nobody holds their lock any more.

    Ray's agents outlive their raylet for minutes, since they try to tell the head of it, which is gone too.
    """
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(Locked, OSError):
            FileLock.acquire(folder / LOCK_FILE, b"").release()
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if any(file.path.startswith(f"{folder}{os.sep}") for file in process.open_files()):
                        process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def check_token(path: Path) -> None:
    """Raises WorkerConflict unless the file holds a token and is closed to other users."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            empty = not file.read(TOKEN_BYTES_MAX).strip()
    except OSError as error:
        raise WorkerConflict(f"the cluster's token {path} cannot be read: {error.strerror}.") from None
    if empty:
        raise WorkerConflict(f"the file {path} holds no token.")
    if sys.platform != "win32" and mode & 0o077:
        raise WorkerConflict(
            f"other users can read the cluster's token {path} (mode {mode:04o}), and whoever has it can run"
            f" programs on every node: chmod 600 {path}",
            code="token_readable",
        )


def check_head(address: str) -> None:
    """Raises WorkerConflict unless the cluster's head refuses who has no token."""
    door = ask(address)
    if door is Door.OPEN:
        raise WorkerConflict(
            f"the Ray cluster at {address} lets in everybody who can reach it: nothing is served there. Start"
            " it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node.",
            code="ray_open",
        )
    if door is not Door.GUARDED:
        raise WorkerConflict(f"no Ray cluster answers at {address}.", code="ray_failed")


def _need(flag: str) -> None:
    """Raises WorkerConflict unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise WorkerConflict(f"{flag} needs Ray, which is not installed here: pip install 'potluck[ray]'")


def _environment(token: Path) -> dict[str, str | None]:
    """What Ray reads from the environment, in this process and all it starts; what stood there before."""
    before = {name: os.environ.pop(name, None) for name in _VARIABLES}
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token.absolute())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # an engine without cards sees none
    return before


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """`ray.init` replaces the handler of SIGTERM, by which an owner stops the daemon."""
    names = ("SIGINT", "SIGBREAK") if sys.platform == "win32" else ("SIGINT", "SIGTERM")
    numbers = [signal.Signals[name] for name in names]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cards_here() -> str:
    """On a node: JSON, one text for each card."""
    from worker.nvidia import Nvidia

    return json.dumps([card.model_dump_json() for card in Nvidia().cards()])


def _first_line(error: BaseException) -> str:
    lines = filter(None, (line.strip() for line in str(error).splitlines()))
    return next(lines, type(error).__name__)[:300].rstrip(".")
