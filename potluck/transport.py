"""One HTTP connection to a coordinator: JSON both ways, errors as classes, bounded retries, event streams.

httpx2 is loaded with the first connection and not with this module: `potluck --help` needs none.
"""

import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote as url_quote

from potluck.client import is_loopback
from potluck.errors import (
    InvalidRequest,
    NotFound,
    PotluckError,
    UnexpectedAnswer,
    Unreachable,
    UsageError,
    error_from,
)

if TYPE_CHECKING:
    import httpx2

CONNECT_S_MAX: Final = 10.0
ID: Final = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")
ID_CHARS_SHOWN_MAX: Final = 64
RETRY_S_FIRST: Final = 0.2
RETRY_S_MAX: Final = 20.0
RETRIED_STATUS: Final = frozenset({429, 502, 503, 504})


class Transport:
    """Not for several threads at once while a stream is open on it; `close` when done.

    Raises UsageError for an address that no name server could know.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        timeout_s: float,
        retries_max: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx2

        headers = {"user-agent": _user_agent()}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self.url, self._retries_max, self._sleep = url, retries_max, sleep
        try:
            base = httpx2.URL(url)
        except (httpx2.InvalidURL, UnicodeError):
            raise UsageError(f"{url!r} is no address of a pool: there can be no such host.") from None
        self._client = httpx2.Client(
            base_url=base,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S_MAX, timeout_s)),
            # A proxy from the environment cannot reach this machine's loopback, nor should it see its keys.
            trust_env=not is_loopback(url),
            # Reading all trusted certificates takes 50 ms, and without TLS nobody asks for them. With it,
            # SSL_CERT_FILE holds on loopback as well.
            verify=httpx2.create_ssl_context()
            if base.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Any:
        """The JSON answer. Raises PotluckError."""
        return self._answer("GET", path, params=dict(params or {}))

    def delete(self, path: str, params: Mapping[str, str | int] | None = None) -> Any:
        return self._answer("DELETE", path, params=dict(params or {}))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """For what is the same when done twice."""
        return self._answer("PATCH", path, content=encoded(body), headers=_post_headers(None))

    def post(self, path: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Any:
        """The JSON answer. With a key a second try finds the first one's job, so that one may be made."""
        return self._answer("POST", path, content=encoded(body), headers=_post_headers(idempotency_key))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._answer("PUT", path, content=encoded(body), headers=_post_headers(None))

    def upload(
        self, path: str, fields: Mapping[str, str], filename: str, file: Any, *, name: str = "file"
    ) -> Any:
        """The JSON answer to a form. `file` is read as it is sent; its `fileno` or its end gives its size."""
        files = {name: (filename, file, "application/octet-stream")}
        return self._answer("POST", path, data=dict(fields), files=files)

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, str], Iterator[Any]]]:
        """The answer's headers and its events' JSON, up to [DONE]. Leaving early closes the connection.

        Raises PotluckError, also from the iterator: an error event, or a stream that broke off.
        """
        headers = {**_post_headers(None), "accept": "text/event-stream"}
        request = self._client.build_request("POST", path, content=encoded(body), headers=headers)
        with self._streamed(request) as found:
            yield found

    @contextmanager
    def events(self, path: str, params: Mapping[str, str | int]) -> Iterator[Iterator[Any]]:
        """The events of a GET, as `stream` has them."""
        headers = {"accept": "text/event-stream"}
        request = self._client.build_request("GET", path, params=dict(params), headers=headers)
        with self._streamed(request) as (_, events):
            yield events

    @contextmanager
    def _streamed(self, request: "httpx2.Request") -> Iterator[tuple[Mapping[str, str], Iterator[Any]]]:
        import httpx2

        with self._translated():
            response = self._sent(request, stream=True)
            try:
                yield dict(response.headers), _events(httpx2.EventSource(response))
            finally:
                response.close()

    @contextmanager
    def download(self, path: str, params: Mapping[str, str | int] | None = None) -> Iterator[Iterator[bytes]]:
        """The answer's bytes as they come. Raises PotluckError, also from the iterator if it breaks off."""
        with self._translated():
            request = self._client.build_request("GET", path, params=dict(params or {}))
            response = self._sent(request, stream=True)
            try:
                yield response.iter_bytes()
            finally:
                response.close()

    @contextmanager
    def looking(self, path: str) -> Iterator["httpx2.Response"]:
        """The answer to a GET as it is, whatever its status, while it is open. Raises PotluckError."""
        with self._translated():
            response = self._client.send(self._client.build_request("GET", path), stream=True)
            try:
                yield response
            finally:
                response.close()

    def _answer(self, method: str, path: str, **arguments: Any) -> Any:
        with self._translated():
            response = self._sent(self._client.build_request(method, path, **arguments), stream=False)
            if response.status_code == 204 or not response.content:
                return {}
            return decoded(response)

    def _sent(self, request: "httpx2.Request", *, stream: bool) -> "httpx2.Response":
        """A successful response; tries again what a second try can help."""
        import httpx2

        for tries_left in range(self._retries_max, -1, -1):
            wait_s = min(RETRY_S_MAX, RETRY_S_FIRST * 2 ** (self._retries_max - tries_left))
            try:
                response = self._client.send(request, stream=stream)
            except httpx2.ConnectError:
                if not tries_left:
                    raise
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # It may have arrived: only what is the same when done twice is tried again.
                if not tries_left or (request.method == "POST" and "idempotency-key" not in request.headers):
                    raise
            else:
                if response.status_code < 300:
                    return response
                with_body = response.read()
                response.close()
                error = _error(response, with_body)
                allowed = response.headers.get("x-should-retry") != "false"
                if not tries_left or not allowed or response.status_code not in RETRIED_STATUS:
                    raise error
                wait_s = max(wait_s, error.retry_after_s or 0.0)
                if wait_s > RETRY_S_MAX:
                    raise error
            self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.ConnectTimeout:
            raise Unreachable(self._unreachable("it did not answer in time"), code="timeout") from None
        except httpx2.TimeoutException:
            raise Unreachable(
                f"The coordinator at {self.url} did not answer in time. It may still be at work: see"
                " `potluck jobs list`.",
                code="timeout",
            ) from None
        except httpx2.ConnectError as error:
            raise Unreachable(self._unreachable(reason_of(error))) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError):
            raise Unreachable(self._unreachable("this is no address")) from None
        except httpx2.SSEError as error:
            raise UnexpectedAnswer(f"What {self.url} streamed is no answer of a pool: {error}") from None
        except httpx2.HTTPError as error:
            raise Unreachable(
                f"The connection to the coordinator at {self.url} broke: {reason_of(error)}. See `potluck"
                " jobs list` for what became of the request.",
                code="connection_broken",
            ) from None

    def _unreachable(self, why: str) -> str:
        return (
            f"The coordinator at {self.url} cannot be reached: {why}. Is it running (`potluck coordinator"
            " start`), and is the address right (`potluck config view`)?"
        )


def path_of(*parts: str) -> str:
    """The first part as it is, then ids: what could not be one is not sent, nor becomes another path."""
    for part in parts[1:]:
        if not ID.fullmatch(part):
            raise NotFound(f"{part[:ID_CHARS_SHOWN_MAX]!r} is no id. Give one as the lists show them.")
    return "/".join(parts)


def path_of_name(before: str, name: str, after: str) -> str:
    """A name of people's choice between two parts: it never becomes another path."""
    if name in {"", ".", ".."}:
        raise NotFound(f"{name!r} is no name. Give one as the lists show them.")
    return f"{before}/{url_quote(name, safe='')}/{after}"


def encoded(body: Mapping[str, Any]) -> bytes:
    """Strict JSON (RFC 8259). Raises InvalidRequest for what JSON has no way to write."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "The text holds characters that are no valid Unicode. Send it as UTF-8."
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"The request cannot be written as JSON: {error}") from None


def _post_headers(idempotency_key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    return headers if idempotency_key is None else {**headers, "idempotency-key": idempotency_key}


def _events(source: "httpx2.EventSource") -> Iterator[Any]:
    for event in source:
        if event.data == "[DONE]":
            return
        if not event.data:
            continue
        try:
            data = event.json()
        except (ValueError, RecursionError):
            raise UnexpectedAnswer(
                "An event of the stream is no JSON: this is no answer of a pool."
            ) from None
        if isinstance(data, dict) and "error" in data:
            raise error_from(data)
        yield data
    raise Unreachable(
        "The answer broke off: the connection to the coordinator ended before it was whole.",
        code="connection_broken",
    )


def decoded(response: "httpx2.Response") -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise UnexpectedAnswer(
            f"{response.url} answered something that is no JSON. Is this the address of a Potluck pool?",
            status=response.status_code,
        ) from None


def _error(response: "httpx2.Response", content: bytes) -> PotluckError:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    after = response.headers.get("retry-after", "")
    return error_from(
        body,
        status=response.status_code,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=float(after) if after.isascii() and after.isdigit() else None,
    )


def reason_of(error: Exception) -> str:
    """The innermost cause in words, without a full stop: the outer layers say little."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    words = str(cause)
    if "WRONG_VERSION_NUMBER" in words:
        return "what listens there does not speak TLS; perhaps its address begins with http://"
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return f"its certificate is not trusted here ({getattr(cause, 'verify_message', 'unknown issuer')})"
    if isinstance(cause, OSError) and cause.strerror:
        # asyncio puts words of its own in place of the system's; a resolver's numbers are not the system's.
        if cause.errno is not None and not isinstance(cause, socket.gaierror):
            return os.strerror(cause.errno).lower()
        return cause.strerror.lower()
    return (words or type(cause).__name__).rstrip(".")


def _user_agent() -> str:
    from potluck.version import version

    return f"potluck/{version()}"
