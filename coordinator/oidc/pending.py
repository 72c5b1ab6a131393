"""Sign-ins that are under way at the provider: what the answer must fit, kept until it comes, once.

In memory only: whoever is at the provider while the coordinator restarts begins again.
"""

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from coordinator.keys import digest_of

PENDING_S: Final = 600.0
PENDING_MAX: Final = 10_000  # anybody can begin one: beyond this the oldest is forgotten
_RANDOM_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """`browser`: digest of the cookie by which the same browser is known again. `key_id`: of a member who
    links an account to it; `invitation` and `name`: of somebody who joins by an invitation.
    """

    browser: str
    nonce: str
    verifier: str  # RFC 7636
    redirect_uri: str
    expires_at: float
    next: str = "/"
    key_id: str = ""
    invitation: str = ""
    name: str = ""


class SignIns:
    def __init__(self) -> None:
        self._pending: OrderedDict[str, Pending] = OrderedDict()

    def begin(self, pending: Pending) -> str:
        """The `state` that brings it back."""
        state = new_secret()
        self._pending[digest_of(state)] = pending
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)
        return state

    def take(self, state: str, browser: str, now: float) -> Pending | None:
        """What was begun with this state in this browser, and is forgotten with it; None if nothing was."""
        pending = self._pending.get(digest_of(state))
        if pending is None or not hmac.compare_digest(pending.browser, digest_of(browser)):
            return None  # another browser's sign-in is none of this one's, and stays
        del self._pending[digest_of(state)]
        return pending if now < pending.expires_at else None


def new_secret() -> str:
    """43 characters; long enough for a state, a nonce, a code verifier and a cookie."""
    return secrets.token_urlsafe(_RANDOM_BYTES)
