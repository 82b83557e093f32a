"""Make command ids that sort by time."""

import time
from secrets import randbits
from threading import Lock
from typing import Final
from uuid import UUID

_TICKS: Final = 4096  # Parts of a millisecond: the 12 bits behind it (RFC 9562, method 3).

_lock = Lock()
_last = 0


def new_id() -> str:
    """Make a UUIDv7, greater than every one that this process made before."""
    global _last  # noqa: PLW0603 - ids increase within the process, whoever asks
    with _lock:
        _last = max(time.time_ns() * _TICKS // 1_000_000, _last + 1)
        milliseconds, fraction = divmod(_last, _TICKS)
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | randbits(62)
    return str(UUID(int=value))
