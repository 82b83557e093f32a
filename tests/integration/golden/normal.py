"""Replace what differs from run to run by tokens, and nothing else."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Document = dict[str, Any]

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")
_MICROSECOND: Final = timedelta(microseconds=1)
# How far the clocks of this process and of the servers' may be apart.
_APART: Final = timedelta(minutes=5)
_LONGEST: Final = 3_000
_SHOWN: Final = 100


class Normaliser:
    """Normalise one recording; to be made before its first command goes out.

    - The prefix becomes ``<prefix>``.
    - Each time of the run becomes ``<t1>``, ``<t2>``, ... in order of first appearance. A time one
      microsecond after ``<t1>`` becomes ``<t1+1>``: the service adds that where its clock stands
      still. Times before the run stay: commands contain some.
    - A text of more than 3,000 characters becomes its length, its SHA-256 and its ends.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._begin = _now() - _APART
        self._tokens: dict[datetime, tuple[int, int]] = {}
        self._bases = 0

    def normal(self, value: Any) -> Any:
        """Return the same structure with normalised texts."""
        if isinstance(value, dict):
            return {key: self.normal(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.normal(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> Any:
        text = _TIME.sub(self._token, text.replace(self._prefix, "<prefix>"))
        if len(text) <= _LONGEST:
            return text
        return {
            "length": len(text),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "begins": text[:_SHOWN],
            "ends": text[-_SHOWN:],
        }

    def _token(self, match: re.Match[str]) -> str:
        try:
            time = datetime.fromisoformat(match[0])
        except ValueError:
            return match[0]
        if not self._begin < time < _now() + _APART:
            return match[0]
        if time not in self._tokens:
            self._tokens[time] = self._next(time)
        base, later = self._tokens[time]
        return f"<t{base}+{later}>" if later else f"<t{base}>"

    def _next(self, time: datetime) -> tuple[int, int]:
        if (before := self._tokens.get(time - _MICROSECOND)) is not None:
            return before[0], before[1] + 1
        self._bases += 1
        return self._bases, 0


def seconds_of(body: bytes) -> int | None:
    """Return the time in an event's body in whole seconds since 1970."""
    try:
        time = datetime.fromisoformat(json.loads(body)["time"])
    except (ValueError, KeyError, TypeError):
        return None
    return int(time.replace(tzinfo=UTC).timestamp())


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
