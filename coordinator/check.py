"""Are the books right? For `potluck coordinator check`, which reads only, and for a coordinator's start."""

from typing import Final

import structlog

from coordinator.ca import AUTHORITY_FILE, CertificateAuthority
from coordinator.records import Report
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import BooksWrong

SHOWN_MAX: Final = 3

log = structlog.get_logger(__name__)


def public_key(settings: Settings) -> bytes | None:
    """The pool's, or None where its authority is not in this home. Raises CertificateError."""
    if not (settings.folder / "ca" / AUTHORITY_FILE).exists():
        return None  # opening it would make a new one
    return CertificateAuthority.read(settings.home).public_key


async def check(settings: Settings) -> tuple[Report, bool]:
    """What is wrong, and whether signatures could be checked. Raises StoreError or CertificateError."""
    key = public_key(settings)
    store = await Store.inspect(settings.database_url)
    try:
        return await store.audit(key), key is not None
    finally:
        await store.close()


async def glance(store: Store, *, force: bool) -> None:
    """What a start can afford to look at. Raises BooksWrong, unless that shall be only told."""
    findings = await store.glance()
    for finding in findings:
        log.error(finding.message, action="books_wrong", subject=finding.subject)
    if findings and not force:
        shown = "".join(f"\n  {finding.subject}: {finding.message}" for finding in findings[:SHOWN_MAX])
        more = f"\n  and {len(findings) - SHOWN_MAX} more" if len(findings) > SHOWN_MAX else ""
        raise BooksWrong(
            f"the books are wrong:{shown}{more}\nWhat is wrong should not go on: copy the folder, see what"
            " `potluck coordinator check` says, and restore a backup. `--force` starts nevertheless."
        )
