"""A PostgreSQL server of the tests' own, and `on_both`, by which a file's tests run on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures_pool import free_port
from fixtures_store import ELSEWHERE
from sqlalchemy import make_url

from coordinator.store import Store

PASSWORD = "a@b:c/d%e"  # whatever stands in the file arrives as it is
OWNER = "postgres"  # the server refuses to run as root


@dataclass(frozen=True)
class Postgres:
    """A server of the test's own, on loopback, that asks for a password."""

    programs: Path
    folder: Path
    port: int
    durable: bool = False  # no test cuts the power

    def run(self, program: str, *arguments: str, as_owner: bool = False) -> str:
        root = os.geteuid() == 0
        done = subprocess.run(
            [self.programs / program, *arguments],
            env={**os.environ, "PGPASSFILE": str(self.folder / "pgpass"), "LC_ALL": "C.UTF-8"},
            user=OWNER if root and as_owner else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        fsync = "on" if self.durable else "off"
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync={fsync}"
        places = [f"--pgdata={self.folder / 'data'}", f"--log={self.folder / 'log'}"]
        self.run("pg_ctl", *places, f"--options={options}", "--wait", "start", as_owner=True)

    def ask(self, program: str, *arguments: str) -> str:
        return self.run(program, "--host=127.0.0.1", f"--port={self.port}", "--username=potluck", *arguments)

    def variables(self, database: str) -> dict[str, str]:
        url = f"postgresql://potluck@127.0.0.1:{self.port}/{database}"
        return {"POTLUCK_DATABASE": url, "POTLUCK_DATABASE_PASSWORD_FILE": str(self.folder / "password")}

    def url(self, database: str) -> str:
        """With the password in it."""
        plain = make_url(self.variables(database)["POTLUCK_DATABASE"])
        return plain.set(password=PASSWORD).render_as_string(hide_password=False)

    @contextlib.contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """A new one, by its name."""
        name = f"potluck_{secrets.token_hex(4)}"
        self.ask("createdb", f"--template={template}", name)
        try:
            yield name
        finally:
            self.ask("dropdb", "--force", name)


@contextlib.contextmanager
def serving(*, durable: bool = False, parent: Path | None = None) -> Iterator[Postgres]:
    """A new server, in a folder that the server's user can enter, such as pytest's own are not."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert places, "PostgreSQL is not on this machine: scripts/test says what to install"
    folder = Path(tempfile.mkdtemp(prefix="potluck-postgres-", dir=parent))
    server = Postgres(places[-1], folder, free_port(), durable)
    data = str(folder / "data")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        (folder / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
        escaped = PASSWORD.replace(":", "\\:")
        (folder / "pgpass").write_text(f"127.0.0.1:{server.port}:*:potluck:{escaped}\n", encoding="utf-8")
        (folder / "pgpass").chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(folder, OWNER)
        made = ["--username=potluck", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        server.run("initdb", f"--pgdata={data}", *made, as_owner=True)
        server.start()
        stack.callback(
            server.run, "pg_ctl", f"--pgdata={data}", "--mode=fast", "--wait", "stop", as_owner=True
        )
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> Iterator[str]:
    """A database of the present shape and nothing in it, from which others are copied."""

    async def fill(url: str) -> None:
        await (await Store.connect(url)).close()

    with postgres.database() as name:
        with asyncio.Runner() as runner:
            runner.run(fill(postgres.url(name)))
        yield name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is marked `sqlite` is about that file alone."""
    if "on_both" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("sqlite") is not None
        metafunc.parametrize("on_both", ["sqlite"] if alone else ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def on_both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The test runs twice, each time with its database in `tmp_path` or where `url_in` says; which it is."""
    kind: str = request.param
    if kind == "sqlite":
        yield kind
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database(request.getfixturevalue("postgres_template")) as name:
        (tmp_path / ELSEWHERE).write_text(server.url(name))
        yield kind
