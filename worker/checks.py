"""What worker.doctor judges beside the machine: files, certificate, other workers, and the ways to the pool.

Nothing here disturbs a daemon that runs: its stream is not opened a second time, its locks are not taken.
"""

import asyncio
import contextlib
import importlib
import os
import stat
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import httpx2

from potluck.catalogue import Catalogue, CatalogueError, ModelEntry
from potluck.home import write_atomic
from potluck.identity import IdentityError, WorkerIdentity
from potluck.transport import reason_of
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc
from worker.cores import REGISTRY, neighbours
from worker.doctor import Circumstances, Reach
from worker.errors import NotJoined, WorkerError
from worker.membership import Certificate, Membership
from worker.session import CHANNEL_OPTIONS
from worker.settings import Places, Settings
from worker.state import WorkerState

HTTP_S_MAX: Final = 10.0
GRPC_S_MAX: Final = 10.0
CATALOGUE_FILE: Final = "catalogue.json"  # the pool's, as the daemon last heard it
CATALOGUE_BYTES_MAX: Final = 4 << 20
KEY_BYTES_MAX: Final = 4_096
NOBODY: Final = "0" * 64  # an artifact that no pool has


async def circumstances(places: Places, *, environ: dict[str, str]) -> Circumstances:
    """Blocking at times for seconds, while the pool is asked."""
    settings, wrong = Settings(), ""
    try:
        settings = Settings.load(flags={}, environ=environ, folder=places.worker)
    except WorkerError as error:
        wrong = error.message
    found = Circumstances(
        home=str(places.worker),
        running=_running(places),
        neighbours=_neighbours(places),
        threads=settings.threads,
        engine=settings.engine,
        bridges=tuple(settings.bridge),
        settings=wrong,
        open_files=open_files(places.worker),
        unwritable=unwritable(places),
        ports=ports(),
        ray=_ray(),
    )
    try:
        membership, certificate = Membership.load(places.worker), Certificate.load(places.worker)
        key = WorkerIdentity.load(places.worker).tls_key_pem()
    except (NotJoined, IdentityError, FileNotFoundError) as error:
        why = error.message if isinstance(error, NotJoined) else "its keys are missing or cannot be read"
        return found.model_copy(update={"not_joined": why.partition(". Ask")[0]})
    left = certificate.times()[1] - datetime.now(UTC)
    https, over_grpc = await asyncio.gather(
        reach_https(membership.url), reach_grpc(membership.grpc, certificate, key)
    )
    told = {"joined": membership.pool, "certificate_s": left.total_seconds(), "https": https}
    return found.model_copy(update={**told, "grpc": over_grpc})


def entries(places: Places) -> tuple[ModelEntry, ...]:
    """Of the pool's catalogue as the daemon last heard it, else of the one that Potluck brings."""
    with contextlib.suppress(OSError, CatalogueError), (places.worker / CATALOGUE_FILE).open("rb") as file:
        return Catalogue.from_wire(file.read(CATALOGUE_BYTES_MAX))[0].entries
    return Catalogue.builtin().entries


def remember(places: Places, catalogue: bytes) -> None:
    """For the doctor, who looks also while nothing runs."""
    with contextlib.suppress(OSError):
        write_atomic(places.worker / CATALOGUE_FILE, catalogue, durable=False)


async def reach_https(url: str) -> Reach:
    """Whether the coordinator answers, and what its clock says (the answer's Date, RFC 9110, 6.6.1)."""
    try:
        async with httpx2.AsyncClient(timeout=HTTP_S_MAX, follow_redirects=False) as client:
            answer = await client.get(f"{url}/healthz")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Reach(address=url, works=False, why=reason_of(error))
    if not answer.is_success:
        return Reach(address=url, works=False, why=f"it answers HTTP {answer.status_code}")
    skew = None
    with contextlib.suppress(ValueError, TypeError):
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
        skew = (datetime.now(UTC) - theirs).total_seconds()
    return Reach(address=url, works=True, skew_s=skew)


async def reach_grpc(target: str, certificate: Certificate, tls_key: bytes) -> Reach:
    """Mutual TLS, and whether the pool knows this worker: it is asked for an artifact that does not exist."""
    credentials = grpc.ssl_channel_credentials(certificate.ca, tls_key, certificate.certificate)
    async with grpc.aio.secure_channel(target, credentials, options=list(CHANNEL_OPTIONS)) as channel:
        request = artifacts_pb2.DownloadRequest(sha256=NOBODY)
        call = artifacts_pb2_grpc.ArtifactServiceStub(channel).Download(request, timeout=GRPC_S_MAX)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Reach(address=target, works=True)
            return Reach(address=target, works=False, why=_why(error))
    return Reach(address=target, works=False, why="it does not answer as a pool does")


def _why(error: grpc.aio.AioRpcError) -> str:
    said = (error.details() or "").splitlines()[0:1]
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"nothing came for {GRPC_S_MAX:.0f} s"
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return f"it does not let this worker in ({said[0][:200] if said else 'no reason given'})"
        case code:
            return f"{said[0][:200] if said else 'no reason given'} ({code.name})"


def open_files(folder: Path) -> tuple[str, ...]:
    """Keys that others than their owner may read; Windows keeps them by other means."""
    if sys.platform == "win32" or not folder.is_dir():
        return ()
    found = []
    for path in sorted(folder.glob("*.pem")) + sorted(folder.glob("*.key")):
        with contextlib.suppress(OSError):
            with path.open("rb") as file:
                secret = b"PRIVATE KEY" in file.read(KEY_BYTES_MAX)
            if secret and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                found.append(str(path))
    return tuple(found)


def unwritable(places: Places) -> tuple[str, ...]:
    """Of the folders that a daemon writes into, or of the nearest that exist above them."""
    found = []
    for folder in (places.worker, places.cache, places.machine):
        path = folder
        while not path.exists() and path != path.parent:
            path = path.parent
        if not os.access(path, os.W_OK):
            found.append(str(path))
    return tuple(dict.fromkeys(found))


def ports() -> tuple[str, ...]:
    """What Ray leaves open on this machine, each in words with what to do. Blocking."""
    with contextlib.suppress(ImportError):
        ray_ports = importlib.import_module("worker.ray.ports")
        return tuple(ray_ports.findings(ray_ports.open_ports()))
    return ()


def _ray() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("ray")
    return ""


def _running(places: Places) -> int:
    state = WorkerState.load(places.worker)
    return state.pid if state.runs else 0


def _neighbours(places: Places) -> tuple[int, ...]:
    """Without the daemon of this home, if that runs: it is who shares with them."""
    own = WorkerState.load(places.worker)
    folder = places.machine / REGISTRY
    mine = next(iter(folder.glob(f"{own.pid}-*.lock")), None) if own.pid else None
    return tuple(neighbours(folder, apart_from=mine))
