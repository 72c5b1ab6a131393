"""What the pool's own routes answer about members and what belongs to them. Times are RFC 3339, in UTC."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Micro = int  # microcredits
Time = str


class LimitsBody(TypedDict, total=False):
    """Those that are set; 0 is no limit, whatever the pool has."""

    requests_per_minute: int
    tokens_per_minute: int
    concurrent_jobs: int
    credits_per_day: Micro
    credits_per_month: Micro


# -- members ------------------------------------------------------------------------------------------------


class Named(TypedDict):
    id: str
    name: str


class MemberBody(TypedDict):
    """`why` says so, where the state is not active."""

    id: str
    name: str
    role: Literal["member", "admin"]
    state: str
    why: str | None


class AccountBody(MemberBody):
    """`seen_at` in the list: when the member was last here."""

    account: str
    balance: Micro
    credit_line: Micro
    limits: LimitsBody
    created_at: Time | None
    seen_at: NotRequired[Time | None]


class NewMember(TypedDict):
    """The key is shown this once."""

    id: str
    name: str
    role: Literal["member", "admin"]
    key: str


class Joined(NewMember):
    credit_line: Micro
    pool: str


class KeyBody(TypedDict):
    """No `models` are all models; `limits` are the key's own."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    models: list[str]
    limits: LimitsBody
    created_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None


class NewKey(KeyBody):
    """`key` is shown this once."""

    member: str
    key: str


class RevokedKey(Named):
    member: str
    revoked_at: Time | None


class Whoami(TypedDict):
    member: MemberBody
    account: str
    key: KeyBody
    pool: str


class LimitRow(TypedDict):
    """`allowed` is null where nothing limits the member."""

    of: Literal["member", "key"]
    name: str
    limit: str
    allowed: int | None
    used: int
    renews_at: Time | None
    set_by: str


class MemberLimits(Named):
    limits: LimitsBody
    effective: LimitsBody


# -- credits ------------------------------------------------------------------------------------------------


class Balance(TypedDict):
    """`held_why`: what must happen before the held earnings are free."""

    account: str
    balance: Micro
    reserved: Micro
    held: Micro
    credit_line: Micro
    available: Micro
    held_why: NotRequired[str]


class Given(TypedDict):
    """`entry`: its number in the ledger."""

    id: str
    entry: int
    at: Time
    to: Named
    amount: Micro


class Sent(Given, Balance):
    note: str | None


class CommonsLeft(TypedDict):
    balance: Micro
    available: Micro


class Granted(Given):
    reason: str
    commons: CommonsLeft


class Line(TypedDict):
    """A line of the statement: what moved, and the balance after it."""

    number: int
    at: Time
    code: str
    words: str
    amount: Micro
    held: Micro
    reserved: Micro
    credit_line: Micro
    balance: Micro
    job: str | None
    counterparties: list[str]


class Totals(TypedDict):
    period: str
    given: Micro
    given_net: Micro
    fee: Micro
    taken: Micro
    contribution: Micro
    received: Micro
    sent: Micro
    granted: Micro
    fees: Micro
    tokens_served: int
    tokens_asked: int
    change: Micro


# -- invitations --------------------------------------------------------------------------------------------


class InviteBody(TypedDict):
    id: str
    state: str
    by: str
    credit_line: Micro
    from_pool: bool
    note: str | None
    created_at: Time | None
    expires_at: Time | None
    accepted_by: str | None
    ended_at: Time | None


class NewInvite(InviteBody):
    """The token is shown this once."""

    token: str
    commands: list[str]


class EndedInvite(TypedDict):
    id: str
    state: str
    revoked_at: Time | None


# -- notices, community, operating --------------------------------------------------------------------------


class Terms(TypedDict):
    """Version 0 and no text where the pool has none."""

    version: int
    text: str
    at: Time | None
    accepted: bool


class AnnouncementBody(TypedDict):
    text: str | None
    level: str | None
    at: Time | None
    expires_at: Time | None


class Profile(TypedDict):
    listed: bool
    team: Named | None
    contribution: Micro


class PlaceBody(TypedDict):
    rank: int
    id: str
    name: str
    contribution: Micro
    given: Micro


class MembersPlace(PlaceBody):
    team: str | None


class TeamsPlace(PlaceBody):
    members: int


class Done(TypedDict):
    jobs: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    charged: Micro


class EnergyBody(TypedDict):
    """`kwh` is null where no working machine reports its cards' power."""

    kwh: float | None
    measured: float
    how: str


class CommunityBody(TypedDict):
    month: str
    done: Done
    energy: EnergyBody
    members: list[MembersPlace]
    teams: list[TeamsPlace]
    you: Profile


class AuditBody(TypedDict):
    """`by` is null where it was the pool itself, or whoever sits at its machine."""

    number: int
    at: Time | None
    by: Named | None
    key: str | None
    action: str
    subject: str | None
    details: dict[str, Any]


class SettingBody(TypedDict):
    value: Any
    origin: str
    description: str | None


class Settings(TypedDict):
    data: dict[str, SettingBody]
