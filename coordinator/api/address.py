"""Under which addresses the outside reaches this pool, as far as the coordinator can know."""

from starlette.requests import Request

from coordinator.settings import Settings


def http_address(request: Request, settings: Settings) -> str:
    """For commands that are shown to people. Host was checked against the allow-list."""
    secure = bool(settings.tls_cert) or settings.behind_proxy
    host = request.headers.get("host", settings.http)
    return f"{'https' if secure else 'http'}://{host}"


def grpc_address(request: Request, settings: Settings, bound: str) -> str:
    """`host:port` of the workers' listener: as set, else by the public host or the name used just now."""
    if settings.public_grpc is not None:
        return settings.public_grpc
    port = (bound or settings.grpc).rpartition(":")[2]
    host = settings.public_host or request.url.hostname or "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
