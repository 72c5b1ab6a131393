"""Malformed requests: each is refused with an OpenAI-shaped 4xx, none with a 500, and none costs memory."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_api import MODEL, Stand, chat_body, error_of, open_stand
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.body import DEPTH_MAX, parse_object
from coordinator.api.errors import ApiError
from coordinator.api.pool_account import JobRequest
from coordinator.api.pool_enrolment import EnrolRequest, JoinTokenRequest, LeaveRequest, RenewRequest
from coordinator.api.pool_keys import KeyRequest
from coordinator.api.pool_members import MemberRequest
from coordinator.api.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from coordinator.api.schema import Schema, validated

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


async def _post(stand: Stand, content: bytes, **headers: str) -> Any:
    return await stand.ask("POST", CHAT, content=content, headers={**JSON, **headers})


NO_JSON = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b'{"temperature": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": 1e999}',
    b'{"model": "\\ud800"}',
    b'{"model": "\xff"}',
    b'{"model": "a", "model": "b"}',
    b'{"a": {"b": 1, "b": 2}}',
    b'{"a": ' + b"[" * 100_000,
    b'{"a": ' + b'{"a":' * DEPTH_MAX + b"1" + b"}" * (DEPTH_MAX + 1),
    b"\x1f\x8b\x08",
    "{'model': 'x'}".encode("utf-16"),
]


async def test_what_is_no_strict_json_is_refused(stand: Stand) -> None:
    for raw in NO_JSON:
        response = await _post(stand, raw)
        assert response.status_code == 400, raw[:50]
        assert error_of(response)["code"] == "invalid_json", raw[:50]


def test_nesting_up_to_the_limit_is_read() -> None:
    deepest: Any = 1
    for _ in range(DEPTH_MAX - 1):
        deepest = [deepest]
    assert parse_object(json.dumps({"a": deepest}).encode()) == {"a": deepest}
    with pytest.raises(ApiError, match="nested deeper"):
        parse_object(json.dumps({"a": [deepest]}).encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(), c, max_size=3),
        max_leaves=15,
    )
)
def test_ordinary_json_comes_out_as_it_went_in(value: Any) -> None:
    assert parse_object(json.dumps({"value": value}).encode()) == {"value": value}


async def test_other_content_types_and_encodings_are_refused(stand: Stand) -> None:
    """A form that a web page could send without asking is never taken for JSON."""
    content = json.dumps(chat_body()).encode()
    for headers in ({"content-type": "text/plain"}, {"content-type": ""}, {"content-encoding": "gzip"}):
        response = await _post(stand, content, **headers)
        assert response.status_code == 415
        error_of(response)
    assert (
        await _post(stand, content, **{"content-type": "application/json; charset=utf-8"})
    ).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_comes_in(tmp_path: Path, chunked: bool) -> None:
    """10 MB against a limit of 2 MiB: 413, whether the length is declared or not."""
    large = json.dumps(chat_body(user="x" * 10_000_000)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 65_536):
            yield large[start : start + 65_536]

    async with open_stand(tmp_path, body_bytes_max=2 * 1024 * 1024) as stand:
        content: Any = pieces() if chunked else large
        response = await stand.ask("POST", CHAT, content=content, headers=JSON)
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
        assert (await stand.chat()).status_code == 200


async def test_a_client_that_waits_for_continue_is_told_at_once(stand: Stand) -> None:
    """It has not sent the body yet, so nothing of it is read."""
    host, _, port = stand.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {stand.keys['alice']}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()


async def test_a_long_prompt_is_counted_off_the_event_loop_and_refused_with_numbers(stand: Stand) -> None:
    prompt = "word " * 200_000
    response = await stand.chat(messages=[{"role": "user", "content": prompt}], max_tokens=5)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "Shorten the prompt" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "numbers", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "w " * 9_000}]}, ("8,192", "9,0"), "messages"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "w"}], "max_tokens": 8_193},
            ("8,192", "8,193"),
            "messages",
        ),
        ("/v1/completions", {"prompt": [[1], [7] * 8_192]}, ("8,192", "has 8,192 and 1 more"), "prompt"),
        ("/v1/completions", {"prompt": "a b", "max_tokens": 10**9}, ("8,192", "1,000,000,000"), "prompt"),
        ("/v1/embeddings", {"input": [1] * 9_000}, ("8,192", "9,000"), "input"),
    ],
)
async def test_too_long_for_the_context_is_said_with_both_numbers(
    stand: Stand, path: str, body: dict[str, Any], numbers: tuple[str, str], param: str
) -> None:
    """What there is and what was asked for, on the quote's route as on the model's; the last that fits is served."""
    response = await stand.ask("POST", path, json={"model": MODEL, **body})
    kind = {CHAT: "chat", "/v1/completions": "completion", "/v1/embeddings": "embedding"}[path]
    wanted = {"kind": kind, "request": {"model": MODEL, **body}}
    inside = await stand.ask("POST", "/pool/v1/jobs", json=wanted)
    for refused, where in ((response, param), (inside, f"request.{param}")):
        assert refused.status_code == 400
        error = error_of(refused)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in {param, where}
        assert all(number in error["message"] for number in numbers), error["message"]
    assert (
        await stand.ask("POST", "/v1/completions", json={"model": MODEL, "prompt": [7] * 8_191})
    ).is_success
    assert stand.available()["reserved"] == 0


async def test_a_prompt_of_10_mb(tmp_path: Path) -> None:
    """As the pool comes, it is more than a body may have. Where the owner allows it, it is counted and refused with
    both numbers, while others are served; nothing is held for it either way."""
    prompt = "word " * 2_000_000
    async with open_stand(tmp_path) as stand:
        refused = await stand.chat(messages=[{"role": "user", "content": prompt}])
        assert (refused.status_code, error_of(refused)["code"]) == (413, "request_too_large")
        assert "4,194,304 bytes" in error_of(refused)["message"]
    (tmp_path / "generous").mkdir()
    async with open_stand(tmp_path / "generous", body_bytes_max=2**24) as stand:
        large = asyncio.create_task(stand.chat(messages=[{"role": "user", "content": prompt}]))
        assert (await stand.ask("POST", CHAT, by="bob", json=chat_body())).status_code == 200
        refused = await large
        assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")
        assert "8,192" in error_of(refused)["message"]
        assert "2,000,0" in error_of(refused)["message"]
        assert stand.available()["reserved"] == 0


WRONG_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 5}, "invalid_type", "model"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "hi"}, "invalid_type", "messages"),
    ({"messages": ["hi"]}, "invalid_type", "messages.0"),
    ({"messages": [{"role": "user"}]}, "invalid_value", "messages.0"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "invalid_value",
        "messages.0.tool_call_id",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "unsupported_parameter",
        "messages.0.content",
    ),
    ({"temperature": "hot"}, "invalid_type", "temperature"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"n": 9}, "invalid_value", "n"),
    ({"n": 1.5}, "invalid_type", "n"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": "x" * 257}, "invalid_value", "stop"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
    ({"presence_penalty": 0.5}, "unsupported_parameter", "presence_penalty"),
    ({"presence_penalty": False}, "unsupported_parameter", "presence_penalty"),
    ({"logit_bias": {"1": 5}}, "unsupported_parameter", "logit_bias"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"seed": 2**64}, "invalid_type", "seed"),
    ({"potluck": {"workers": []}}, "invalid_type", "potluck.workers"),
    ({"potluck": {"worker": "mine"}}, "unknown_parameter", "potluck.worker"),
    ({"max_tokens": 9_000}, "context_length_exceeded", "messages"),
]


async def test_a_wrong_parameter_is_refused_by_name(stand: Stand) -> None:
    for change, code, param in WRONG_CHAT:
        response = await stand.chat(**change)
        assert response.status_code == 400, change
        error = error_of(response)
        assert (error["code"], error["param"]) == (code, param)
        assert error["message"].endswith((".", "?"))


async def test_a_number_beyond_64_bits_is_called_one(stand: Stand) -> None:
    """JSON has no bounds for numbers; whoever sends too large an integer is not told that it is none."""
    assert "fits into 64 bits" in error_of(await stand.chat(seed=10**22))["message"]
    made = await stand.ask("POST", "/pool/v1/members", by="admin", json={"name": "x", "credit_line": 10**22})
    assert "fits into 64 bits" in error_of(made)["message"]


WRONG_OTHERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/completions", {"prompt": []}, "invalid_type", "prompt"),
    ("/v1/completions", {"prompt": ["a", 1]}, "invalid_type", "prompt"),
    ("/v1/completions", {"prompt": [[]]}, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [-1]}, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [True]}, "invalid_type", "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 17}, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": "a", "best_of": 2}, "unsupported_parameter", "best_of"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
    ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
    ("/v1/completions", {"prompt": [1], "echo": True}, "unsupported_parameter", "echo"),
    ("/v1/completions", {}, "missing_required_parameter", "prompt"),
    ("/v1/embeddings", {"input": ""}, "invalid_value", "input"),
    ("/v1/embeddings", {"input": ["a", ""]}, "invalid_value", "input"),
    ("/v1/embeddings", {"input": "a", "dimensions": 8}, "unsupported_parameter", "dimensions"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
    ("/v1/embeddings", {"input": [1] * 9_000}, "context_length_exceeded", "input"),
    ("/v1/embeddings", {"input": [[1], [1] * 9_000]}, "context_length_exceeded", "input.1"),
]


async def test_wrong_prompts_and_inputs(stand: Stand) -> None:
    for path, body, code, param in WRONG_OTHERS:
        response = await stand.ask("POST", path, json={"model": MODEL, **body})
        assert response.status_code == 400, body
        error = error_of(response)
        assert (error["code"], error["param"]) == (code, param)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["mine", "user", "text", "float", MODEL, 0, 1, -1, 10**9]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "workers", "include_usage", "name", "x"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
VALID: list[tuple[type[Schema], dict[str, Any]]] = [
    (
        ChatRequest,
        {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "stream": True, "stop": ["a"]},
    ),
    (
        ChatRequest,
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "a"}],
            "tools": [TOOL],
            "tool_choice": "auto",
        },
    ),
    (CompletionRequest, {"model": MODEL, "prompt": "a", "n": 2, "echo": True}),
    (EmbeddingRequest, {"model": MODEL, "input": ["a", "b"]}),
    (JobRequest, {"kind": "chat", "request": {}}),
    (MemberRequest, {"name": "a"}),
    (KeyRequest, {"name": "a"}),
    (JoinTokenRequest, {"uses": 1}),
    (EnrolRequest, {"token": "a", "name": "a", "csr": "a", "receipt_key": "a"}),
    (RenewRequest, {"worker_id": "a", "csr": "a", "at": 1, "signature": "a"}),
    (LeaveRequest, {"worker_id": "a", "at": 1, "signature": "a"}),
]


def _refused(check: Callable[[], object]) -> bool:
    """Whether the check passed, or ended in a 400 that can be sent; any other end is a mistake and raised."""
    try:
        check()
    except ApiError as error:
        return error.status == 400 and bool(error.message) and bool(json.dumps(error.body))
    return True


@given(st.data())
def test_any_value_in_any_field_is_accepted_or_refused_by_name(data: st.DataObject) -> None:
    """No schema ever fails in another way than with a 400."""
    schema, body = data.draw(st.sampled_from(VALID))
    name = data.draw(st.sampled_from([*schema.model_fields, *schema.harmless, "strange"]))
    changed = {**copy.deepcopy(body), name: data.draw(VALUES)}
    assert _refused(lambda: validated(schema, changed))


@given(st.sampled_from(VALID), st.integers(0, 200), st.binary(max_size=3))
def test_any_damage_to_the_bytes_is_accepted_or_refused(
    case: tuple[type[Schema], dict[str, Any]], at: int, bytes_in: bytes
) -> None:
    schema, body = case
    raw = json.dumps(body).encode()
    at %= len(raw)
    assert _refused(lambda: validated(schema, parse_object(raw[:at] + bytes_in + raw[at + len(bytes_in) :])))


async def test_hundreds_of_wrong_bodies_over_the_wire_never_give_a_500(tmp_path: Path) -> None:
    """Every POST route, each field in turn replaced by each kind of value: always an answer, never our mistake."""
    strange: list[Any] = [None, True, -1, 2**70, "\x00", [[]], {"a": [None]}]
    routes = {
        "/v1/chat/completions": VALID[0],
        "/v1/completions": VALID[2],
        "/v1/embeddings": VALID[3],
        "/pool/v1/quote": VALID[4],
        "/pool/v1/jobs": VALID[4],
        "/pool/v1/members": VALID[5],
        "/pool/v1/keys": VALID[6],
        "/pool/v1/join-tokens": VALID[7],
        "/pool/v1/enrol": VALID[8],
        "/pool/v1/renew": VALID[9],
        "/pool/v1/leave": VALID[10],
    }
    async with open_stand(tmp_path, requests_per_minute=10_000) as stand:
        for path, (schema, body) in routes.items():
            for name in schema.model_fields:
                for value in strange:
                    by = "admin" if path == "/pool/v1/members" else "alice"
                    response = await stand.ask("POST", path, by=by, json={**body, name: value})
                    assert response.status_code < 500, (path, name, value, response.text)
                    if response.status_code >= 400:
                        error_of(response)
        assert (await stand.http.get(f"{stand.url}/readyz")).status_code == 200
        assert stand.available()["reserved"] == 0


IS_JSON = "application/json"
IS_FORM = "multipart/form-data; boundary=x"
BROKEN: list[tuple[str | None, bytes]] = [
    (None, b""),
    ("text/plain", b"{}"),
    (f"{IS_JSON}; charset=utf-16", b"\xff\xfe{\x00}\x00"),
    (IS_JSON, b""),
    (IS_JSON, b"null"),
    (IS_JSON, b'{"n": 1e999, "seed": 99999999999999999999999, "at": -1e308}'),
    (IS_JSON, b'{"model": "\\ud800", "name": "\\udfff"}'),
    (IS_JSON, b'{"a": ' * 5_000 + b"1" + b"}" * 5_000),
    (IS_JSON, b'{"name": "' + b"9" * 100_000 + b'", "amount": ' + b"9" * 5_000 + b"}"),
    ("multipart/form-data", b"--x--"),
    (IS_FORM, b"--x\r\n\r\n\x00\r\n--x--"),
    (
        IS_FORM,
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="\xff\x00"\r\n\r\n\x00\r\n--x--\r\n',
    ),
]


async def test_no_route_fails_whatever_bytes_it_is_sent(tmp_path: Path) -> None:
    """Each that reads a body refuses each of these; the stand looks at the shape of what it says."""
    async with open_stand(tmp_path, requests_per_minute=2**31) as stand:
        described = (await stand.http.get(f"{stand.url}/openapi.json")).json()
        reading = [
            (method.upper(), path)
            for path, operations in described["paths"].items()
            for method, operation in operations.items()
            if "requestBody" in operation
        ]
        assert len(reading) > 30
        for method, path in reading:
            for kind, body in BROKEN:
                headers = {} if kind is None else {"content-type": kind}
                answer = await stand.ask(method, path, by="admin", content=body, headers=headers)
                refused = 400 <= answer.status_code < 500 and answer.status_code != 429
                assert refused, (method, path, kind, body[:40], answer.text)
