"""`potluck coordinator check`: are the books right? Reads only, whether a coordinator runs on them or not."""

from coordinator.ca import AUTHORITY_FILE, CertificateAuthority
from coordinator.records import Report
from coordinator.settings import Settings
from coordinator.store import Store


def public_key(settings: Settings, now: float) -> bytes | None:
    """The pool's, or None where its authority is not in this home. Raises CertificateError."""
    if not (settings.folder / "ca" / AUTHORITY_FILE).exists():
        return None  # opening it would make a new one
    return CertificateAuthority.open(settings.home, settings.pool_name, now).public_key


async def check(settings: Settings, now: float) -> tuple[Report, bool]:
    """What is wrong, and whether signatures could be checked. Raises StoreError or CertificateError."""
    key = public_key(settings, now)
    store = await Store.inspect(settings.database_url)
    try:
        return await store.audit(key), key is not None
    finally:
        await store.close()
