"""Too many, too slow, too much: who is turned away or cut off, is told when to come back, and harms nobody else."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fixtures_sessions
import grpc
import openai
import pytest
from fixtures_sessions import MODEL, SERVED, TOKENS, WAIT_S, House, delta, frame, open_house

from coordinator import connections, sessions
from coordinator.api import body, multipart
from coordinator.lateness import Lateness
from potluck.v1 import session_pb2

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(house: House, buffer_bytes: int = 0) -> AsyncIterator[Line]:
    """A raw connection for members; `buffer_bytes`: what its kernel takes in that is not read."""
    host, port = house.running.http.rsplit(":", 1)
    raw = socket.socket()
    if buffer_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1_024 if buffer_bytes else 1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(
    house: House, path: str, asked: dict[str, Any] | None = None, by: str = "alice", **more: str
) -> bytes:
    data = b"" if asked is None else json.dumps(asked).encode()
    headers = {
        "Host": house.running.http,
        "Authorization": f"Bearer {house.keys[by]}",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **more,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{'GET' if asked is None else 'POST'} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


async def answer(line: Line) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON."""
    async with asyncio.timeout(WAIT_S):
        head = (await line[0].readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(one.split(": ", 1) for one in head[1:] if one)
        body = await line[0].readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)


async def rest(line: Line) -> bytes:
    """Until the other side closes, whichever way."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(WAIT_S):
            return await line[0].read()
    return b""


async def refused(house: House, reason: str) -> float:
    text = (await house.api("GET", "/metrics")).text
    lines = [
        one for one in text.splitlines() if one.startswith(f'potluck_refusals_total{{reason="{reason}"}}')
    ]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


# -- more than the workers can do


async def test_a_flood_is_told_when_to_come_back_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thirty at once those are admitted that need not wait too long; they all end, nothing stays reserved, and
    who comes back when told gets in. Another member comes in all the time."""
    async with open_house(tmp_path, monkeypatch, interactive_wait_s=7.9) as house:
        worker = await house.join("rig")
        await worker.connect(slots=1)

        async def take(seconds: float) -> None:
            """It has one slot, and holds it so long."""
            assign = await worker.until("assign")
            house.clock.ahead_s += seconds
            await worker.answer(assign)

        for _ in range(3):
            asking = house.ask()
            await take(2.0)
            await asking
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": TOKENS}
        flood = [
            asyncio.create_task(house.api("POST", "/v1/chat/completions", "alice", json=asked))
            for _ in range(30)
        ]
        lives = house.running.pool.engine.lives
        await house.eventually(
            lambda: sum(task.done() for task in flood) + len(lives) == 30, "a verdict for each"
        )
        assert 2 <= len(lives) <= 6
        done = [task.result() for task in flood if task.done()]
        assert {(one.status_code, one.json()["error"]["code"]) for one in done} == {(429, "too_many_waiting")}
        told = [float(one.headers["retry-after"]) for one in done]
        assert 1 <= min(told) < max(told) <= 3.0 * (len(done) + 3), "one after another, as jobs go through"
        await house.member("carol")
        other = house.ask("carol")
        admitted = len(lives)
        await house.eventually(lambda: len(lives) == admitted + 1, "another to be let in")
        waiting = {task for task in flood if not task.done()}
        for _ in range(len(waiting) + 1):
            await take(2.0)
        assert {(await task).status_code for task in waiting} == {200}
        assert (await other).choices[0].finish_reason == "length"
        await house.settled()
        again = house.ask()
        await take(0.0)
        await again
        await house.settled()
        assert await refused(house, "too_many_waiting") == len(done)


async def test_who_is_let_in_and_then_too_poor_leaves_nothing(house: House) -> None:
    """Refused for want of credits while it would have had to wait: no trace of it stays in the line."""
    worker = await house.join("rig")
    await worker.connect(slots=1)
    await house.member("carol", credit_line=0)
    for _ in range(3):  # then it is known how long one takes
        asking = house.ask()
        await worker.answer(await worker.until("assign"))
        await asking
    running = house.ask()
    assign = await worker.until("assign")
    for _ in range(3):
        with pytest.raises(openai.APIStatusError) as caught:
            await house.ask("carol")
        assert (caught.value.status_code, caught.value.code) == (402, "insufficient_credits")
    assert not house.running.pool.engine.admission._let_in
    await worker.answer(assign)
    await running
    await house.settled()


def test_one_pause_is_not_yet_behind() -> None:
    """It is over when it is seen; only where the loop stays late, new work would make it later."""
    lateness, seen = Lateness(), []
    for late_s in (3.0, 0.0, 0.6, 0.6, 0.6, 0.0):
        lateness.saw(late_s)
        seen.append(lateness.too_late)
    assert seen == [False, False, False, False, True, False]
    assert lateness.worst_s == 3.0


async def test_a_coordinator_that_is_behind_takes_no_new_work(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all else goes on: health is told, and who looks is answered."""
    monkeypatch.setattr(Lateness, "too_late", True)
    with pytest.raises(openai.InternalServerError) as caught:
        await house.ask()
    assert (caught.value.status_code, caught.value.code) == (503, "coordinator_busy")
    assert float(caught.value.response.headers["retry-after"]) > 0
    assert (await house.get("/pool/v1/balance", "alice"))["reserved"] == 0
    assert (await house.http.get(f"{house.url}/healthz")).status_code == 200


# -- slow clients


async def test_who_does_not_read_a_stream_is_cut_off_and_pays_for_what_came(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is cancelled as when a client goes away; another member's goes on."""
    monkeypatch.setattr(connections, "UNREAD_S_MAX", 0.3)
    worker = await house.join("rig")
    await worker.connect()
    messages = [{"role": "user", "content": "a"}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 6_000, "stream": True}
    async with connected(house, buffer_bytes=4_096) as line:
        line[1].transport.pause_reading()  # type: ignore[attr-defined]  # of a socket
        line[1].write(request(house, "/v1/chat/completions", asked))
        assign = await worker.until("assign")
        sent = 0
        job_id = assign.attempt.job_id
        while sent < 5_000 and not house.no_longer(job_id):
            await worker.send(frame(assign, sent + 1, delta(sent, sent + 1)))
            sent += 1
        await house.eventually(lambda: house.no_longer(job_id), "the job to end")
        assert (await worker.until("cancel")).attempt.job_id == job_id
        other = house.ask("bob")
        await worker.answer(await worker.until("assign"))
        assert (await other).choices[0].finish_reason == "length"
    job = await house.job(job_id)
    assert (job["state"], job["attempts"][0]["tokens"] <= sent) == ("cancelled", True)
    assert 0 < job["charge"] < job["quote"]
    assert await refused(house, "slow_reader") == 1
    await house.settled()


async def test_who_goes_away_with_another_request_behind_ends_the_first(house: House) -> None:
    """Requests that were written one after another: the one that is being answered ends as if it stood alone."""
    worker = await house.join("rig")
    await worker.connect()
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": TOKENS}
    async with connected(house) as line:
        line[1].write(request(house, "/v1/chat/completions", asked) + request(house, "/pool/v1/balance"))
        assign = await worker.until("assign")
    assert (await worker.until("cancel")).attempt.job_id == assign.attempt.job_id
    assert (await house.job(assign.attempt.job_id))["state"] == "cancelled"
    await house.settled()


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHo", b"\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Who began hears so; who said nothing at all hears nothing."""
    monkeypatch.setattr(connections, "HEAD_S_MAX", 0.1)
    async with connected(house) as line:
        line[1].write(said)
        heard = await rest(line)
        assert heard.startswith(b"HTTP/1.1 408 ") if said else heard == b""
    assert await refused(house, "slow_head") >= 1


async def test_between_two_requests_a_head_has_its_time_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is kept may be idle; once a byte came, the next head is waited for no longer."""
    async with connected(house) as line:
        line[1].write(request(house, "/healthz"))
        assert (await answer(line))[0] == 200
        monkeypatch.setattr(connections, "HEAD_S_MAX", 0.1)
        line[1].write(b"GET")
        assert (await rest(line)).startswith(b"HTTP/1.1 408 ")


async def test_heads_and_trailers_have_a_limit(house: House) -> None:
    """However they come: in one endless line, or after a body."""
    async with connected(house) as line:
        line[1].write(b"GET / HTTP/1.1\r\nX: " + b"x" * (connections.HEAD_BYTES_MAX + 1))
        assert (await rest(line)).startswith(b"HTTP/1.1 431 ")
    async with connected(house) as line:
        head = request(house, "/v1/chat/completions", {}).replace(
            b"Content-Length: 2", b"Transfer-Encoding: chunked"
        )
        line[1].write(head[:-2] + b"2\r\n{}\r\n0\r\n")
        line[1].write(b"X: y\r\n" * 100_000)
        await rest(line)
    assert await refused(house, "large_head") == 2


async def test_an_upload_that_trickles_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and all together never would."""
    monkeypatch.setattr(multipart, "BODY_S_MAX", 0.3)
    monkeypatch.setattr(body, "DRAIN_S_MAX", 0.1)
    async with connected(house) as line:
        form = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "100000"}
        line[1].write(
            request(house, "/v1/files", {}, **form)[:-2] + b"--b\r\nContent-Disposition: form-data; name="
        )

        answering = asyncio.create_task(answer(line))
        while not answering.done():
            line[1].write(b"x")
            await asyncio.wait({answering}, timeout=0.05)
        status, _, said = answering.result()
    assert (status, said["error"]["code"]) == (408, "request_timeout")


# -- too many connections


async def test_beyond_the_limit_connections_are_told_so_and_health_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a reserve they are closed at once; who leaves makes room."""
    monkeypatch.setattr(connections, "RESERVE", 1)
    async with open_house(tmp_path, monkeypatch, connections_max=2) as house, connected(house) as kept:
        kept[1].write(request(house, "/pool/v1/balance"))
        assert (await answer(kept))[0] == 200
        async with connected(house) as more:
            more[1].write(request(house, "/pool/v1/balance"))
            status, headers, said = await answer(more)
            assert (status, said["error"]["code"]) == (503, "too_many_connections")
            assert (headers["retry-after"], headers["connection"]) == ("5", "close")
        async with connected(house) as third:
            third[1].write(request(house, "/healthz"))
            assert (await answer(third))[0] == 200
            async with connected(house) as beyond:
                assert await rest(beyond) == b""
        kept[1].write(request(house, "/pool/v1/balance"))
        assert (await answer(kept))[0] == 200
        assert await refused(house, "connections") >= 3


async def test_one_address_may_have_so_many_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_house(tmp_path, monkeypatch, address_connections_max=1) as house,
        connected(house) as more,
    ):
        more[1].write(request(house, "/pool/v1/balance"))
        status, headers, said = await answer(more)
        assert (status, said["error"]["code"], headers["retry-after"]) == (429, "too_many_connections", "5")


async def test_who_asks_for_another_protocol_leaves_as_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WebSocket that nobody speaks, and HTTP/2 in clear: the request is answered as it stands and the connection
    closed, so that no place stays taken."""
    wanted: dict[str, Any] = {
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "c2FtcGxl",
    }
    async with open_house(tmp_path, monkeypatch, address_connections_max=3) as house:
        for protocol in ("websocket", "websocket", "h2c", "h2c"):
            async with connected(house) as line:
                line[1].write(request(house, "/pool/v1/balance", **wanted, Upgrade=protocol))
                status, headers, _ = await answer(line)
                assert (status, headers["connection"]) == (200, "close")
                assert await rest(line) == b""
        async with connected(house) as line:
            line[1].write(request(house, "/pool/v1/balance"))
            assert (await answer(line))[0] == 200


async def test_a_body_behind_an_upgrade_is_refused_and_never_read_as_a_request(house: House) -> None:
    """The parser takes what follows for another protocol: it must neither be lost nor become a request."""
    hidden = request(house, "/pool/v1/balance")
    wanted: dict[str, Any] = {"Connection": "Upgrade", "Upgrade": "h2c", "Content-Length": str(len(hidden))}
    async with connected(house) as line:
        line[1].write(request(house, "/v1/chat/completions", {}, **wanted)[:-2])
        line[1].write(hidden)
        status, headers, said = await answer(line)
        assert (status, said["error"]["code"]) == (400, "upgrade_not_supported")
        assert headers["connection"] == "close"
        assert await rest(line) == b""


async def test_behind_a_proxy_an_address_may_have_so_many_requests_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the proxy itself wrote, which is the last; connections are all its own."""
    async with open_house(tmp_path, monkeypatch, address_connections_max=1, behind_proxy=True) as house:
        worker = await house.join("rig")
        await worker.connect()
        headers = {"x-forwarded-for": "9.9.9.9, 198.51.100.7"}
        first = house.ask(extra_headers=headers)
        assign = await worker.until("assign")
        with pytest.raises(openai.RateLimitError) as caught:
            await house.ask(extra_headers=headers)
        assert caught.value.code == "too_many_connections"
        second = house.ask(extra_headers={"x-forwarded-for": "198.51.100.7, 198.51.100.8"})
        again = await worker.until("assign")
        await worker.answer(assign)
        await worker.answer(again)
        await asyncio.gather(first, second)
        await house.settled()


# -- workers


async def test_a_worker_that_does_not_read_is_cut_off_and_its_jobs_go_on_elsewhere(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It beats all the while; what does not fit into its connection waits a moment for it, and no longer."""
    monkeypatch.setattr(sessions, "WRITE_S_MAX", 0.3)
    window = [*fixtures_sessions.OPTIONS, ("grpc.http2.bdp_probe", 0)]  # which else grows to what is sent
    monkeypatch.setattr(fixtures_sessions, "OPTIONS", window)
    deaf = await house.join("deaf")
    await deaf.connect()
    content = "word " * 1_000 + "x" * 1_500_000
    asking = [house.ask(messages=[{"role": "user", "content": content}]) for _ in range(6)]
    await house.eventually(lambda: len(deaf.seen.running) == 6, "it to have all")
    await house.honest()
    for asked in asking:
        assert (await asked).choices[0].finish_reason == "length"
    await house.eventually(lambda: not deaf.seen.connected, "it to be cut off")
    assert await refused(house, "slow_worker") == 1
    await house.settled()


async def test_a_pool_may_have_so_many_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in may come again; who is not, is told why."""
    async with open_house(tmp_path, monkeypatch, sessions_max=1) as house:
        worker, other = await house.join("rig"), await house.join("other")
        await worker.connect()
        await worker.connect()
        other.open()
        hello = session_pb2.Hello(protocol=1, models=[SERVED], slots=8)
        await other.send(session_pb2.WorkerMessage(hello=hello))
        code, why = await other.end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert why == "1 workers are connected, and this pool takes no more"
        assert await refused(house, "sessions") == 1


async def test_a_worker_may_have_so_many_streams_that_have_not_begun(house: House) -> None:
    worker = await house.join("rig")
    worker.open()
    calls = [worker.call]
    assert worker.channel is not None
    again: Any = worker.channel.stream_stream("/potluck.v1.WorkerService/Session")
    calls += [again() for _ in range(sessions.GREETING_MAX)]
    ended = [asyncio.create_task(call.code()) for call in calls]
    (first,), _ = await asyncio.wait(ended, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    assert first.result() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(one.done() for one in ended) == 1
    for call in calls:
        call.cancel()
    await asyncio.gather(*ended, return_exceptions=True)


async def test_a_worker_that_comes_and_goes_all_the_time_is_turned_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while: so much a second is forgiven."""
    monkeypatch.setattr(sessions, "COMINGS_MAX", 2)
    monkeypatch.setattr(sessions, "COMINGS_PER_S", 0.0)
    worker = await house.join("rig")
    await worker.connect()
    worker.open()
    await worker.send(session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)))
    assert (await worker.end())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
