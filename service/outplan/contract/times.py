"""The clock, and the contract's text form of a time: ``YYYY-MM-DD HH:MM:SS.ffffff`` in UTC."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time now, aware and in UTC."""
    return datetime.now(UTC)


def format_time(moment: datetime) -> str:
    """Write a UTC time in the contract's form."""
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
