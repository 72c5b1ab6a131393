"""Pool routes by which machines come in, stay and go: join tokens, and what they ask: enrol, renew, leave."""

import base64
import binascii
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_csr
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.address import grpc_address, http_address
from coordinator.api.answers import work
from coordinator.api.audited import audited
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_members import sentence
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.ca import CsrError
from coordinator.core.fleet import Worker
from coordinator.core.jobs import WorkerId
from coordinator.enrolment import JOIN_TOKEN_USES_MAX
from coordinator.records import EnrolledWorker, Issued, JoinTokenRow
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
from potluck.identity import JoinToken, TokenError, leave_message, renewal_message

JOIN_TOKEN_S = 86_400
JOIN_TOKEN_S_MAX = 30 * 86_400
SIGNED_S_MAX = 300
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


class LeaveRequest(Schema):
    """As of a renewal, without a request for a certificate; what is signed is `{leave: worker_id, at}`."""

    worker_id: Annotated[str, Field(max_length=64)]
    at: int
    signature: Annotated[str, Field(max_length=SIGNATURE_CHARS_MAX)]


def enrolment_router(desk: Desk) -> APIRouter:
    routes, router = EnrolmentRoutes(desk), new_router("Enrolment")
    add(
        router,
        "POST",
        "/pool/v1/join-tokens",
        routes.create_join_token,
        answer=work.NewJoinToken,
        body=JoinTokenRequest,
        status=201,
        errors=(409,),
    )
    add(router, "GET", "/pool/v1/join-tokens/{token_id}", routes.show_join_token, answer=work.JoinTokenBody)
    add(
        router,
        "POST",
        "/pool/v1/enrol",
        routes.enrol,
        answer=work.Enrolled,
        body=EnrolRequest,
        status=201,
        open_to_all=True,
        errors=(404, 409, 429, 503),
    )
    add(
        router,
        "POST",
        "/pool/v1/renew",
        routes.renew,
        answer=work.Certificates,
        body=RenewRequest,
        open_to_all=True,
        errors=(401, 404, 429, 503),
    )
    add(
        router,
        "POST",
        "/pool/v1/leave",
        routes.leave,
        answer=work.RevokedWorker,
        body=LeaveRequest,
        open_to_all=True,
        errors=(401, 404, 429, 503),
    )
    return router


class EnrolmentRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @audited(Action.JOIN_TOKEN_MADE, "id", "uses", "expires_at")
    async def create_join_token(self, request: Request) -> Response:
        """A token by which workers join: `{id, token, uses, expires_at, commands}`; shown this once."""
        context = self._desk.context
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, JoinTokenRequest)
        now = context.clock.now()
        token = JoinToken.create(context.ca.fingerprint())
        expires_at = now + wanted.expires_s
        try:
            row = await context.store.create_join_token(
                caller.member.id, digest=token.digest, uses=wanted.uses, expires_at=expires_at, now=now
            )
        except StoreConflict as error:
            raise ApiError(409, "account_closed", sentence(error), retry=False) from None
        commands = [
            f"potluck worker join {http_address(request, context.settings)} --token {token}",
            "potluck worker start",
        ]
        body = {"id": row.id, "token": str(token), "uses": row.uses_max, "expires_at": when(expires_at)}
        return Json(body | {"commands": commands}, 201)

    async def show_join_token(self, request: Request) -> Response:
        """What became of one's token: `{id, uses, uses_max, expires_at, workers: [{id, name}]}`."""
        caller = await self._desk.auth.look(request)
        row, workers = await join_token(self._desk, caller, request.path_params["token_id"])
        return Json(
            {
                "id": row.id,
                "uses": row.uses,
                "uses_max": row.uses_max,
                "expires_at": when(row.expires_at),
                "workers": [{"id": worker.id, "name": worker.name} for worker in workers],
            }
        )

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
            return context.ca.sign_worker(csr, worker_id, context.clock.wall())

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
        request.state.unchanged = worker.created_at != now  # its first answer was lost
        member = await context.store.member(worker.member)
        context.pool.names[worker.member] = member.name if member else worker.member
        context.pool.engine.fleet.enrol(Worker(worker.id, worker.name, worker.member, worker.account))
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
        now, worker_id = context.clock.wall(), WorkerId(wanted.worker_id)
        message = renewal_message(worker_id=wanted.worker_id, csr=wanted.csr, at=wanted.at)
        await self._signed(request, wanted, message)
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

    @audited(Action.WORKER_LEFT, "id", "name")
    async def leave(self, request: Request) -> Response:
        """A worker leaves for good, by its own word: `{id, name, revoked_at}`; asked again, the same answer.

        As if its owner had revoked it: what it runs goes elsewhere, what it earned stays with its member.
        """
        context = self._desk.context
        self._desk.auth.refuse_guessers(request)
        wanted = await self._desk.read(request, LeaveRequest)
        now, message = context.clock.now(), leave_message(worker_id=wanted.worker_id, at=wanted.at)
        worker = await self._signed(request, wanted, message)
        request.state.unchanged = worker.revoked_at is not None
        gone = await context.store.revoke_worker(worker.id, now)
        context.pool.expel(worker.id)
        return Json({"id": gone.id, "name": gone.name, "revoked_at": when(gone.revoked_at)})

    async def _signed(
        self, request: Request, wanted: RenewRequest | LeaveRequest, message: bytes
    ) -> EnrolledWorker:
        """The worker that signed the message with its receipt key, lately. Raises ApiError."""
        signature = _decoded(wanted.signature, "signature")
        worker = await self._desk.context.store.worker(WorkerId(wanted.worker_id))
        if worker is None:
            self._desk.auth.count_failure(request, "renewal")
            told = (
                f"This pool has no worker {wanted.worker_id}. Join it anew: potluck worker join URL --token"
                " TOKEN."
            )
            raise ApiError(404, "worker_not_found", told, param="worker_id")
        try:
            Ed25519PublicKey.from_public_bytes(worker.receipt_key).verify(signature, message)
        except InvalidSignature:
            self._desk.auth.count_failure(request, "renewal")
            told = "The request is not signed by the key that the worker enrolled with."
            raise ApiError(401, "invalid_signature", told, param="signature") from None
        now = self._desk.context.clock.wall()
        if abs(now - wanted.at) > SIGNED_S_MAX:
            told = (
                f"The request is dated {when(_bounded(wanted.at))}, here it is {when(now)}: more than "
                f"{SIGNED_S_MAX // 60} minutes apart. Set the worker's clock."
            )
            raise ApiError(400, "stale_request", told, param="at")
        return worker

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


async def join_token(desk: Desk, caller: Caller, token_id: str) -> tuple[JoinTokenRow, list[EnrolledWorker]]:
    """The token by its id, and the workers that it let in. Raises ApiError 404 unless the caller made it."""
    row = await desk.context.store.join_token(token_id[:64])
    if row is None or row.member != caller.member.id:
        raise ApiError(404, "join_token_not_found", "You have made no such join token.")
    return row, await desk.context.store.workers(member=row.member, token=row.id)


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
