"""Pool routes about workers: list, revoke, join tokens, and what a daemon itself asks: enrol and renew."""

import base64
import binascii
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_csr
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator import views
from coordinator.api.address import grpc_address, http_address
from coordinator.api.audited import audited
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_members import sentence
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.ca import CsrError
from coordinator.core.jobs import WorkerId
from coordinator.enrolment import JOIN_TOKEN_USES_MAX
from coordinator.records import EnrolledWorker, Issued
from coordinator.store_errors import (
    JoinTokenExpired,
    JoinTokenRefused,
    JoinTokenUsed,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    Unknown,
    WorkerRevoked,
)
from potluck.identity import JoinToken, TokenError, renewal_message

JOIN_TOKEN_S = 86_400
JOIN_TOKEN_S_MAX = 30 * 86_400
RENEWAL_S_MAX = 300
CSR_CHARS_MAX = 16_384
SIGNATURE_CHARS_MAX = 128
RECEIPT_KEY_BYTES = 32


class JoinTokenRequest(Schema):
    """How many workers may join by the token, and how long it is good, in seconds (one day if left out)."""

    uses: Annotated[int, Field(ge=1, le=JOIN_TOKEN_USES_MAX)] = 1
    expires_s: Annotated[int, Field(ge=1, le=JOIN_TOKEN_S_MAX)] = JOIN_TOKEN_S


class EnrolRequest(Schema):
    """`csr` in PEM; `receipt_key` the raw Ed25519 public key in base64."""

    token: Annotated[str, Field(max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    csr: Annotated[str, Field(max_length=CSR_CHARS_MAX)]
    receipt_key: Annotated[str, Field(max_length=SIGNATURE_CHARS_MAX)]


class RenewRequest(Schema):
    """`at` is the sender's time in unix seconds; `signature` (base64, Ed25519 by the receipt key) covers the
    canonical JSON of the other three."""

    worker_id: Annotated[str, Field(max_length=64)]
    csr: Annotated[str, Field(max_length=CSR_CHARS_MAX)]
    at: int
    signature: Annotated[str, Field(max_length=SIGNATURE_CHARS_MAX)]


def workers_router(desk: Desk) -> APIRouter:
    routes, router = Workers(desk), new_router("pool")
    add(router, "GET", "/pool/v1/workers", routes.list)
    add(router, "DELETE", "/pool/v1/workers/{worker_id}", routes.revoke)
    add(router, "POST", "/pool/v1/workers/{worker_id}/vouch", routes.vouch)
    add(router, "POST", "/pool/v1/join-tokens", routes.create_join_token, body=JoinTokenRequest, status=201)
    add(router, "POST", "/pool/v1/enrol", routes.enrol, body=EnrolRequest, status=201)
    add(router, "POST", "/pool/v1/renew", routes.renew, body=RenewRequest)
    return router


class Workers:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """All workers: `[{id, name, member, state, why, models, engines, hardware, load, speed}]`."""
        context = self._desk.context
        await self._desk.auth.look(request)
        live = views.workers(context.pool)
        seen = {worker["id"] for worker in live}
        enrolled = [w for w in await context.store.workers() if w.id not in seen and w.revoked_at is None]
        names = {m.id: m.name for m in await context.store.members()} if enrolled else {}
        return Json([*live, *(_away(worker, names.get(worker.member, worker.member)) for worker in enrolled)])

    @audited(Action.WORKER_TRUSTED, "id", "released")
    async def vouch(self, request: Request) -> Response:
        """Trust a worker without further proof; its held earnings are free: `{id, released}`. For admins.

        Also one that has left, for what it earned until then.
        """
        context = self._desk.context
        caller = await self._desk.auth.admin(request)
        fleet = context.pool.engine.fleet
        worker_id = WorkerId(request.path_params["worker_id"][:64])
        worker = fleet.workers.get(worker_id) or fleet.departed.get(worker_id)
        if worker is None:
            raise ApiError(404, "worker_not_found", f"There is no worker {worker_id} that could be trusted.")
        context.pool.accounts.check_open()
        released = worker.standing.held
        context.pool.engine.prove(worker_id, context.clock.now(), f"{caller.member.name} vouches for it")
        await context.pool.ticker.committed()
        return Json({"id": worker_id, "released": released})

    @audited(Action.WORKER_REVOKED, "id", "name")
    async def revoke(self, request: Request) -> Response:
        """Shut a worker out for good, as its owner or an admin: its stream closes, its jobs go elsewhere."""
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        worker_id = WorkerId(request.path_params["worker_id"][:64])
        worker = await context.store.worker(worker_id)
        if worker is None:
            raise ApiError(404, "worker_not_found", f"This pool has no worker {worker_id}.")
        if worker.member != caller.member.id and not caller.admin:
            message = f"{worker.name} belongs to another member; its owner or an admin may remove it."
            raise ApiError(403, "not_your_worker", message)
        revoked = await context.store.revoke_worker(worker_id, context.clock.now())
        context.pool.expel(worker_id)
        return Json({"id": revoked.id, "name": revoked.name, "revoked_at": when(revoked.revoked_at)})

    @audited(Action.JOIN_TOKEN_MADE, "", "uses", "expires_at")
    async def create_join_token(self, request: Request) -> Response:
        """A token by which workers join as the caller's, shown this once: `{token, expires_at, commands}`."""
        context = self._desk.context
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, JoinTokenRequest)
        now = context.clock.now()
        token = JoinToken.create(context.ca.fingerprint())
        expires_at = now + wanted.expires_s
        try:
            await context.store.create_join_token(
                caller.member.id, digest=token.digest, uses=wanted.uses, expires_at=expires_at, now=now
            )
        except StoreConflict as error:
            raise ApiError(409, "account_closed", sentence(error), retry=False) from None
        commands = [
            f"potluck worker join {http_address(request, context.settings)} --token {token}",
            "potluck worker start",
        ]
        return Json({"token": str(token), "expires_at": when(expires_at), "commands": commands}, 201)

    @audited(Action.WORKER_ENROLLED, "worker_id", "name", "member")
    async def enrol(self, request: Request) -> Response:
        """Let a worker in by its join token: `{worker_id, name, member, pool, public_key, grpc, ...}`."""
        context = self._desk.context
        self._desk.auth.refuse_guessers(request)
        wanted = await self._desk.read(request, EnrolRequest)
        token = self._parse_token(wanted.token)
        receipt_key = _decoded(wanted.receipt_key, "receipt_key")
        if len(receipt_key) != RECEIPT_KEY_BYTES:
            message = f"receipt_key: a raw Ed25519 public key has {RECEIPT_KEY_BYTES} bytes."
            raise ApiError(400, "invalid_value", message, param="receipt_key")
        now, csr = context.clock.now(), wanted.csr.encode()
        tls_key = _public_key(csr)

        def issue(worker_id: WorkerId) -> Issued:
            return context.ca.sign_worker(csr, worker_id, now)

        try:
            worker, issued = await context.store.enrol_worker(
                token_digest=token.digest,
                name=wanted.name,
                receipt_key=receipt_key,
                tls_key=tls_key,
                issue=issue,
                now=now,
            )
        except JoinTokenRefused as error:
            self._desk.auth.count_failure(request, "join token")
            raise _token_refused(error) from None
        except CsrError as error:
            raise _bad_csr(error) from None
        except WorkerRevoked as error:
            raise ApiError(403, "worker_revoked", sentence(error)) from None
        except StoreUnavailable:
            raise
        except StoreConflict as error:
            raise ApiError(409, "worker_exists", sentence(error), param="csr", retry=False) from None
        except StoreError as error:
            raise ApiError(400, "invalid_value", sentence(error), param="name") from None
        member = await context.store.member(worker.member)
        return Json(
            {
                "worker_id": worker.id,
                "name": worker.name,
                "member": member.name if member else worker.member,
                "pool": context.settings.pool_name,
                "public_key": context.ca.public_key.hex(),
                "certificate": issued.pem.decode("ascii"),
                "ca": context.ca.certificate_pem.decode("ascii"),
                "grpc": grpc_address(request, context.settings, context.listening.grpc),
            },
            201,
        )

    async def renew(self, request: Request) -> Response:
        """A further certificate for a worker, also after its last one expired: `{certificate, ca}`."""
        context = self._desk.context
        self._desk.auth.refuse_guessers(request)
        wanted = await self._desk.read(request, RenewRequest)
        signature = _decoded(wanted.signature, "signature")
        now, worker_id = context.clock.now(), WorkerId(wanted.worker_id)
        worker = await context.store.worker(worker_id)
        if worker is None:
            self._desk.auth.count_failure(request, "renewal")
            message = (
                f"This pool has no worker {worker_id}. Join it anew: potluck worker join URL --token TOKEN."
            )
            raise ApiError(404, "worker_not_found", message, param="worker_id")
        try:
            message_bytes = renewal_message(worker_id=wanted.worker_id, csr=wanted.csr, at=wanted.at)
            Ed25519PublicKey.from_public_bytes(worker.receipt_key).verify(signature, message_bytes)
        except InvalidSignature:
            self._desk.auth.count_failure(request, "renewal")
            message = "The request is not signed by the key that the worker enrolled with."
            raise ApiError(401, "invalid_signature", message, param="signature") from None
        if abs(now - wanted.at) > RENEWAL_S_MAX:
            message = (
                f"The request is dated {when(_bounded(wanted.at))}, here it is {when(now)}: more than "
                f"{RENEWAL_S_MAX // 60} minutes apart. Set the worker's clock."
            )
            raise ApiError(400, "stale_request", message, param="at")
        csr = wanted.csr.encode()
        try:
            _, issued = await context.store.renew_certificate(
                worker_id, lambda found: context.ca.sign_worker(csr, found, now)
            )
        except CsrError as error:
            raise _bad_csr(error) from None
        except WorkerRevoked as error:
            raise ApiError(403, "worker_revoked", sentence(error)) from None
        except Unknown as error:
            raise ApiError(404, "worker_not_found", sentence(error), param="worker_id") from None
        return Json(
            {"certificate": issued.pem.decode("ascii"), "ca": context.ca.certificate_pem.decode("ascii")}
        )

    def _parse_token(self, text: str) -> JoinToken:
        try:
            token = JoinToken.parse(text)
        except TokenError as error:
            raise ApiError(400, "join_token_malformed", str(error), param="token") from None
        if not self._desk.context.ca.fingerprint().startswith(token.fingerprint):
            message = (
                "This join token is of another pool. Check the address, or ask for a token of this pool."
            )
            raise ApiError(400, "join_token_of_another_pool", message, param="token")
        return token


def _away(worker: EnrolledWorker, member_name: str) -> dict[str, Any]:
    """A worker that this coordinator has not heard of since it started."""
    return {
        "id": worker.id,
        "name": worker.name,
        "member": member_name,
        "state": "away",
        "why": "not connected",
        "next_change": None,
        "models": [],
        "engines": [],
        "hardware": None,
        "load": None,
        "speed": {},
    }


def _token_refused(error: JoinTokenRefused) -> ApiError:
    if isinstance(error, JoinTokenUsed):
        return ApiError(409, "join_token_used", sentence(error), param="token", retry=False)
    if isinstance(error, JoinTokenExpired):
        return ApiError(409, "join_token_expired", sentence(error), param="token", retry=False)
    return ApiError(404, "join_token_unknown", sentence(error), param="token")


def _bad_csr(error: Exception) -> ApiError:
    return ApiError(400, "invalid_csr", str(error), param="csr")


def _public_key(csr: bytes) -> bytes:
    """The key that the request is about, as SubjectPublicKeyInfo; the CA checks whether it is fit."""
    try:
        key = load_pem_x509_csr(csr).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # whatever the parser dislikes: the bytes come from anybody
        raise ApiError(
            400, "invalid_csr", "csr: this is no certificate signing request in PEM.", param="csr"
        ) from None


def _decoded(text: str, param: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "invalid_value", f"{param}: this is not base64.", param=param) from None


def _bounded(at: int) -> float:
    """Within the years that a date can have."""
    return float(min(max(at, 0), 253_402_300_799))
