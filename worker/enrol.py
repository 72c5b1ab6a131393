"""How a worker gets into a pool, stays in and leaves: by a token, and then by its own key.

Each is one HTTPS request each. The answer to an enrolment is checked against the fingerprint in the token
before anything is kept: whoever stands at the address cannot make a worker trust another pool.
"""

import base64
import ipaddress
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, StringConstraints, ValidationError

from potluck.identity import (
    IdentityError,
    JoinToken,
    TokenError,
    WorkerIdentity,
    fingerprint_of,
    leave_message,
    renewal_message,
)
from potluck.transport import reason_of
from worker.errors import CertificateRefused, Revoked, Unreachable, WorkerConflict
from worker.membership import MEMBERSHIP_FILE, Certificate, Membership

REQUEST_S_MAX: Final = 30.0
ANSWER_BYTES_MAX: Final = 256 * 1024
NAME_CHARS_MAX: Final = 100

_SENTENCES: Final = {
    "join_token_used": (
        "this token was used already. A token is for one worker; ask for a new one with"
        " `potluck coordinator join-token`."
    ),
    "join_token_expired": "this token has expired. Ask for a new one with `potluck coordinator join-token`.",
    "join_token_unknown": (
        "the pool does not know this token. Check that it was made by the pool at this address, or ask for a"
        " new one with `potluck coordinator join-token`."
    ),
}


Pem = Annotated[str, StringConstraints(pattern=r"^[\n\r -~]*$")]


class _Enrolled(BaseModel):
    worker_id: str
    name: str
    member: str
    pool: str
    certificate: Pem
    ca: Pem
    grpc: str
    public_key: str = ""


class _Renewed(BaseModel):
    certificate: Pem
    ca: Pem


def check_url(text: str) -> str:
    """The address of a coordinator, without a trailing slash. Raises WorkerConflict if it is not safe."""
    url = text.strip()
    if "://" not in url:
        url = f"https://{url}"
        if _is_loopback(urlsplit(url).hostname or ""):
            url = url.replace("https://", "http://", 1)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        host, parts = "", urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.query or parts.fragment:
        raise WorkerConflict(
            f"`{text}` is not the address of a pool. One looks like https://pool.example.org"
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise WorkerConflict(
            f"{url} is not encrypted: everyone on the way could read the token. Use https://{parts.netloc}"
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def enrol(*, url: str, token: JoinToken, name: str, folder: Path, now: datetime) -> Membership:
    """Joins the pool; keeps keys, certificate and membership in the folder. Raises WorkerError."""
    if (folder / MEMBERSHIP_FILE).exists():
        joined = Membership.load(folder)
        raise WorkerConflict(
            f"this worker has joined {joined.pool} already (as {joined.name}). Start it with `potluck worker"
            f" start`; to join another pool, set POTLUCK_HOME to another folder or remove {folder}."
        )
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise WorkerConflict(f"a worker's name has 1 to {NAME_CHARS_MAX} printable characters.")
    address = check_url(url)
    identity = _identity(folder)
    body = {
        "token": str(token),
        "name": name,
        "csr": identity.csr().decode("ascii"),
        "receipt_key": base64.b64encode(identity.receipt_public_key()).decode("ascii"),
    }
    try:
        answer = await _post(f"{address}/pool/v1/enrol", body)
    except Unreachable:
        # Perhaps only the answer was lost: with the same keys the pool knows us again, the token used up.
        identity.save(folder)
        raise
    membership, certificate = _accepted(answer, address, token, identity, now)
    identity.save(folder)
    certificate.save(folder)
    membership.save(folder)  # last: only a complete worker counts as joined
    return membership


def _accepted(
    answer: Any, address: str, token: JoinToken, identity: WorkerIdentity, now: datetime
) -> tuple[Membership, Certificate]:
    """What an answer says, once it is known to come from the token's pool. Raises WorkerError."""
    try:
        enrolled = _Enrolled.model_validate(answer)
        membership = Membership(url=address, **enrolled.model_dump(exclude={"certificate", "ca"}))
    except ValidationError:
        raise _not_a_pool(address) from None
    certificate = Certificate(enrolled.certificate.encode(), enrolled.ca.encode())
    try:
        token.check_pool(certificate.ca)
    except TokenError as error:
        raise WorkerConflict(str(error)) from None
    certificate.check(identity.tls_key.public_key(), now)
    return membership, certificate


def _identity(folder: Path) -> WorkerIdentity:
    """The keys of an earlier try that got no answer, or new ones in memory."""
    try:
        return WorkerIdentity.load(folder)
    except (FileNotFoundError, IdentityError):
        return WorkerIdentity.generate()


async def renew(
    *, membership: Membership, identity: WorkerIdentity, certificate: Certificate, now: datetime
) -> Certificate:
    """A new certificate from the same pool; the caller keeps it. Raises WorkerError."""
    csr, at = identity.csr().decode("ascii"), int(now.timestamp())
    signature = identity.sign(renewal_message(worker_id=membership.worker_id, csr=csr, at=at))
    body = {
        "worker_id": membership.worker_id,
        "csr": csr,
        "at": at,
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    answer = await _post_to_any(membership.at("/pool/v1/renew"), body)
    try:
        renewed = _Renewed.model_validate(answer)
        same = fingerprint_of(renewed.ca.encode()) == fingerprint_of(certificate.ca)
    except (ValidationError, ValueError):
        raise _not_a_pool(membership.url) from None
    if not same:
        raise CertificateRefused("it is of another pool")
    fresh = Certificate(renewed.certificate.encode(), certificate.ca)
    fresh.check(identity.tls_key.public_key(), now)
    return fresh


async def leave(*, membership: Membership, identity: WorkerIdentity, now: datetime) -> None:
    """Tell the pool that this worker will not come back; asking again changes nothing. Raises WorkerError."""
    at = int(now.timestamp())
    signature = identity.sign(leave_message(worker_id=membership.worker_id, at=at))
    body = {
        "worker_id": membership.worker_id,
        "at": at,
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    await _post_to_any(membership.at("/pool/v1/leave"), body)


def _not_a_pool(address: str) -> WorkerConflict:
    return WorkerConflict(f"what answers at {address} is not a pool's coordinator. Check the address.")


async def _post_to_any(urls: list[str], body: dict[str, Any]) -> Any:
    """To the first that is there: of several coordinators one leads, and another may be gone for good.

    What is said if none is there is of the first, which the owner knows.
    """
    unreachable: Unreachable | None = None
    for url in urls:
        try:
            return await _post(url, body)
        except Unreachable as error:
            unreachable = unreachable or error
    assert unreachable is not None
    raise unreachable


async def _post(url: str, body: dict[str, Any]) -> Any:
    """The JSON answer; every way in which it can fail becomes a sentence."""
    try:
        async with (
            httpx2.AsyncClient(timeout=REQUEST_S_MAX, follow_redirects=False) as client,
            client.stream("POST", url, json=body) as response,
        ):
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > ANSWER_BYTES_MAX:
                    raise _not_a_pool(url)
    except httpx2.HTTPError as error:
        raise Unreachable(
            f"no coordinator answers at {url}: {reason_of(error)}. Check the address, and that the"
            " coordinator runs."
        ) from None
    return _answer(url, response, bytes(data))


def _answer(url: str, response: httpx2.Response, data: bytes) -> Any:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if response.is_success and answer is not None:
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        if response.status_code >= 500:
            raise Unreachable(
                f"the coordinator at {url} is not well (HTTP {response.status_code}). Try again later."
            )
        raise _not_a_pool(url)
    word = str(error.get("code") or "")
    said = str(error.get("message") or f"HTTP {response.status_code}")[:500]
    if word == "worker_revoked":
        raise Revoked(said)
    if response.status_code >= 500:
        raise Unreachable(f"the coordinator is not well: {said}. Try again later.")
    raise WorkerConflict(_SENTENCES.get(word, f"the coordinator refused: {said}"), code=word or None)
