"""What holds now, in memory as on the disk: every page looks at it, and every request where it must."""

from dataclasses import dataclass, field

from coordinator.core.jobs import MemberId
from coordinator.notices.notice import Announcement, Terms
from coordinator.notices.rows import Notices


@dataclass(slots=True)
class Board:
    store: Notices
    terms: Terms | None = None
    announcement: Announcement | None = None
    accepted: dict[MemberId, int] = field(default_factory=dict)

    async def load(self) -> None:
        """At the start, before anybody asks."""
        self.terms = await self.store.terms()
        self.announcement = await self.store.announcement()
        self.accepted = await self.store.accepted()

    def owed(self, member: MemberId) -> Terms | None:
        """The terms that the member has still to accept, if there are any."""
        terms = self.terms
        if terms is None or not terms.text or self.accepted.get(member, 0) >= terms.version:
            return None
        return terms

    def shown(self, now: float) -> Announcement | None:
        """The announcement, while it holds."""
        found = self.announcement
        return found if found is not None and found.shown(now) else None

    async def write_terms(self, text: str, by: MemberId, now: float) -> Terms:
        """The same text again is no new version: nobody is asked twice."""
        if self.terms is None or self.terms.text != text:
            self.terms = await self.store.put_terms(text, by, now)
        return self.terms

    async def accept(self, member: MemberId, version: int, now: float) -> None:
        await self.store.accept_terms(member, version, now)
        self.accepted[member] = max(version, self.accepted.get(member, 0))

    async def announce(self, announcement: Announcement | None) -> None:
        await self.store.put_announcement(announcement)
        self.announcement = announcement
