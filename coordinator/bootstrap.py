"""The first start of a pool: its commons, its first admin, and that admin's key in a file."""

from coordinator import keys
from coordinator.audit_log.event import Action, AuditEvent
from coordinator.records import Role
from coordinator.settings import Settings
from coordinator.store import Store

ADMIN_NAME = "admin"


async def ensure_first_start(store: Store, settings: Settings, now: float) -> str | None:
    """Make what a new pool needs; the path of `admin.key` if its admin was made just now.

    The file is written once. A pool that has an admin gets no other one, also when the file is gone: whoever
    can delete a file must not be handed a key by it. The file comes before the admin, so that a crash in
    between leaves a key that the next start gives to the admin. Raises KeyFileError, StoreError or OSError.
    """
    await store.create_own_accounts(settings.commons_credit_line)
    if any(member.role is Role.ADMIN for member in await store.members()):
        return None
    try:
        key = keys.read_admin_key(settings.folder)
    except FileNotFoundError:
        key = keys.generate()
        keys.write_admin_key(settings.folder, key)
    admin, _ = await store.create_member(
        ADMIN_NAME, Role.ADMIN, settings.default_credit_line, "first", now, key=key
    )
    told = {"name": admin.name, "role": admin.role.value}
    await store.record_event(AuditEvent(action=Action.MEMBER_ADDED, at=now, subject=admin.id, details=told))
    return str(settings.folder / keys.ADMIN_KEY_FILE)
