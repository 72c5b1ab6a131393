"""When the pool signs the ends of its chains by itself: once in a UTC day, if anything was recorded since."""

DAY_S = 86_400


def due(now: float, last_daily: float | None, *, moved: bool) -> bool:
    """`last_daily`: when the last one of its kind was signed. `moved`: something is newer than every head.

    A clock that was set back signs nothing until it is a new day again. Times in seconds since the epoch.
    """
    return moved and (last_daily is None or now // DAY_S > last_daily // DAY_S)
