"""The worker's clock."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time now, aware and in UTC."""
    return datetime.now(UTC)
