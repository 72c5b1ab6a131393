"""A new key for an admin who lost theirs: whoever can read the coordinator's files may let an admin in.

It works on the files alone, while no coordinator runs on them.
"""

from pathlib import Path

from coordinator import keys
from coordinator.audit_log.event import Action, AuditEvent
from coordinator.clock import SteadyClock
from coordinator.records import Member, MemberState, Role
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import StoreError
from potluck.home import write_secret

KEY_NAME = "recovered"


async def recover_admin(settings: Settings, name: str | None) -> tuple[Member, Path]:
    """The admin, and the new file (0600) that holds a further key of that admin.

    The caller holds the home's lock. Raises StoreError with a sentence, AlreadyRunning or OSError.
    """
    now = SteadyClock().now()
    store = await Store.open_existing(settings.database_url, now)
    try:
        admin = _chosen(await store.members(), name)
        key = keys.generate()
        path = _free(settings.folder)
        write_secret(
            path, key.text.encode() + b"\n"
        )  # before the key opens anything: or nobody would know it
        try:
            made, _ = await store.create_key(admin.id, KEY_NAME, now, key=key)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        told = {"name": admin.name, "member": admin.id}
        await store.record_event(
            AuditEvent(action=Action.KEY_RECOVERED, at=now, subject=made.id, details=told)
        )
    finally:
        await store.close()
    return admin, path


def _chosen(members: list[Member], name: str | None) -> Member:
    """The named admin, or the one who was made first."""
    admins = [m for m in members if m.role is Role.ADMIN and m.state is MemberState.ACTIVE]
    admins.sort(key=lambda member: (member.created_at, member.id))
    found = [m for m in admins if name is None or name in {m.id, m.name}]
    if not found:
        names = ", ".join(member.name for member in admins) or "none"
        raise StoreError(f"there is no admin {name or ''!r} in this pool; its admins: {names}")
    return found[0]


def _free(folder: Path) -> Path:
    """No file is replaced."""
    number = 1
    while (path := folder / f"admin-{number}.key").exists():
        number += 1
    return path
