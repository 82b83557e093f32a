"""Know what differs between RabbitMQ versions."""

import re
from typing import Final

# Both ends belong to the range.
_DEADLOCK_FROM: Final = (4, 3, 0)
_DEADLOCK_TO: Final = (4, 3, 5)


def parse_version(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: (4, 3, 6) for "4.3.6+1"; () for none."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def find_known_defect(version: str) -> str | None:
    """Return a sentence about a defect of this RabbitMQ that stops the service, or None."""
    if _DEADLOCK_FROM <= (*parse_version(version), 0, 0)[:3] <= _DEADLOCK_TO:
        return (
            f"RabbitMQ {version} can stop delivering from a single-active-consumer quorum queue "
            "for good, once each of its consumers has exceeded the consumer timeout; upgrade to "
            "4.3.6 or later (rabbitmq-server#17317)"
        )
    return None
