"""A small OpenID provider as a process of its own, with real keys and signatures: `oidc_provider.py HOST:PORT`.

It conforms (discovery, JWKS, authorization code flow with PKCE, userinfo) until `POST /control` tells it a
`fault`; that and everything else a test arranges goes over the same socket.
"""

import hashlib
import hmac
import json
import secrets
import socket
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from html import escape
from typing import Any
from urllib.parse import urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT_ID, CLIENT_SECRET = "supper-club", "s3cret-of-the-club"
ASKED = ("client_id", "redirect_uri", "response_type", "scope", "state", "nonce", "code_challenge")


class ProviderApp:
    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.key = new_key()
        self.users: dict[str, dict[str, Any]] = {}
        self.redirect_uris: list[str] = []
        self.fault = ""
        self.codes: dict[str, tuple[dict[str, str], str]] = {}
        self.tokens: dict[str, str] = {}
        self.asked: list[str] = []  # paths, for tests that want to know what was asked

    async def control(self, request: Request) -> Response:
        told = await request.json()
        if told.pop("rotate", False):
            self.key = new_key()
        for name, value in told.items():
            setattr(self, name, value)
        return JSONResponse({"asked": self.asked})

    async def metadata(self, _request: Request) -> Response:
        if self.fault == "down":
            return Response("so busy", 503)
        issuer = "https://elsewhere.example" if self.fault == "other issuer" else self.issuer
        return JSONResponse(
            {
                "issuer": issuer,
                "authorization_endpoint": self.issuer + "/authorize",
                "token_endpoint": self.issuer + "/token",
                "jwks_uri": self.issuer + "/jwks",
                "userinfo_endpoint": self.issuer + "/userinfo",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                # As a careless provider would: what a client takes is its own decision.
                "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def jwks(self, _request: Request) -> Response:
        self.asked.append("/jwks")
        return JSONResponse(KeySet([self.key]).as_dict(private=False))

    async def authorize(self, request: Request) -> Response:
        """The page on which somebody says who they are; a wrong client is never sent anywhere."""
        given = dict(request.query_params)
        right = (
            given.get("client_id") == CLIENT_ID
            and given.get("redirect_uri") in self.redirect_uris
            and given.get("response_type") == "code"
            and "openid" in given.get("scope", "").split()
            and given.get("code_challenge_method") == "S256"
            and all(given.get(name) for name in ASKED)
        )
        if not right:
            return Response("this is no request of a client that is known here", 400)
        hidden = "".join(
            f'<input type="hidden" name="{name}" value="{escape(given[name])}">' for name in ASKED
        )
        return HTMLResponse(
            f'<!doctype html><html lang="en"><title>Example</title><link rel="icon" href="data:,"><h1>Example</h1>'
            f'<form method="post">{hidden}<label>User <input name="user"></label>'
            "<button>Continue</button><button name=deny value=1>Deny</button></form>"
        )

    async def consent(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        said: dict[str, str] = {"state": form["state"], "iss": self.issuer}
        if form.get("deny"):
            said["error"] = "access_denied"
        else:
            code = said["code"] = secrets.token_urlsafe(16)
            self.codes[code] = (form, form["user"])
        return RedirectResponse(f"{form['redirect_uri']}?{urlencode(said)}", 302)

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        if request.headers.get("authorization") != CREDENTIALS:
            return JSONResponse({"error": "invalid_client"}, 401)
        asked, user = self.codes.pop(form.get("code", ""), ({}, ""))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = encoded(digest)
        if challenge != asked.get("code_challenge") or form.get("redirect_uri") != asked.get("redirect_uri"):
            return JSONResponse({"error": "invalid_grant"}, 400)
        access = secrets.token_urlsafe(16)
        self.tokens[access] = user
        return JSONResponse(
            {
                "access_token": access,
                "token_type": "Bearer",
                "expires_in": 60,
                "id_token": self.id_token(user, asked["nonce"]),
            }
        )

    def id_token(self, user: str, nonce: str) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.users[user]["sub"],
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
        }
        wrong: dict[str, dict[str, Any]] = {
            "wrong nonce": {"nonce": "another"},
            "wrong aud": {"aud": "another-client"},
            "wrong iss": {"iss": "https://elsewhere.example"},
            "two audiences": {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"},
            "expired": {"iat": now - 7_200, "exp": now - 3_600},
            "from tomorrow": {"iat": now + 86_400, "exp": now + 90_000},
        }
        claims |= wrong.get(self.fault, {})
        if self.fault in {"no nonce", "no exp", "no sub"}:
            del claims[self.fault.removeprefix("no ")]
        header, key = {"alg": "RS256", "kid": self.key.kid}, self.key
        if self.fault in {"alg none", "alg hs256"}:
            body = jwt.encode(header, claims, key).split(".")[1]
            signed = f"{encoded(json.dumps({'alg': self.fault[4:].replace('hs', 'HS'), 'kid': key.kid}).encode())}.{body}"
            public = key.as_pem(private=False)  # what everybody knows, as if it were a secret
            mac = encoded(hmac.digest(public, signed.encode(), "sha256"))
            return f"{signed}.{mac if self.fault == 'alg hs256' else ''}"
        if self.fault == "another key":
            stranger = new_key()
            return jwt.encode(header, claims, stranger)
        return jwt.encode(header, claims, key)

    async def userinfo(self, request: Request) -> Response:
        user = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if user is None:
            return Response(status_code=401)
        told = dict(self.users[user])
        return JSONResponse({**told, "sub": "somebody-else"} if self.fault == "other userinfo" else told)


def encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "kid": secrets.token_hex(4)}, auto_kid=False)


CREDENTIALS = "Basic " + b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()


def app(issuer: str) -> Starlette:
    provider = ProviderApp(issuer)
    return Starlette(
        routes=[
            Route("/control", provider.control, methods=["POST"]),
            Route("/.well-known/openid-configuration", provider.metadata),
            Route("/jwks", provider.jwks),
            Route("/authorize", provider.authorize),
            Route("/authorize", provider.consent, methods=["POST"]),
            Route("/token", provider.token, methods=["POST"]),
            Route("/userinfo", provider.userinfo),
        ]
    )


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    listening = socket.create_server((host, int(port)))
    print("open", flush=True)
    config = uvicorn.Config(app(f"http://{sys.argv[1]}"), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])
