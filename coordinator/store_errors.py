"""What the store refuses, each with a sentence that can be shown to people."""

import errno
from typing import Final

# Of a write: no room at all, none for this user, none in a file of this size (ulimit). Room may be made.
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StoreError(Exception):
    """The database could not do what was asked; nothing was changed."""


class StoreUnavailable(StoreError):  # noqa: N818 -- named for what happened
    """The database failed or cannot be reached, whatever was asked; later it may work."""


class StoreFull(StoreUnavailable):
    """No room left on the disk (or under the database's own limit); the same batch may be tried again."""


class Unwritable(StoreError):  # noqa: N818 -- named for what happened
    """A text that the database cannot hold: PostgreSQL knows no NUL character."""


class LeadershipLost(StoreUnavailable):
    """Another coordinator writes now, and this one never again."""


class StoreConflict(StoreError):  # noqa: N818 -- named for what happened
    """Recorded before, out of order, or against a constraint: trying again is useless."""


class DatabaseNewer(StoreError):  # noqa: N818 -- named for what happened
    """The database was written by a later version of Potluck."""


class NameTaken(StoreError):  # noqa: N818 -- named for what happened
    """Another member, worker or model has this name."""


class Unknown(StoreError):  # noqa: N818 -- named for what happened
    """No such member, worker, key or job."""


class JoinTokenRefused(StoreError):  # noqa: N818 -- named for what happened
    """The join token lets nobody in."""


class JoinTokenUnknown(JoinTokenRefused):
    """The pool never made it."""


class JoinTokenUsed(JoinTokenRefused):
    """It was good, and is used up."""


class JoinTokenExpired(JoinTokenRefused):
    """It was good, and its time is over."""


class WorkerRevoked(StoreError):  # noqa: N818 -- named for what happened
    """The worker was shut out of the pool."""


class BooksWrong(StoreError):  # noqa: N818 -- named for what is the case
    """The database can be read, but what is in it does not agree."""


class InviteRefused(StoreError):  # noqa: N818 -- named for what happened
    """The invitation lets nobody in; its subclasses say why."""


class InviteUnknown(InviteRefused):
    """The pool never made it."""


class InviteUsed(InviteRefused):
    """Somebody accepted it."""


class InviteEnded(InviteRefused):
    """It was taken back, or its time is over."""


class InviteSuspended(InviteRefused):
    """Whoever invites may not just now."""


class LastAdmin(StoreError):  # noqa: N818 -- named for what happened
    """The pool would be left without an admin who can act."""


class LastKey(StoreError):  # noqa: N818 -- named for what happened
    """The member would be left without a key."""


class FilesTooMany(StoreError):  # noqa: N818 -- named for what happened
    """A member's files would be more, or larger together, than allowed. `used`: what there is."""

    def __init__(self, sentence: str, used: int) -> None:
        super().__init__(sentence)
        self.used = used


class UploadEnded(StoreError):  # noqa: N818 -- named for what happened
    """The upload was completed, cancelled, or its time is over."""


class UploadFull(StoreError):  # noqa: N818 -- named for what happened
    """More parts or bytes than the upload may have, or more uploads than a member."""
