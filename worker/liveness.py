"""Whether coordinator and worker hear each other: the connection, its heartbeats, the lease. Pure."""

from worker.limits import Limits
from worker.messages import Connected


class Liveness:
    """`congested`: the outbox is full, so more is gathered into each frame."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.connected = False
        self.congested = False
        self.frame_bytes_max = limits.frame_bytes_max
        self.lease_s = limits.lease_s + limits.lease_margin_s  # after which a lease is certainly over
        self._lost_at: float | None = None
        self._heard_at = 0.0
        self._beat_at = 0.0
        self._beat_busy_s = limits.heartbeat_busy_s
        self._beat_idle_s = limits.heartbeat_idle_s

    def connect(self, event: Connected, now: float) -> None:
        self.connected, self.congested, self._lost_at = True, False, None
        self._heard_at = self._beat_at = now
        self.frame_bytes_max = event.frame_bytes_max or self._limits.frame_bytes_max
        self._beat_busy_s = event.heartbeat_busy_s or self._limits.heartbeat_busy_s
        self._beat_idle_s = event.heartbeat_idle_s or self._limits.heartbeat_idle_s

    def disconnect(self, now: float) -> None:
        self.connected = self.congested = False
        if self._lost_at is None:
            self._lost_at = now

    def hear(self, now: float) -> None:
        """The coordinator said something that shows that it follows."""
        self._heard_at = now

    def is_dead(self, oldest_sent_at: float, now: float) -> bool:
        """Said once: a connection on which frames stay unanswered is dead, whatever the system believes."""
        if self._lost_at is not None or now - max(oldest_sent_at, self._heard_at) < self._limits.silence_s:
            return False
        self._lost_at = oldest_sent_at
        return True

    @property
    def lease_until(self) -> float | None:
        """When the lease of what runs is certainly over; None while connected."""
        return None if self.connected or self._lost_at is None else self._lost_at + self.lease_s

    @property
    def beat_at(self) -> float | None:
        """When the next heartbeat is due."""
        return self._beat_at if self.connected else None

    def beat_soon(self, now: float) -> None:
        """There is something to be told."""
        self._beat_at = min(self._beat_at, now)

    def beat_as_busy(self, now: float) -> None:
        """There is work from now on."""
        self._beat_at = min(self._beat_at, now + self._beat_busy_s)

    def beaten(self, now: float, *, busy: bool) -> None:
        self._beat_at = now + (self._beat_busy_s if busy else self._beat_idle_s)
