"""Files through the official client, over a real pool and a real disk: what is kept, refused, shared and deleted."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fixtures_api import Stand, error_of, open_stand

from coordinator.artifacts import RESERVE_BYTES
from coordinator.core.jobs import MemberId
from coordinator.files import DAY_S, UPLOADS_AT_ONCE, Files
from coordinator.records import FileId, Purpose, Scope

DATA = b'{"custom_id": "1"}\n' * 5_000
BOUNDARY = "somewhere"


def stored(stand: Stand) -> list[str]:
    return stand.context.files.artifacts.names()


def left_behind(stand: Stand) -> list[str]:
    """Everything in the store's folder, half written things included."""
    folder = stand.context.files.artifacts.folder
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def upload(stand: Stand, data: bytes = DATA, by: str = "alice", **more: Any) -> Any:
    return await stand.openai(by).files.create(file=("day.jsonl", data), purpose="batch", **more)


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    said = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {said}\r\n\r\n".encode() + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
PURPOSE = part("purpose", b"batch")
FILE = part("file", DATA, "day.jsonl")


async def post(stand: Stand, body: Any, by: str = "alice") -> httpx2.Response:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return await stand.ask("POST", "/v1/files", by=by, content=body, headers=headers)


async def test_a_file_goes_up_and_comes_back(stand: Stand) -> None:
    """create, retrieve, list, content (whole and by Range), delete: all of the official client's calls."""
    files = stand.openai().files
    made = await upload(stand)
    assert (made.object, made.purpose, made.filename, made.bytes) == ("file", "batch", "day.jsonl", len(DATA))
    assert made.id.startswith("file-")
    assert made.status == "processed"
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == 30 * DAY_S
    assert await files.retrieve(made.id) == made
    assert [file.id async for file in files.list()] == [made.id]
    assert (await files.wait_for_processing(made.id)).id == made.id
    content = await files.content(made.id)
    assert content.content == DATA
    assert content.response.headers["content-disposition"] == 'attachment; filename="day.jsonl"'
    some = await stand.ask("GET", f"/v1/files/{made.id}/content", headers={"range": "bytes=10-19"})
    assert (some.status_code, some.content) == (206, DATA[10:20])
    assert stored(stand) == [hashlib.sha256(DATA).hexdigest()]
    gone = await files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    assert stored(stand) == []
    with pytest.raises(openai.NotFoundError):
        await files.retrieve(made.id)


@pytest.mark.usefixtures("on_both")
async def test_lists_have_pages_an_order_and_a_filter(stand: Stand) -> None:
    made = []
    for number in range(5):
        stand.clock.ahead_s += number % 2  # some in the same second, some not
        made.append((await upload(stand, b"%d" % number)).id)
    await stand.context.files.add(
        stand.members["alice"].id,
        Purpose.BATCH_OUTPUT,
        "out.jsonl",
        await stand.context.files.put(bytes_of(b"x")),
    )
    files = stand.openai().files
    batch = [file.id async for file in files.list(purpose="batch", limit=2)]
    assert batch == made[::-1]
    assert [file.id async for file in files.list(purpose="batch", order="asc", limit=2)] == made
    page = await files.list(order="asc", limit=4, after=made[0])
    assert ([file.id for file in page.data[:3]], page.has_more) == (made[1:4], True)
    for wrong in ("limit=0", "order=up", "purpose=vision", "after=file-none", "offset=3"):
        refused = await stand.ask("GET", f"/v1/files?{wrong}")
        assert (refused.status_code, error_of(refused)["param"]) == (400, wrong.partition("=")[0])


async def bytes_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.usefixtures("on_both")
async def test_the_same_bytes_are_stored_once_until_the_last_file_goes(stand: Stand) -> None:
    """Of two members, who know nothing of each other."""
    mine, again, theirs = await upload(stand), await upload(stand), await upload(stand, by="bob")
    assert len({mine.id, again.id, theirs.id}) == 3
    assert len(stored(stand)) == 1
    for call in ("retrieve", "content", "delete"):
        with pytest.raises(openai.NotFoundError):
            await getattr(stand.openai("bob").files, call)(mine.id)
    await stand.openai().files.delete(mine.id)
    await stand.openai().files.delete(again.id)
    assert (await stand.openai("bob").files.content(theirs.id)).content == DATA
    await stand.openai("bob").files.delete(theirs.id)
    assert stored(stand) == []


async def test_too_large_over_the_quota_and_a_full_disk(tmp_path: Path) -> None:
    """Each says so with its numbers, and leaves nothing behind."""
    async with open_stand(tmp_path, file_bytes_max=100_000, files_bytes_max=250_000) as stand:
        with pytest.raises(openai.APIStatusError, match="larger than 100,000 bytes") as large:
            await upload(stand, bytes(300_000))  # Content-Length says so
        assert (large.value.status_code, large.value.code) == (413, "file_too_large")
        silent = await post(
            stand, bytes_of(PURPOSE, part("file", bytes(100_001), "x"), END)
        )  # only the bytes do
        assert (silent.status_code, error_of(silent)["code"]) == (413, "file_too_large")
        assert left_behind(stand) == []
        for number in range(2):
            await upload(stand, b"%d" % number + bytes(99_999))
        with pytest.raises(openai.PermissionDeniedError, match="200,000 of 250,000 bytes") as full:
            await upload(stand, bytes(60_000))
        assert full.value.code == "file_quota_exceeded"
        assert isinstance(full.value.body, dict)
        said = full.value.body["potluck"]
        assert (said["used"], said["limit"]) == (200_000, 250_000)
        assert len(left_behind(stand)) == 2
        artifacts = stand.context.files.artifacts
        object.__setattr__(artifacts, "free_bytes", lambda _: RESERVE_BYTES)
        with pytest.raises(openai.InternalServerError, match="disk is full") as disk:
            await upload(stand, b"x", by="bob")
        assert (disk.value.status_code, disk.value.code) == (507, "storage_full")
        assert len(left_behind(stand)) == 2


async def test_a_file_is_never_whole_in_memory(stand: Stand) -> None:
    size, piece = 48 << 20, bytes(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        yield PURPOSE + part("file", b"", "zeros")[:-2]
        for _ in range(size // len(piece)):
            yield piece
        yield b"\r\n" + END

    tracemalloc.start()
    try:
        made = await post(stand, body())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.json()["bytes"] == size
    assert peak < size / 3


@pytest.mark.usefixtures("on_both")
async def test_what_is_used_is_not_deleted_and_what_is_old_is(stand: Stand) -> None:
    """Retention: the default, a member's own, and never under something that is open."""
    used: dict[FileId, str] = {}

    async def user(file_id: FileId) -> str | None:
        return used.get(file_id)

    files = stand.context.files
    files.users.append(user)
    short = await upload(stand, b"short", expires_after={"anchor": "created_at", "seconds": 3_600})
    kept, plain = await upload(stand, b"kept"), await upload(stand, b"plain")
    used[FileId(kept.id)] = "batch_1"
    with pytest.raises(openai.ConflictError, match="used by batch_1") as busy:
        await stand.openai().files.delete(kept.id)
    assert busy.value.code == "file_in_use"
    assert await files.sweep() == 0
    stand.clock.ahead_s = 3_601
    with pytest.raises(openai.NotFoundError):
        await stand.openai().files.retrieve(short.id)  # before anything swept
    assert [file.id async for file in stand.openai().files.list()] == [plain.id, kept.id]
    assert await files.sweep() == 1
    stand.clock.ahead_s = 30 * DAY_S + 1
    assert await files.sweep() == 1
    assert stored(stand) == [hashlib.sha256(b"kept").hexdigest()]
    used.clear()
    assert await files.sweep() == 1
    assert stored(stand) == []


WRONG_FORMS: list[tuple[bytes, str | None]] = [
    (FILE + END, "purpose"),
    (PURPOSE + END, "file"),
    (part("purpose", b"assistants") + FILE + END, "purpose"),
    (FILE + part("purpose", b"batch_output") + END, "purpose"),
    (PURPOSE + part("colour", b"red") + FILE + END, "colour"),
    (PURPOSE + FILE + FILE + END, None),
    (PURPOSE + PURPOSE + FILE + END, None),
    (PURPOSE + FILE, None),  # cut off
    (b"no form at all", None),
    (part("purpose", b"b" * 2_000) + FILE + END, None),
    (b"".join(part(f"f{n}", b"") for n in range(20)) + FILE + END, None),
    (PURPOSE + part("file", DATA, "../") + END, "file"),
    (PURPOSE + part("file", DATA, "a\tb") + END, "file"),
    (PURPOSE + part("expires_after[anchor]", b"now") + FILE + END, "expires_after.anchor"),
    (PURPOSE + part("expires_after[seconds]", b"9") + FILE + END, "expires_after.anchor"),
    (
        PURPOSE
        + part("expires_after[anchor]", b"created_at")
        + part("expires_after[seconds]", b"9")
        + FILE
        + END,
        "expires_after.seconds",
    ),
]


async def test_a_form_that_is_wrong_is_refused_and_nothing_kept(stand: Stand) -> None:
    for body, param in WRONG_FORMS:
        response = await post(stand, body)
        assert (response.status_code, error_of(response)["param"]) == (400, param)
        assert left_behind(stand) == []


async def test_a_form_may_have_its_fields_behind_the_file(stand: Stand) -> None:
    """As curl sends what was named in that order; of a path only the name is kept."""
    made = await post(stand, part("file", DATA, "C:\\\\data\\\\day.jsonl") + PURPOSE + END)
    assert (made.status_code, made.json()["filename"]) == (200, "day.jsonl")
    plain = await stand.ask("POST", "/v1/files", json={"purpose": "batch"})
    assert (plain.status_code, error_of(plain)["code"]) == (415, "unsupported_media_type")


async def test_a_member_has_few_uploads_at_once(stand: Stand) -> None:
    """The others go on; whoever hangs up leaves nothing behind."""
    begun, goes_on = [asyncio.Event() for _ in range(UPLOADS_AT_ONCE)], asyncio.Event()

    async def body(number: int) -> AsyncIterator[bytes]:
        yield PURPOSE + part("file", b"%d" % number, "x")[:-2]
        begun[number].set()
        await goes_on.wait()
        yield b"\r\n" + END

    tasks = [asyncio.create_task(post(stand, body(number))) for number in range(UPLOADS_AT_ONCE)]
    await asyncio.gather(*(event.wait() for event in begun))
    counted = stand.context.files._uploading
    async with asyncio.timeout(20):
        while counted[stand.members["alice"].id] < UPLOADS_AT_ONCE:  # noqa: ASYNC110 -- it has no event
            await asyncio.sleep(0)
    with pytest.raises(openai.RateLimitError) as many:
        await upload(stand)
    assert many.value.code == "too_many_uploads"
    await upload(stand, by="bob")
    tasks[0].cancel()
    goes_on.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.result().status_code for task in tasks[1:]] == [200, 200, 200]
    async with asyncio.timeout(20):
        while counted:  # noqa: ASYNC110 -- likewise
            await asyncio.sleep(0)
    assert all(len(name) == 64 for name in left_behind(stand))


async def test_what_a_key_may_do(stand: Stand) -> None:
    """`read` sees, `inference` uploads and deletes, `account` alone does neither."""
    made = await upload(stand)
    store, alice = stand.context.store, stand.members["alice"].id
    for scope, sees, changes in (
        (Scope.READ, 200, 403),
        (Scope.ACCOUNT, 403, 403),
        (Scope.INFERENCE, 200, 200),
    ):
        _, key = await store.create_key(alice, f"only {scope}", stand.clock.now(), scopes=frozenset({scope}))
        for path in ("/v1/files", f"/v1/files/{made.id}", f"/v1/files/{made.id}/content"):
            assert (await stand.ask("GET", path, by=key)).status_code == sees
        assert (await post(stand, PURPOSE + FILE + END, by=key)).status_code == changes
        assert (await stand.ask("DELETE", f"/v1/files/{made.id}", by=key)).status_code == changes


async def test_training_data_is_read_before_it_is_taken(stand: Stand) -> None:
    """Broken JSON on line 7 is said with its line and column, and three examples are too few."""
    good = b'{"prompt": "2 + 2 =", "completion": " 4"}\n'
    files = stand.openai().files
    with pytest.raises(openai.BadRequestError, match="line 7, column 12: it is not JSON") as broken:
        await files.create(file=("day.jsonl", good * 6 + b'{"prompt": }\n' + good * 6), purpose="fine-tune")
    assert broken.value.code == "invalid_file"
    assert isinstance(broken.value.body, dict)
    (problem,) = broken.value.body["potluck"]["problems"]
    assert (problem["line"], problem["column"]) == (7, 12)
    with pytest.raises(openai.BadRequestError, match="at least 10 examples"):
        await files.create(file=("day.jsonl", good * 3), purpose="fine-tune")
    assert left_behind(stand) == []
    assert (await files.create(file=("day.jsonl", good * 10), purpose="fine-tune")).purpose == "fine-tune"


async def test_a_start_removes_what_a_crash_left(stand: Stand) -> None:
    """Bytes without a record, and those half written; what has a record stays."""
    made = await upload(stand)
    files = stand.context.files
    await files.put(bytes_of(b"nobody's"))
    (files.artifacts.folder / ".incoming-0123").write_bytes(b"half")
    opened = await Files.open(files.store, files.settings, files.now)
    assert left_behind(stand) == [hashlib.sha256(DATA).hexdigest()]
    assert opened.path(await opened.get(stand.members["alice"].id, made.id)).read_bytes() == DATA


async def test_what_the_pool_makes_is_never_refused_for_the_quota(tmp_path: Path) -> None:
    async with open_stand(tmp_path, files_bytes_max=10) as stand:
        files, member = stand.context.files, MemberId(stand.members["alice"].id)
        made = await files.add(member, Purpose.BATCH_OUTPUT, "out.jsonl", await files.put(bytes_of(DATA)))
        assert (await stand.openai().files.content(made.id)).content == DATA
        with pytest.raises(openai.PermissionDeniedError, match=r"No room is left"):
            await upload(stand, b"1")
