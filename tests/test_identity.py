"""Join tokens find every typing mistake; identities keep their keys to themselves."""

import stat
import string
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from potluck.home import home, model_cache, write_atomic, write_secret
from potluck.identity import (
    IdentityError,
    JoinToken,
    TokenError,
    WorkerIdentity,
    fingerprint_of,
    renewal_message,
)

tokens = st.builds(
    JoinToken, st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16).map(bytes.hex)
)


def certificate(name: str = "pool") -> bytes:
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    builder = builder.serial_number(7).not_valid_before(datetime.now(UTC))
    signed = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1)).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


@given(tokens)
def test_a_token_comes_back_from_its_text(token: JoinToken) -> None:
    assert JoinToken.parse(f"  {token}\n") == token
    assert len(str(token)) == 63


@given(tokens, st.integers(0, 62), st.sampled_from(string.printable.strip() + "éа٣"))
def test_every_single_character_change_is_recognised(token: JoinToken, at: int, character: str) -> None:
    text = str(token)
    changed = text[:at] + character + text[at + 1 :]
    if changed == text:
        return
    with pytest.raises(TokenError, match=r"mistyped|not a join token"):
        JoinToken.parse(changed)


def test_every_single_character_change_of_one_token_is_recognised_exhaustively() -> None:
    text = str(JoinToken(bytes(range(16)), "0123456789abcdef" * 2))
    for at in range(len(text)):
        for character in string.ascii_letters + string.digits + "-_ .":
            if character != text[at]:
                with pytest.raises(TokenError):
                    JoinToken.parse("x" if not text else text[:at] + character + text[at + 1 :])


@given(tokens, st.integers(0, 61))
def test_swapped_neighbours_are_recognised(token: JoinToken, at: int) -> None:
    text = str(token)
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if swapped != text:
        with pytest.raises(TokenError):
            JoinToken.parse(swapped)


@pytest.mark.parametrize("text", ["", "pl1_", "pl2_" + "a" * 59, "x" * 10_000, "sk-potluck-abc"])
def test_what_is_no_token_gets_a_sentence(text: str) -> None:
    with pytest.raises(TokenError, match="not a join token"):
        JoinToken.parse(text)


def test_a_token_knows_its_own_pool_only() -> None:
    mine, other = certificate(), certificate()
    token = JoinToken.create(fingerprint_of(mine))
    token.check_pool(mine)
    with pytest.raises(TokenError, match="another pool"):
        token.check_pool(other)
    with pytest.raises(TokenError, match="no certificate"):
        token.check_pool(b"<html>")


def test_a_printed_token_object_does_not_tell_the_secret() -> None:
    token = JoinToken(b"0123456789abcdef", "00" * 16)
    assert "0123456789abcdef" not in repr(token)
    assert "0123456789abcdef" not in token.digest


def test_an_identity_survives_on_disk_closed_to_others(tmp_path: Path) -> None:
    made = WorkerIdentity.create(tmp_path / "worker")
    loaded = WorkerIdentity.load(tmp_path / "worker")
    assert loaded.receipt_public_key() == made.receipt_public_key()
    assert loaded.tls_key_pem() == made.tls_key_pem()
    if sys.platform != "win32":
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "worker").iterdir()}
        assert modes == {0o600}


def test_a_csr_is_signed_by_the_tls_key_and_names_nobody() -> None:
    identity = WorkerIdentity.generate()
    request = x509.load_pem_x509_csr(identity.csr())
    assert request.is_signature_valid
    assert request.public_key() == identity.tls_key.public_key()
    assert not list(request.subject)


def test_damaged_and_foreign_keys_are_told_from_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WorkerIdentity.load(tmp_path)
    identity = WorkerIdentity.create(tmp_path)
    pem = identity.receipt_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "tls.key").write_bytes(pem)
    with pytest.raises(IdentityError, match="another kind"):
        WorkerIdentity.load(tmp_path)
    (tmp_path / "tls.key").write_bytes(b"garbage")
    with pytest.raises(IdentityError, match="holds no key"):
        WorkerIdentity.load(tmp_path)


def test_the_message_of_a_renewal_has_one_spelling() -> None:
    assert renewal_message(worker_id="wrk_a", csr="x\n", at=5) == b'{"at":5,"csr":"x\\n","worker_id":"wrk_a"}'


def test_home_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    assert home() == tmp_path
    assert model_cache() == tmp_path / "cache" / "models"
    monkeypatch.delenv("POTLUCK_HOME")
    assert home().name == "potluck"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    write_secret(target, b"one")
    with pytest.raises(TypeError):
        write_atomic(target, "text")  # type: ignore[arg-type] # the failure is the point
    assert target.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
