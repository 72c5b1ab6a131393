"""What a member whose account is frozen is told, and one who has not accepted the pool's terms."""

from coordinator.api.errors import ApiError
from coordinator.notices.board import Board
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


def refuse_unaccepted(board: Board, member: Member) -> None:
    """Raises ApiError 403 for whom the pool waits to accept its terms."""
    if (terms := board.owed(member.id)) is None:
        return
    message = (
        f"{member.name} has not accepted version {terms.version} of this pool's terms of use. Read them on"
        " the page /terms or at /pool/v1/terms, then accept them there."
    )
    raise ApiError(403, "terms_not_accepted", message, extra={"potluck": {"version": terms.version}})
