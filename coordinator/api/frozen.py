"""What a member whose account is frozen is told."""

from coordinator.api.errors import ApiError
from coordinator.records import Member, MemberState, Role
from coordinator.store import Store

ADMINS_NAMED_MAX = 3


async def refuse_frozen(store: Store, member: Member) -> None:
    """Raises ApiError 403 unless the account is active: keys are for looking then, workers go on earning."""
    if member.state is MemberState.ACTIVE:
        return
    admins = [
        other.name
        for other in await store.members()
        if other.role is Role.ADMIN and other.state is MemberState.ACTIVE
    ]
    whom = ", ".join(admins[:ADMINS_NAMED_MAX]) or "an admin"
    why = f": {member.why.rstrip('.')}" if member.why else ""
    message = (
        f"The account of {member.name} is {member.state.value}{why}. You can look at it and at your jobs, and"
        f" your workers go on earning; for everything else ask {whom}."
    )
    raise ApiError(403, "account_frozen", message)
