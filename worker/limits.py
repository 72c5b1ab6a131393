"""How much a worker keeps, how long it waits, how often it speaks. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The lease is the pool's; a welcome brings the pool's heartbeats and the size of a frame."""

    lease_s: float = 4.0  # silence after which the coordinator gives an attempt away
    lease_margin_s: float = 1.0  # a lease is certainly over this much later
    silence_s: float = 4.0  # frames unanswered for so long mean a dead connection
    coalesce_s: float = 0.010
    coalesce_from_attempts: int = 4  # with fewer running, every piece leaves at once
    heartbeat_busy_s: float = 1.0
    heartbeat_idle_s: float = 15.0
    farewell_s: float = 5.0  # a drained worker waits so long for the last acknowledgements
    frame_bytes_max: int = 256 * 1024
    result_bytes_max: int = 16 * 1024 * 1024
    buffer_bytes_max: int = 8 * 1024 * 1024  # not acknowledged, for each attempt
    buffer_frames_max: int = 8192
    attempts_max: int = 256
    choices_max: int = 128
    ended_max: int = 4096  # remembered, so that a repeated assignment is not run twice
    receipts_max: int = 10_000
    receipts_in_flight_max: int = 64
