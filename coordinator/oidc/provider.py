"""The OpenID provider: where to send a browser, and who the answer says it is.

Authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0, section 3.1; RFC 7636; RFC 9700).
The ID token counts only with a signature by one of the provider's published keys, for this client, from this
issuer, for this sign-in, and not expired. Symmetric signatures and none at all are not accepted.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from coordinator.oidc.identity import SUBJECT_CHARS_MAX, Identity, identity_of
from coordinator.oidc.pending import Pending
from coordinator.settings import Settings

WELL_KNOWN: Final = "/.well-known/openid-configuration"  # OpenID Connect Discovery 1.0, section 4
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
ANSWER_S_MAX: Final = 10.0  # of all that one sign-in asks
ANSWER_BYTES_MAX: Final = 1 << 20
LEEWAY_S: Final = 60  # between two clocks
METADATA_S: Final = 3_600.0


class ProviderDown(Exception):  # noqa: N818 -- named for what happened
    """Nobody answers, or not as a provider does; the message says what was asked."""


class ProviderRefused(Exception):  # noqa: N818 -- named for what happened
    """It does not vouch for whoever this is; the message is for the log."""


@dataclass(slots=True)
class Provider:
    """`now`: seconds since the epoch. `metadata` and `keys` are what it published, fetched when needed."""

    settings: Settings
    now: Callable[[], float] = time.time
    metadata: dict[str, Any] = field(default_factory=dict)
    keys: Any = None  # a JSON Web Key Set (RFC 7517)
    fetched_at: float = 0.0
    _trusted: ssl.SSLContext | None = None

    async def address(self, pending: Pending, state: str) -> str:
        """Where the browser goes to sign in. Raises ProviderDown."""
        async with await self._client() as client:
            await self._discover(client)
            client.redirect_uri = pending.redirect_uri
            url, _ = client.create_authorization_url(
                self._endpoint("authorization_endpoint"),
                state=state,
                nonce=pending.nonce,
                code_verifier=pending.verifier,
            )
        return str(url)

    async def identity(self, code: str, pending: Pending) -> Identity:
        """Who signed in. Raises ProviderDown or ProviderRefused."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX), await self._client() as client:
                await self._discover(client)
                token = await client.fetch_token(
                    self._endpoint("token_endpoint"),
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=pending.verifier,
                    redirect_uri=pending.redirect_uri,
                )
                claims = await self._claims(client, token, pending.nonce)
                return identity_of(await self._told(client, token, claims), self.settings)
        except OAuthError as error:
            raise ProviderRefused(f"the code was refused: {error.error}") from None
        except (TimeoutError, httpx2.HTTPError, OSError, ValueError) as error:
            raise ProviderDown(f"the token endpoint: {_shortly(error)}") from None

    async def _claims(
        self, client: AsyncOAuth2Client, token: Mapping[str, Any], nonce: str
    ) -> dict[str, Any]:
        """Of the ID token, all of it checked (Core 1.0, section 3.1.3.7). Raises ProviderRefused."""
        encoded = token.get("id_token")
        if not isinstance(encoded, str):
            raise ProviderRefused("there is no ID token")
        settings = self.settings
        wanted = {
            "iss": {"essential": True, "value": settings.oidc_issuer},
            "aud": {"essential": True, "value": settings.oidc_client_id},
        }
        given = {
            "nonce": nonce,
            "client_id": settings.oidc_client_id,
            "access_token": token.get("access_token"),
        }
        try:
            signed = await self._verified(client, encoded)
            claims = CodeIDToken(signed.claims, signed.header, wanted, given)
            claims.validate(now=int(self.now()), leeway=LEEWAY_S)
        except (JoseError, TypeError, ValueError) as error:
            raise ProviderRefused(f"the ID token: {_shortly(error)}") from None
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS_MAX:
            raise ProviderRefused("the ID token: sub is no text of 1 to 255 characters")
        return dict(claims)

    async def _verified(self, client: AsyncOAuth2Client, encoded: str) -> jwt.Token:
        """Keys are fetched again, once, for a token of which none fits: providers rotate theirs."""
        supported = self.metadata.get("id_token_signing_alg_values_supported", ["RS256"])
        registry = JWSRegistry(
            algorithms=[name for name in ALGORITHMS if name in supported], strict_check_header=False
        )
        fresh = self.keys is None
        if fresh:
            self.keys = await self._fetch(client, self._endpoint("jwks_uri"))
        try:
            return jwt.decode(encoded, KeySet.import_key_set(self.keys), registry=registry)
        except JoseError:
            if fresh:
                raise
        self.keys = await self._fetch(client, self._endpoint("jwks_uri"))
        return jwt.decode(encoded, KeySet.import_key_set(self.keys), registry=registry)

    async def _told(
        self, client: AsyncOAuth2Client, token: Mapping[str, Any], claims: dict[str, Any]
    ) -> dict[str, Any]:
        """With what only the userinfo endpoint tells, which must speak of the same person (section 5.3)."""
        wanted = {"email", "email_verified", self.settings.oidc_name_claim}
        if self.settings.oidc_join_groups:
            wanted.add(self.settings.oidc_groups_claim)
        if wanted <= claims.keys() or "userinfo_endpoint" not in self.metadata:
            return claims
        bearer = {"authorization": f"Bearer {token.get('access_token')}"}
        url = self._endpoint("userinfo_endpoint")
        answer = await client.request("GET", url, withhold_token=True, headers=bearer)
        told = answer.json() if answer.is_success and "json" in answer.headers.get("content-type", "") else {}
        if not isinstance(told, dict) or (told and told.get("sub") != claims["sub"]):
            raise ProviderRefused("the userinfo endpoint speaks of somebody else")
        return {**told, **claims}

    async def _discover(self, client: AsyncOAuth2Client) -> None:
        """What the provider published, which must be about itself (Discovery 1.0, section 4.3)."""
        now = self.now()
        if self.metadata and now < self.fetched_at + METADATA_S:
            return
        issuer = self.settings.oidc_issuer or ""
        found = await self._fetch(client, issuer.rstrip("/") + WELL_KNOWN)
        if found.get("issuer") != issuer:
            raise ProviderDown(
                f"{issuer} publishes metadata of the issuer {str(found.get('issuer'))[:200]!r}"
            )
        self.metadata, self.keys, self.fetched_at = found, None, now

    async def _fetch(self, client: AsyncOAuth2Client, url: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = await client.request("GET", url, withhold_token=True)
            answer.raise_for_status()
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise ProviderDown(f"{url}: {_shortly(error)}") from None
        return object_of(url, answer.content)

    def _endpoint(self, name: str) -> str:
        url = self.metadata.get(name)
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise ProviderDown(f"the metadata has no {name}")
        secure = (self.settings.oidc_issuer or "").startswith("https://")
        if secure and not url.startswith("https://"):
            raise ProviderDown(f"{name} is not HTTPS")
        return url

    async def _client(self) -> AsyncOAuth2Client:
        settings = self.settings
        if self._trusted is None:
            self._trusted = await asyncio.to_thread(ssl.create_default_context)
        methods = self.metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        secret = settings.oidc_secret
        basic = "client_secret_basic" in methods or "client_secret_post" not in methods
        method = ("client_secret_basic" if basic else "client_secret_post") if secret else "none"
        return AsyncOAuth2Client(
            client_id=settings.oidc_client_id,
            client_secret=secret,
            token_endpoint_auth_method=method,
            scope=settings.oidc_scopes,
            code_challenge_method="S256",
            timeout=ANSWER_S_MAX,
            follow_redirects=False,
            trust_env=False,
            transport=_Bounded(verify=self._trusted, trust_env=False),
        )


class _Bounded(httpx2.AsyncHTTPTransport):
    """Reads no more of an answer than a provider has to say."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > ANSWER_BYTES_MAX:
                raise httpx2.ReadError(f"an answer is larger than {ANSWER_BYTES_MAX} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def object_of(url: str, data: bytes) -> dict[str, Any]:
    """What a provider published there. Raises ProviderDown."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProviderDown(f"{url}: {_shortly(error)}") from None
    if not isinstance(found, dict):
        raise ProviderDown(f"{url}: this is no JSON object")
    return found


def _shortly(error: Exception) -> str:
    """The kind of trouble, without what the answer said."""
    return (
        f"{type(error).__name__}: {str(error)[:200]}"
        if isinstance(error, JoseError)
        else type(error).__name__
    )
