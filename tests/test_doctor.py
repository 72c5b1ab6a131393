"""`potluck doctor` against real coordinators and a real worker: what works is said to, and what does not, with what to
do; the exit code is the verdict."""

import http.server
import json
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fixtures_pool import COMMAND, RealPool, free_port, opened

from potluck.cli.main import run

pytestmark = pytest.mark.processes
Told = dict[str, tuple[str, str, str]]
Doctor = Callable[..., tuple[int, Told]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """A coordinator without workers."""
    with opened(tmp_path_factory.mktemp("pool")) as made:
        yield made


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """On a machine without a worker: the exit code, and (state, sentence, remedy) of each topic, the last of several."""
    for name in [name for name in os.environ if name.startswith("POTLUCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))

    def ask(*arguments: str) -> tuple[int, Told]:
        code = run(["doctor", *arguments, "-o", "json"])
        said = json.loads(capsys.readouterr().out)
        assert said["worker"] is None
        assert (code == 0) == said["good"]
        found = {f["topic"]: (f["state"], f["sentence"], f["remedy"]) for f in said["findings"]}
        assert all(remedy for state, _, remedy in found.values() if state != "ok"), "each has what to do"
        return code, found

    return ask


def test_from_here_to_a_pool_without_workers(
    pool: RealPool, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = pool.member("alice")
    code, told = doctor("--url", pool.url, "--key", alice.key)
    assert code == 0
    assert {topic: state for topic, (state, *_) in told.items()} == {
        "settings": "ok", "network": "ok", "tls": "ok", "clock": "ok", "key": "ok", "version": "ok",
        "models": "advice", "balance": "ok",
    }  # fmt: skip
    assert "is alice's (member) in potluck, for inference, read, account." in told["key"][1]
    assert "No worker serves any of the pool's" in told["models"][1]
    assert "1,000.00 to spend" in told["balance"][1]
    assert run(["doctor", "--url", pool.url, "--key", alice.key]) == 0
    out = capsys.readouterr().out
    assert "ok      clock: This machine's clock agrees with the pool's.\n" in out
    assert "advice  models: No worker serves any" in out
    assert out.endswith("All of it works.\n")


def test_who_has_nothing_to_spend_hears_how_to_earn(pool: RealPool, doctor: Doctor) -> None:
    code, told = doctor("--url", pool.url, "--key", pool.member("poor", credit_line=0).key)
    assert (code, told["balance"][0]) == (0, "advice")
    assert "share a machine" in told["balance"][2]


def test_a_key_that_is_wrong_missing_narrow_or_soon_over(pool: RealPool, doctor: Doctor) -> None:
    """The first two are problems; with a narrow key some things are just not told."""
    code, told = doctor("--url", pool.url)
    assert (code, told["key"][0], list(told)[-1]) == (1, "problem", "key")
    code, told = doctor("--url", pool.url, "--key", "sk-potluck-" + "x" * 43)
    assert (code, told["key"][0], list(told)[-1]) == (1, "problem", "key")
    assert "potluck login" in told["key"][2]
    body = {"name": "ci", "scopes": ["inference"], "expires_s": 3 * 86_400}
    key = pool.member("bob").api("POST", "/pool/v1/keys", json=body).raise_for_status().json()["key"]
    code, told = doctor("--url", pool.url, "--key", key)
    assert code == 0
    assert told["key"][0] == "advice"
    assert told["key"][1].startswith("It ends in 3 days, on ")
    assert told["balance"][:2] == ("ok", told["balance"][1])
    assert told["balance"][1].startswith("It is not told: ")


def test_another_version_and_a_key_file_that_others_read(
    pool: RealPool,
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = tmp_path / "alice.key"
    key.write_text(pool.member("alice").key, encoding="utf-8")
    assert run(["login", pool.url, "--key", f"file:{key}"]) == 0
    monkeypatch.setattr("potluck.version.version", lambda: "99.1.0")
    (tmp_path / "client.toml").chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IROTH)
    capsys.readouterr()
    code, told = doctor()
    assert code == 1
    assert told["settings"][0] == "problem"
    assert told["settings"][2].startswith("chmod 600")
    assert told["version"][0] == "advice"
    assert told["version"][1].startswith("Potluck is 99.1.0 here and ")


def test_nobody_at_the_address(doctor: Doctor) -> None:
    code, told = doctor("--url", f"http://127.0.0.1:{free_port()}", "--key", "sk-potluck-" + "x" * 43)
    assert (code, list(told)) == (1, ["settings", "network"])
    assert "cannot be reached: connection refused" in told["network"][1]


@contextmanager
def answering(status: int, body: bytes, *, ahead: timedelta = timedelta()) -> Iterator[str]:
    """A server that answers this to everything, with its own clock; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            del timestamp
            return format_datetime(datetime.now(UTC) + ahead, usegmt=True)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_pool_that_is_not_ready_and_what_is_no_pool(doctor: Doctor) -> None:
    with answering(503, b'{"status": "not ready", "why": "it cannot write its books"}') as url:
        code, told = doctor("--url", url)
        assert (code, told["network"][0]) == (1, "problem")
        assert told["network"][1] == f"{url} answers, but it is not ready: it cannot write its books."
    with answering(200, b"<h1>Welcome to nginx!</h1>") as url:
        code, told = doctor("--url", url)
        assert code == 1
        assert "is no JSON. Is this the address of a Potluck pool?" in told["network"][1]


@pytest.mark.parametrize(("minutes", "words"), [(10, "behind"), (-10, "ahead of")])
def test_clocks_that_do_not_agree(doctor: Doctor, minutes: int, words: str) -> None:
    with answering(200, b'{"status": "ready"}', ahead=timedelta(minutes=minutes)) as url:
        _, told = doctor("--url", url)
    assert told["clock"][0] == "advice"
    assert f"s {words} the pool's" in told["clock"][1]


def certificate(folder: Path, days: int) -> tuple[Path, Path]:
    """Self-signed, for 127.0.0.1, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pool")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days, hours=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    places = folder / "cert.pem", folder / "key.pem"
    places[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    encoding = serialization.Encoding.PEM
    places[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return places


def test_tls_with_an_authority_of_its_own(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its certificate nobody goes on; with it, the doctor sees that it ends soon."""
    cert, key = certificate(tmp_path, days=5)
    pool = RealPool(tmp_path / "pool")
    pool.start_coordinator("--tls-cert", str(cert), "--tls-key", str(key))
    try:
        url, secret = f"https://127.0.0.1:{pool.http_port}", pool.admin.key
        code, told = doctor("--url", url, "--key", secret)
        assert (code, list(told)) == (1, ["settings", "network"])
        assert "its certificate is not trusted here" in told["network"][1]
        assert "SSL_CERT_FILE=ca.pem" in told["network"][2]
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        code, told = doctor("--url", url, "--key", secret)
        assert code == 0
        assert told["tls"][:2] == ("advice", "The pool's certificate is good for 5 more days.")
        assert told["key"][0] == "ok"
    finally:
        pool.close()


def test_the_worker_on_this_machine_is_looked_at_too(real_pool: RealPool) -> None:
    """Whether it runs and reaches the pool over both ways, and what the machine has; then, when it has stopped."""
    process = real_pool.add_emulator("rig", "bob")
    bob = real_pool.member("bob")
    environment = {
        **os.environ, "POTLUCK_HOME": str(real_pool.folder / "rig"), "POTLUCK_URL": real_pool.url,
        "POTLUCK_KEY": bob.key,
    }  # fmt: skip

    def ask() -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [*COMMAND, "doctor", "-o", "json"],
            env=environment, capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) == said["good"], done.stderr
        return done.returncode, said

    def sharing() -> bool:
        """As the worker itself says, which may lag behind what the pool says of it."""
        return bool(ask()[1]["worker"][0]["sentence"] == "The worker is sharing.")

    real_pool.until(sharing, "the worker to say that it shares", process)
    _, said = ask()
    pooled = {f["topic"]: (f["state"], f["sentence"]) for f in said["findings"]}
    assert pooled["models"] == ("ok", f"1 of {models(real_pool)} models are served now: emulator-small.")
    worker = [(f["topic"], f["state"], f["sentence"]) for f in said["worker"]]
    assert worker[0] == ("worker", "ok", "The worker is sharing.")
    assert [state for topic, state, _ in worker if topic == "network"] == ["ok", "ok"]
    assert {"gpu", "memory", "disk"} <= {topic for topic, *_ in worker}
    process.stop()
    code, said = ask()
    first = said["worker"][0]
    assert (first["topic"], first["state"]) == ("worker", "advice")
    assert "potluck worker start" in first["remedy"]
    assert (code == 0) == all(f["state"] != "problem" for f in [*said["findings"], *said["worker"]])


def models(pool: RealPool) -> int:
    return len(pool.admin.api("GET", "/pool/v1/models").json())
