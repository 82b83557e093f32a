"""Every exception that the service raises itself, as one tree.

OutplanError
├── Fatal                   say it in one line and stop; the exit code is its own
│   ├── WrongSetting        exit 2
│   ├── BrokerRefused       exit 1
│   ├── StoreUnsuitable     exit 1
│   └── PortTaken           exit 1
├── Unavailable             a server is away: wait and try again, for ever
│   ├── BrokerUnavailable   ends the session; the supervisor opens another
│   ├── Nacked              the broker refused messages: they are sent again
│   │   └── ReplyNacked     only replies: they are sent again a few times
│   └── StoreUnavailable    the batch in hand is tried again
├── StoreConflict           somebody else was first: load and decide again
│   └── StoreAborted        or the server had no room: a smaller batch may have
├── Fenced                  another worker has taken the queue over: end the session
└── Unprocessable           one batch can't be stored: find the culprit
"""

from typing import ClassVar


class OutplanError(Exception):
    """The root: ``except OutplanError`` catches whatever the service itself raises."""


class Fatal(OutplanError):
    """Raised when only a person can mend it. The text says what to do."""

    exit_code: ClassVar[int] = 1


class WrongSetting(Fatal):
    """Raised when a setting in the environment cannot be used."""

    exit_code = 2


class BrokerRefused(Fatal):
    """Raised when RabbitMQ refuses the credentials, the virtual host or a declaration."""


class StoreUnsuitable(Fatal):
    """Raised when MongoDB refuses the credentials or is no replica set."""


class PortTaken(Fatal):
    """Raised when the HTTP port cannot be listened on."""


class Unavailable(OutplanError):
    """Raised when a server is away. Waiting mends it; nothing was lost."""


class BrokerUnavailable(Unavailable):
    """Raised when a connection or channel to RabbitMQ is gone."""


class Nacked(Unavailable):
    """Raised when the broker refuses messages, as it does for a subscriber's full queue."""


class ReplyNacked(Nacked):
    """Raised when all that it refuses is replies."""


class StoreUnavailable(Unavailable):
    """Raised when MongoDB does not answer, is electing, or could not commit."""


class StoreConflict(OutplanError):
    """Raised when the transaction met another writer's: nothing was stored."""


class StoreAborted(StoreConflict):
    """Raised when the server has aborted the transaction: for another's, or for want of room."""


class Fenced(OutplanError):
    """Raised when the queue's fence carries another epoch: nothing was stored."""


class Unprocessable(OutplanError):
    """Raised when a batch fails for a reason that no waiting mends: nothing was stored."""
