"""What a worker knows of the pool it joined: who it is there, where, and the certificate to show.

Lies in POTLUCK_HOME/worker: `membership.json`, `certificate.pem`, `ca.pem`, beside the keys.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from potluck.home import write_atomic, write_secret
from potluck.identity import BACKDATE
from worker.errors import CertificateRefused, NotJoined

MEMBERSHIP_FILE: Final = "membership.json"
CERTIFICATE_FILE: Final = "certificate.pem"
CA_FILE: Final = "ca.pem"
URL_CHARS_MAX: Final = 2048
URLS_MAX: Final = 4  # beside the one that it was joined at


class Membership(BaseModel):
    """As kept in `membership.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    worker_id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=256)
    member: str = Field(max_length=256)
    pool: str = Field(max_length=256)
    grpc: str = Field(min_length=3, max_length=512)  # host:port
    coordinators: tuple[str, ...] = ()  # host:port of all that the pool has told, the latest news first
    url: str = Field(max_length=URL_CHARS_MAX)  # where it was joined, and where certificates are renewed
    urls: tuple[str, ...] = ()  # where else: of coordinators that have welcomed it, the latest first
    public_key: str = Field("", pattern=r"^([0-9a-f]{64})?$")  # by which the pool signs; empty: not told

    def at(self, path: str) -> list[str]:
        """Where the pool's route may be found, the likeliest first."""
        return [f"{url}{path}" for url in (self.url, *self.urls)]

    def welcomed_at(self, url: str) -> "Membership":
        """With a place where it is at home, too. Who joined by HTTPS is not led away from it."""
        secure = url.startswith("https://") or (url.startswith("http://") and self.url.startswith("http://"))
        if not secure or not url.isprintable() or len(url) > URL_CHARS_MAX or url == self.url:
            return self
        return self.model_copy(update={"urls": tuple(dict.fromkeys((url, *self.urls)))[:URLS_MAX]})

    @classmethod
    def load(cls, folder: Path) -> "Membership":
        """Raises NotJoined."""
        try:
            return cls.model_validate_json((folder / MEMBERSHIP_FILE).read_bytes())
        except FileNotFoundError:
            raise NotJoined from None
        except ValidationError:
            raise NotJoined(f"{folder / MEMBERSHIP_FILE} cannot be read") from None

    def save(self, folder: Path) -> None:
        write_atomic(folder / MEMBERSHIP_FILE, self.model_dump_json(indent=2).encode())


@dataclass(frozen=True, slots=True)
class Certificate:
    """A worker's certificate with the pool's CA, both PEM."""

    certificate: bytes
    ca: bytes

    @classmethod
    def load(cls, folder: Path) -> "Certificate":
        """Raises NotJoined."""
        try:
            made = cls((folder / CERTIFICATE_FILE).read_bytes(), (folder / CA_FILE).read_bytes())
            x509.load_pem_x509_certificate(made.certificate)
            x509.load_pem_x509_certificate(made.ca)
        except (FileNotFoundError, ValueError, x509.InvalidVersion):
            raise NotJoined(f"the certificate in {folder} is missing or cannot be read") from None
        return made

    def save(self, folder: Path) -> None:
        write_secret(folder / CA_FILE, self.ca)
        write_secret(folder / CERTIFICATE_FILE, self.certificate)

    def check(self, public_key: EllipticCurvePublicKey, now: datetime) -> None:
        """Raises CertificateRefused unless it is for this key, issued by the CA, and not over."""
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate)
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(self.ca))
            key, (_, end) = certificate.public_key(), self.times()
        except InvalidSignature:
            raise CertificateRefused("the pool's CA did not sign it") from None
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
            raise CertificateRefused("it cannot be read, or the pool's CA is not its issuer") from None
        if key != public_key:
            raise CertificateRefused("it is for another key")
        if end <= now:
            raise CertificateRefused("it has expired already; check this machine's clock")

    def times(self) -> tuple[datetime, datetime]:
        """Not before, not after (UTC)."""
        certificate = x509.load_pem_x509_certificate(self.certificate)
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc

    def expired(self, now: datetime) -> bool:
        return self.times()[1] <= now

    def renewal_due(self, now: datetime) -> bool:
        """Half of its life is over, from when it was made."""
        start, end = self.times()
        made = min(start + BACKDATE, end)
        return now >= made + (end - made) / 2


def utc_now() -> datetime:
    return datetime.now(UTC)
