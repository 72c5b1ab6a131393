"""What every request meets first and last: host, origin, headers, ids, and errors that nobody expected."""

from pathlib import Path

import pytest
import structlog
from fixtures_api import Stand, error_of, open_stand

from coordinator import views


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8420", "LOCALHOST"])
async def test_loopback_names_are_answered(stand: Stand, host: str) -> None:
    assert (await stand.http.get(f"{stand.url}/healthz", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::1", "", "192.168.1.5"])
async def test_other_names_are_refused(stand: Stand, host: str) -> None:
    """A name that resolves to loopback is how a web page reaches a service on one's own machine."""
    response = await stand.http.get(f"{stand.url}/healthz", headers={"host": host})
    assert response.status_code == 403
    assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:3000", 200), ("https://evil.example", 403), ("null", 403), ("http://[", 403)],
)
async def test_origins(stand: Stand, origin: str, status: int) -> None:
    response = await stand.http.get(f"{stand.url}/healthz", headers={"origin": origin})
    assert response.status_code == status


async def test_the_public_host_is_answered(tmp_path: Path) -> None:
    async with open_stand(tmp_path, public_host="pool.example.org") as stand:
        for host, status in (("pool.example.org", 200), ("evil.example.org", 403)):
            response = await stand.http.get(f"{stand.url}/healthz", headers={"host": host})
            assert response.status_code == status


async def test_security_headers_are_on_every_answer(stand: Stand) -> None:
    """Errors too."""
    for path in ("/healthz", "/nowhere", "/v1/models", "/docs"):
        headers = (await stand.http.get(stand.url + path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"].startswith("req_")


async def test_unknown_paths_and_methods_have_openai_errors(stand: Stand) -> None:
    unknown = await stand.http.get(f"{stand.url}/v1/nothing")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "unknown_url")
    wrong = await stand.http.delete(f"{stand.url}/v1/models")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, POST"),
        ("/v1/files/file-x", "DELETE, GET"),
        ("/pool/v1/invites/accept", "POST"),
        ("/credits", "GET"),
    ],
)
async def test_a_path_tells_all_its_methods(stand: Stand, path: str, allowed: str) -> None:
    """Not but those of the route that the router looked at first."""
    refused = await stand.http.request("OPTIONS", stand.url + path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


async def test_a_mistake_of_ours_is_a_sentence_with_an_id(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees a traceback; the log has it under the id that the answer names."""

    def broken(*_: object) -> None:
        raise RuntimeError("a secret path /home/x")

    monkeypatch.setattr(views, "status", broken)
    with structlog.testing.capture_logs() as logs:
        response = await stand.ask("GET", "/pool/v1/status")
    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "internal_error"
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text
    [line] = [line for line in logs if line["action"] == "request_failed"]
    assert line["request"] == response.headers["x-request-id"]


async def test_books_that_cannot_be_written_are_nobodys_mistake(stand: Stand) -> None:
    """503 and when to come back, whatever was asked, and no word of a path; afterwards the same request works."""
    key = (await stand.ask("POST", "/pool/v1/keys", json={"name": "old"})).json()["id"]

    async def read_only(on: bool) -> None:
        async with stand.context.store._writer.connect() as connection:  # no transaction: it could not begin
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await (await raw.execute(f"PRAGMA query_only = {int(on)}")).close()

    asked: list[tuple[str, str, dict[str, object] | None]] = [
        ("POST", "/pool/v1/members", {"name": "carol"}),
        ("POST", "/pool/v1/keys", {"name": "new"}),
        ("POST", "/pool/v1/join-tokens", {}),
        ("DELETE", f"/pool/v1/keys/{key}", None),
        ("DELETE", f"/pool/v1/workers/{stand.worker}", None),
    ]
    await read_only(True)
    for method, path, body in asked:
        with structlog.testing.capture_logs() as logs:
            refused = await stand.ask(method, path, by="admin", json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_unavailable"), path
        assert int(refused.headers["retry-after"]) > 0
        assert "readonly" not in refused.text
        [line] = [line for line in logs if line["action"] == "storage_failed"]
        assert line["request"] == refused.headers["x-request-id"]
    await read_only(False)
    for method, path, body in asked:
        assert (await stand.ask(method, path, by="admin", json=body)).status_code < 300, path


async def test_the_front_door_leads_to_the_sign_in(stand: Stand) -> None:
    """The address alone, typed into a browser, ends at a page."""
    response = await stand.http.get(f"{stand.url}/", follow_redirects=True)
    assert response.status_code == 200
    assert response.url.path == "/sign-in"


async def test_operations_need_no_key(stand: Stand) -> None:
    """Alive, ready, and described; the page has no script and fetches nothing."""
    assert (await stand.http.get(f"{stand.url}/healthz")).json() == {"status": "ok"}
    assert (await stand.http.get(f"{stand.url}/readyz")).json() == {"status": "ready"}
    described = (await stand.http.get(f"{stand.url}/openapi.json")).json()
    assert "/v1/chat/completions" in described["paths"]
    assert "temperature" in described["components"]["schemas"]["ChatRequest"]["properties"]
    page = (await stand.http.get(f"{stand.url}/docs")).text
    assert "/pool/v1/enrol" in page
    assert "<script" not in page
    assert "http" not in page.split("</style>")[0]


async def test_not_ready_while_the_books_cannot_be_written(stand: Stand) -> None:
    """The reason is for people; details such as paths stay in the log."""
    stand.ticker.trouble = "no room in /home/x"
    response = await stand.http.get(f"{stand.url}/readyz")
    assert response.status_code == 503
    assert "/home" not in response.text
    stand.ticker.trouble = ""
    stand.context.closing.set()
    assert (await stand.http.get(f"{stand.url}/readyz")).status_code == 503


async def test_every_parameter_that_is_described_is_known(stand: Stand) -> None:
    """And what is said of its values holds: the largest and each word that it may be are taken."""
    described = (await stand.http.get(f"{stand.url}/openapi.json")).json()
    asked = 0
    for path, operations in described["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", []):
            schema = parameter["schema"]
            for value in schema.get("enum", [schema["maximum"]] if "maximum" in schema else []):
                if parameter["in"] == "query":
                    answer = await stand.ask("GET", path, by="admin", params={parameter["name"]: value})
                    assert answer.status_code in (200, 404), (path, parameter["name"], value, answer.text)
                    asked += 1
    assert asked > 50


async def test_every_reference_of_the_description_leads_somewhere(stand: Stand) -> None:
    described = (await stand.http.get(f"{stand.url}/openapi.json")).json()
    schemas = described["components"]["schemas"]

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for child in node.values() for found in references(child)]
        return [found for child in node for found in references(child)] if isinstance(node, list) else []

    for reference in references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas
