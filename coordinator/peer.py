"""Who is at the other end of a worker's stream: read from the certificate that the handshake verified."""

from collections.abc import Awaitable, Callable

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.core.jobs import WorkerId
from coordinator.sessions import Context
from coordinator.store import Store
from coordinator.unwelcome import Unwelcome

URI_PREFIX = "potluck:worker:"


def worker_in(certificate_pem: bytes) -> tuple[WorkerId, bytes]:
    """The worker's id and its public key (SubjectPublicKeyInfo, DER). Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(URI_PREFIX):
            key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return WorkerId(uri.removeprefix(URI_PREFIX)), key
    raise ValueError("the certificate names no worker")


def identify(store: Store) -> Callable[[Context], Awaitable[WorkerId]]:
    """Who calls, or Unwelcome: a name without a stream (UNAUTHENTICATED), or one that was shut out."""

    async def who(context: Context) -> WorkerId:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        try:
            worker_id, key = worker_in(pem)
        except (ValueError, x509.ExtensionNotFound):
            raise Unwelcome(
                grpc.StatusCode.UNAUTHENTICATED, "the certificate is not one of this pool's"
            ) from None
        row = await store.worker(worker_id)
        if row is None or row.tls_key != key:
            raise Unwelcome(grpc.StatusCode.UNAUTHENTICATED, "this pool does not know the worker")
        if row.revoked_at is not None:
            raise Unwelcome(
                grpc.StatusCode.PERMISSION_DENIED, "this worker was revoked; ask the pool's admin"
            )
        return worker_id

    return who
