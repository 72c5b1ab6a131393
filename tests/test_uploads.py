"""Uploads in parts through the official client, over a real pool and a real disk: what is kept, refused, found again
and swept."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fixtures_api import Stand, error_of, open_stand

from coordinator.files import DAY_S, UPLOADS_AT_ONCE, Files
from coordinator.records import Scope
from coordinator.uploads.upload import OPEN_MAX

DATA = bytes(range(256)) * 1_000
PARTS = [DATA[:100_000], DATA[100_000:200_000], DATA[200_000:]]
GOOD = b'{"prompt": "2 + 2 =", "completion": " 4"}\n'
BOUNDARY = "somewhere"


def stored(stand: Stand) -> list[str]:
    """Everything in the store's folder, half written things included."""
    folder = stand.context.files.artifacts.folder
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def digests(*pieces: bytes) -> list[str]:
    return sorted(hashlib.sha256(piece).hexdigest() for piece in pieces)


async def begin(stand: Stand, size: int = len(DATA), by: str = "alice", **more: Any) -> Any:
    asked = {"filename": "day.jsonl", "purpose": "batch", "mime_type": "application/jsonl", **more}
    return await stand.openai(by).uploads.create(bytes=size, **asked)


async def send(stand: Stand, upload: Any, *pieces: bytes, by: str = "alice") -> list[str]:
    parts = stand.openai(by).uploads.parts
    return [(await parts.create(upload.id, data=piece)).id for piece in pieces]


async def shown(stand: Stand, upload: Any, by: str = "alice") -> dict[str, Any]:
    body: dict[str, Any] = (await stand.ask("GET", f"/v1/uploads/{upload.id}", by=by)).json()
    return body


def form(name: str, value: bytes) -> bytes:
    said = f'form-data; name="{name}"; filename="upload"'
    return f"--{BOUNDARY}\r\nContent-Disposition: {said}\r\n\r\n".encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def post(stand: Stand, upload: Any, body: Any, by: str = "alice") -> httpx2.Response:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return await stand.ask("POST", f"/v1/uploads/{upload.id}/parts", by=by, content=body, headers=headers)


@pytest.mark.usefixtures("on_both")
async def test_the_official_client_sends_a_file_in_parts(stand: Stand, tmp_path: Path) -> None:
    """`upload_file_chunked` from the disk and from memory, with its checksum; parts leave nothing behind."""
    path = tmp_path / "day.jsonl"
    path.write_bytes(DATA)
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    client = stand.openai()
    said: Any = {"mime_type": "application/jsonl", "purpose": "batch", "part_size": 60_000, "md5": md5}
    for file in ({"file": path}, {"file": DATA, "filename": "memory.jsonl", "bytes": len(DATA)}):
        done = await client.uploads.upload_file_chunked(**file, **said)
        assert (done.status, done.bytes, done.object) == ("completed", len(DATA), "upload")
        assert done.file is not None
        assert (done.file.filename, done.file.bytes) == (done.filename, len(DATA))
        assert (await client.files.content(done.file.id)).content == DATA
    assert stored(stand) == digests(DATA)


async def test_parts_may_come_together_and_in_any_order(stand: Stand) -> None:
    """The order is what `complete` says; the file lasts as long as was asked."""
    upload = await begin(stand, expires_after={"anchor": "created_at", "seconds": 7_200})
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3_600)
    sent = await asyncio.gather(*(send(stand, upload, piece) for piece in reversed(PARTS)))
    ids = [part for (part,) in reversed(sent)]
    done = await stand.openai().uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 7_200
    assert (await stand.openai().files.content(done.file.id)).content == DATA


@pytest.mark.usefixtures("on_both")
async def test_a_part_that_is_sent_again_is_the_same_part(stand: Stand) -> None:
    """A lost answer costs nothing; a file whose parts are alike is made of one part, named as often as it stands."""
    upload = await begin(stand, 3 * 1_000)
    first, again = await send(stand, upload, bytes(1_000), bytes(1_000))
    assert first == again
    said = await shown(stand, upload)
    assert said["potluck"] == {
        "bytes": 1_000,
        "parts": [{"id": first, "bytes": 1_000, "sha256": digests(bytes(1_000))[0]}],
    }
    done = await stand.openai().uploads.complete(upload.id, part_ids=[first] * 3)
    assert done.file is not None
    assert (await stand.openai().files.content(done.file.id)).content == bytes(3_000)
    assert stored(stand) == digests(bytes(3_000))


async def test_what_was_done_is_found_again(stand: Stand) -> None:
    """create under its key, complete, cancel: the second time each finds what the first one did."""
    body = {"filename": "a", "purpose": "batch", "bytes": 5, "mime_type": "text/jsonl"}
    headers = {"idempotency-key": "mine"}
    made = [(await stand.ask("POST", "/v1/uploads", json=body, headers=headers)).json() for _ in range(2)]
    assert made[0] == made[1]
    other = await stand.ask("POST", "/v1/uploads", json={**body, "bytes": 6}, headers=headers)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_conflict")
    uploads = stand.openai().uploads
    ids = [(await uploads.parts.create(made[0]["id"], data=b"12345")).id]
    twice = await asyncio.gather(*(uploads.complete(made[0]["id"], part_ids=ids) for _ in range(2)))
    assert twice[0].file is not None
    assert twice[0] == twice[1]
    assert [file.id async for file in stand.openai().files.list()] == [twice[0].file.id]
    with pytest.raises(openai.ConflictError, match=twice[0].file.id):
        await uploads.cancel(made[0]["id"])
    with pytest.raises(openai.ConflictError, match="was completed"):
        await uploads.parts.create(made[0]["id"], data=b"6")
    await stand.openai().files.delete(twice[0].file.id)
    with pytest.raises(openai.NotFoundError):
        await uploads.complete(made[0]["id"], part_ids=ids)
    assert (await shown(stand, twice[0]))["file"] is None
    given_up = await begin(stand)
    await send(stand, given_up, PARTS[0])
    assert [(await uploads.cancel(given_up.id)).status for _ in range(2)] == ["cancelled", "cancelled"]
    with pytest.raises(openai.ConflictError, match="was cancelled"):
        await uploads.complete(given_up.id, part_ids=ids)
    assert stored(stand) == []


async def test_what_is_incomplete_or_wrong_makes_no_file(stand: Stand) -> None:
    """Parts that are missing, unknown, another upload's, in another order; the parts stay, and the upload goes on."""
    upload, other = await begin(stand), await begin(stand)
    ids, (foreign,) = await send(stand, upload, *PARTS), await send(stand, other, b"else")
    uploads = stand.openai().uploads
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    for part_ids, code, param in (
        (ids[:2], "upload_incomplete", "part_ids"),
        ([*ids, ids[0]], "upload_incomplete", "part_ids"),
        ([foreign, *ids], "part_not_found", "part_ids"),
        ([ids[1], ids[0], ids[2]], "md5_mismatch", "md5"),
        ([], "invalid_value", "part_ids"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await uploads.complete(upload.id, part_ids=part_ids, md5=md5)
        assert (refused.value.code, refused.value.param) == (code, param)
    with pytest.raises(openai.BadRequestError, match="md5"):
        await uploads.complete(upload.id, part_ids=ids, md5="d41d8cd9")
    with pytest.raises(
        openai.BadRequestError, match=r"would have 256,001 bytes, and the file shall have 256,000"
    ):
        await send(stand, upload, b"x")
    assert stored(stand) == digests(*PARTS, b"else")
    assert (await uploads.complete(upload.id, part_ids=ids, md5=md5.upper())).status == "completed"


async def test_training_data_is_read_before_it_is_taken(stand: Stand) -> None:
    """As an ordinary upload is, over the seams of parts; what was refused may still be cancelled."""
    bad = GOOD * 6 + b'{"prompt": }\n' + GOOD * 6
    upload = await begin(stand, len(bad), purpose="fine-tune")
    ids = await send(stand, upload, bad[:100], bad[100:])
    with pytest.raises(openai.BadRequestError, match="line 7, column 12: it is not JSON") as broken:
        await stand.openai().uploads.complete(upload.id, part_ids=ids)
    assert broken.value.code == "invalid_file"
    assert stored(stand) == digests(bad[:100], bad[100:])
    await stand.openai().uploads.cancel(upload.id)
    assert stored(stand) == []


WRONG_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"purpose": "batch_output"}, "purpose"),
    ({"purpose": "assistants"}, "purpose"),
    ({"filename": "../"}, "filename"),
    ({"filename": "a\tb"}, "filename"),
    ({"bytes": 0}, "bytes"),
    ({"bytes": "9"}, "bytes"),
    ({"bytes": 1.5}, "bytes"),
    ({"mime_type": ""}, "mime_type"),
    ({"colour": "red"}, "colour"),
    ({"expires_after": {"anchor": "created_at", "seconds": 9}}, "expires_after.seconds"),
    ({"expires_after": {"anchor": "now", "seconds": 9_000}}, "expires_after.anchor"),
]


async def test_a_request_that_is_wrong_is_refused_by_name(stand: Stand) -> None:
    right = {"filename": "a", "purpose": "batch", "bytes": 5, "mime_type": "text/jsonl"}
    for wrong, param in WRONG_REQUESTS:
        response = await stand.ask("POST", "/v1/uploads", json={**right, **wrong})
        assert (response.status_code, error_of(response)["param"]) == (400, param), wrong
    upload = await begin(stand)
    wrong_forms: list[tuple[bytes, str | None]] = [
        (form("data", b"") + END, "data"),
        (form("file", b"1") + END, "data"),
        (form("data", b"1") + form("colour", b"red") + END, "colour"),
        (form("data", b"1"), None),  # cut off
    ]
    for body, name in wrong_forms:
        response = await post(stand, upload, body)
        assert (response.status_code, error_of(response)["param"]) == (400, name)
    large = await post(stand, upload, form("data", bytes((64 << 20) + 1)) + END)
    assert (large.status_code, error_of(large)["code"]) == (413, "part_too_large")
    assert stored(stand) == []


async def test_an_open_upload_counts_as_the_file_that_it_will_be(tmp_path: Path) -> None:
    """Its bytes are set aside until it ends; then what it made counts, or nothing."""
    async with open_stand(tmp_path, file_bytes_max=100, files_bytes_max=250) as stand:
        with pytest.raises(openai.APIStatusError, match="larger than 100 bytes") as large:
            await begin(stand, 101)
        assert (large.value.status_code, large.value.code) == (413, "file_too_large")
        files, uploads = stand.openai().files, stand.openai().uploads
        one, two = await begin(stand, 100), await begin(stand, 100)
        with pytest.raises(openai.PermissionDeniedError, match="200 of 250 bytes") as full:
            await begin(stand, 51)
        assert full.value.code == "file_quota_exceeded"
        with pytest.raises(openai.PermissionDeniedError, match="50 bytes that are left"):
            await files.create(file=("x", bytes(51)), purpose="batch")
        await begin(stand, 100, by="bob")
        await uploads.complete(one.id, part_ids=await send(stand, one, bytes(100)))
        with pytest.raises(openai.PermissionDeniedError):
            await begin(stand, 51)
        await uploads.cancel(two.id)
        await files.create(file=("x", bytes(100)), purpose="batch")
        last = await begin(stand, 50)
        stand.clock.ahead_s = 3_601
        assert (await shown(stand, last))["status"] == "expired"
        await files.create(file=("x", bytes(50)), purpose="batch")


async def test_a_member_has_few_open_uploads_and_few_parts_at_once(stand: Stand) -> None:
    made = [await begin(stand, 1) for _ in range(OPEN_MAX)]
    with pytest.raises(openai.RateLimitError, match="Complete or cancel one") as many:
        await begin(stand, 1)
    assert many.value.response.headers["x-should-retry"] == "false"
    await begin(stand, 1, by="bob")
    await stand.openai().uploads.cancel(made[0].id)
    await begin(stand, 1)
    begun, goes_on = [asyncio.Event() for _ in range(UPLOADS_AT_ONCE)], asyncio.Event()

    async def body(number: int) -> AsyncIterator[bytes]:
        yield form("data", b"1")[:-2]
        begun[number].set()
        await goes_on.wait()
        yield b"\r\n" + END

    tasks = [asyncio.create_task(post(stand, made[n + 1], body(n))) for n in range(UPLOADS_AT_ONCE)]
    await asyncio.gather(*(event.wait() for event in begun))
    counted = stand.context.files._uploading
    async with asyncio.timeout(20):
        while counted[stand.members["alice"].id] < UPLOADS_AT_ONCE:  # noqa: ASYNC110 -- it has no event
            await asyncio.sleep(0)
    with pytest.raises(openai.RateLimitError):
        await send(stand, made[5], b"1")
    goes_on.set()
    assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}
    assert stored(stand) == digests(b"1")


async def test_time_ends_what_nobody_goes_on_with(stand: Stand) -> None:
    """Each part renews it; what is swept leaves no bytes, still says so for a day, and then is forgotten."""
    upload, kept = await begin(stand), await begin(stand)
    await send(stand, upload, PARTS[0])
    sweep = stand.context.uploads.sweep
    stand.clock.ahead_s = 3_000
    await send(stand, kept, PARTS[1])
    assert await sweep() == 0
    stand.clock.ahead_s = 3_601
    with pytest.raises(openai.ConflictError, match="has expired"):
        await send(stand, upload, PARTS[1])
    with pytest.raises(openai.ConflictError, match="has expired"):
        await stand.openai().uploads.complete(upload.id, part_ids=["part_1"])
    assert (await stand.openai().uploads.cancel(upload.id)).status == "expired"
    assert await sweep() == 1
    assert stored(stand) == digests(PARTS[1])
    assert (await shown(stand, upload))["status"] == "expired"
    assert 6_600 <= (await shown(stand, kept))["expires_at"] - kept.created_at < 6_660, (
        "the clock goes on, too"
    )
    stand.clock.ahead_s = 3_601 + DAY_S
    assert await sweep() == 1
    assert (await stand.ask("GET", f"/v1/uploads/{upload.id}")).status_code == 404
    assert stored(stand) == []


async def test_a_start_keeps_the_parts_and_they_go_on(stand: Stand) -> None:
    """Bytes of parts have an owner as those of files do; deleting a file with the same bytes takes nothing away."""
    upload = await begin(stand)
    ids = await send(stand, upload, *PARTS)
    same = await stand.openai().files.create(file=("x", PARTS[0]), purpose="batch")
    await stand.openai().files.delete(same.id)
    files = stand.context.files
    await Files.open(files.store, files.settings, files.now)
    assert stored(stand) == digests(*PARTS)
    assert (await stand.openai().uploads.complete(upload.id, part_ids=ids)).status == "completed"


async def test_others_uploads_are_not_there_and_what_a_key_may_do(stand: Stand) -> None:
    """`read` sees, `inference` uploads, `account` alone does neither."""
    upload = await begin(stand)
    for call in (
        send(stand, upload, b"1", by="bob"),
        stand.openai("bob").uploads.complete(upload.id, part_ids=["x"]),
        stand.openai("bob").uploads.cancel(upload.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    assert (await stand.ask("GET", f"/v1/uploads/{upload.id}", by="bob")).status_code == 404
    store, alice = stand.context.store, stand.members["alice"].id
    for scope, sees, changes in (
        (Scope.READ, 200, 403),
        (Scope.ACCOUNT, 403, 403),
        (Scope.INFERENCE, 200, 200),
    ):
        _, key = await store.create_key(alice, f"only {scope}", stand.clock.now(), scopes=frozenset({scope}))
        assert (await stand.ask("GET", f"/v1/uploads/{upload.id}", by=key)).status_code == sees
        assert (await post(stand, upload, form("data", b"1") + END, by=key)).status_code == changes
        assert (await stand.ask("POST", f"/v1/uploads/{upload.id}/cancel", by=key)).status_code == changes
