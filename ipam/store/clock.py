"""The time of day as leases have it."""

from __future__ import annotations

import time
from typing import Final

# What Python can tell at the most: signed nanoseconds, the year 2262.
_LAST: Final = (1 << 63) // 1_000_000_000


def now() -> int:
    """Seconds since 1970, whatever the clock says."""
    try:
        return int(time.time())
    except OverflowError:
        return _LAST


def timestamp(seconds: int) -> str:
    """A time as RFC 3339 has it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
