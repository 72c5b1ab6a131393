"""The coordinator's settings: order, origin, and sentences for what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from coordinator.settings import PREFIX, Settings, SettingsError, split_address


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    (tmp_path / "coordinator").mkdir()
    return tmp_path


def write(home: Path, text: str) -> None:
    (home / "coordinator" / "coordinator.toml").write_text(text)


def test_flag_before_variable_before_file_before_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, 'pool_name = "file"\nfee_permille = 1\nrequests_per_minute = 5\n')
    monkeypatch.setenv("POTLUCK_FEE_PERMILLE", "2")
    monkeypatch.setenv("POTLUCK_REQUESTS_PER_MINUTE", "6")
    monkeypatch.setenv("POTLUCK_QUEUE_JOBS_MAX", "")  # empty is not given
    settings = Settings.load({"requests_per_minute": 7})
    found = {
        name: (getattr(settings, name), settings.origin(name))
        for name in ("pool_name", "fee_permille", "requests_per_minute", "queue_jobs_max", "home")
    }
    assert found == {
        "pool_name": ("file", "file"),
        "fee_permille": (2, "variable"),
        "requests_per_minute": (7, "flag"),
        "queue_jobs_max": (10_000, "default"),
        "home": (home, "variable"),
    }
    assert Settings(home=home).pool_name == "file"


def test_defaults_are_those_of_the_design(home: Path) -> None:
    settings = Settings.load({})
    assert (settings.http, settings.grpc) == ("127.0.0.1:8420", "127.0.0.1:8421")
    assert settings.default_credit_line == 1_000 * 1_000_000
    assert (settings.fee_permille, settings.prompt_weight_permille) == (20, 250)
    assert settings.default_max_tokens == 1_024
    assert settings.database_url == f"sqlite:///{(home / 'coordinator' / 'potluck.db').as_posix()}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('pool_nam = "x"', r"coordinator.toml has a setting `pool_nam`, which does not exist. Did you mean `pool_name`"),
        ("[fees]\nx = 1", "has a setting `fees`"),
        ('home = "/x"', "has a setting `home`"),
        ("zzz = 1", "Remove it"),
        ("this is no toml", "cannot be read"),
        ("fee_permille = 1001", r"`fee_permille` in .*coordinator.toml cannot be used: .* less than or equal to 1000"),
        ('trust = "nobody"', "`trust` in .* should be 'friends'"),
        ('http = "0.0.0.0:80"', "would carry API keys in clear"),
        ("x" * (1 << 20) + "y", "is larger than"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_said(home: Path, text: str, sentence: str) -> None:
    write(home, text)
    with pytest.raises(SettingsError, match=sentence):
        Settings.load({})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"http": "8420"}, "the flag --http cannot be used: give HOST:PORT"),
        ({"http": ":8420"}, "give HOST:PORT"),
        ({"http": "::1:8420"}, r"\[::1\]:8420"),
        ({"grpc": "127.0.0.1:65536"}, "the flag --grpc .* 0 to 65535"),
        ({"grpc": "127.0.0.1:x"}, "0 to 65535"),
        ({"database": "nonsense"}, "the flag --database .* sqlite:////path"),
        ({"pool_name": "a\nb"}, "the flag --pool-name"),
        ({"tls_cert": "/nowhere"}, "together or not at all"),
        ({"tls_cert": "/nowhere", "tls_key": "/nowhere"}, "the TLS file /nowhere does not exist"),
        ({"nonsense": 1}, "the flag --nonsense"),
    ],
)
def test_a_flag_that_cannot_be_used_is_said(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings.load(flags)


def test_a_variable_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_WAIT_FOR_WORKER_S", "soon")
    with pytest.raises(SettingsError, match="the variable POTLUCK_WAIT_FOR_WORKER_S cannot be used"):
        Settings.load({})


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.8.8:1", "localhost:80", "[::1]:80"])
def test_loopback_needs_no_tls(address: str) -> None:
    assert Settings.load({"http": address}).http == address


def test_other_addresses_need_tls_or_a_proxy(tmp_path: Path) -> None:
    for address in ("0.0.0.0:8420", "[::]:8420", "10.0.0.1:80", "pool.example:80", "localhost.example:80"):
        with pytest.raises(SettingsError, match="--behind-proxy"):
            Settings.load({"http": address})
        assert Settings.load({"http": address, "behind_proxy": True}).behind_proxy
    for name in ("cert", "key"):
        (tmp_path / name).write_text("pem")
    Settings.load({"http": "0.0.0.0:8420", "tls_cert": tmp_path / "cert", "tls_key": tmp_path / "key"})
    assert split_address("[::1]:80") == ("::1", 80)


def test_the_view_masks_secrets_and_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_DATABASE", "postgresql://me:hunter2@host/db?password=hunter2")
    view = Settings.load({}).view()
    assert "hunter2" not in json.dumps(view)
    assert view["database"] == {"value": "postgresql://me:***@host/db?password=hidden", "origin": "variable"}
    assert set(view) == set(Settings.model_fields)
    monkeypatch.setenv("POTLUCK_DATABASE", "postgresql://me:hunter2@host:port/db")
    with pytest.raises(SettingsError) as caught:
        Settings.load({})
    assert "hunter2" not in str(caught.value)


def test_the_databases_password_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers are handed secrets; whatever stands in it arrives as it is, and no view shows it."""
    path = tmp_path / "password"
    path.write_text("hunter2@/:%\n")
    monkeypatch.setenv("POTLUCK_DATABASE", "postgresql://me@host/db")
    monkeypatch.setenv("POTLUCK_DATABASE_PASSWORD_FILE", str(path))
    settings = Settings.load({})
    assert make_url(settings.database_url).password == "hunter2@/:%"
    assert settings.view()["database"]["value"] == "postgresql://me:***@host/db"
    assert "hunter2" not in str(settings.view())
    path.unlink()
    with pytest.raises(SettingsError, match="database_password_file cannot be read"):
        _ = settings.database_url
