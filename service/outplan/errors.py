"""Define every exception that the service raises, as one tree.

OutplanError
├── Fatal                   log one line and exit: only a person can fix it
│   ├── WrongSetting        exit 2
│   ├── BrokerRefused       exit 1
│   ├── StoreUnsuitable     exit 1
│   ├── LayoutDiffers       exit 1
│   └── PortTaken           exit 1
├── Unavailable             not possible now: back off and retry
│   ├── BrokerUnavailable   ends the session; the worker opens another one
│   ├── Nacked              the broker nacked messages: publish them again
│   │   └── ReplyNacked     it nacked replies only: publish them again a few times
│   └── StoreUnavailable    retry the batch
├── StoreConflict           another writer was first: load and decide again
│   └── StoreAborted        or the server had no room: a smaller batch may fit
├── Fenced                  another worker has claimed the queue: end the session
│   └── LayoutChanged       another layout is in force: end the session
├── LayoutRefused           the layout in force does not allow that change
└── Unprocessable           the batch cannot be stored: split it
"""

from typing import ClassVar


class OutplanError(Exception):
    """The root: ``except OutplanError`` catches every exception of the service."""


class Fatal(OutplanError):
    """Raised when only a person can fix it. The text says what to do."""

    exit_code: ClassVar[int] = 1


class WrongSetting(Fatal):
    """Raised when a setting in the environment cannot be used."""

    exit_code = 2


class BrokerRefused(Fatal):
    """Raised when RabbitMQ refuses the credentials, the virtual host or a declaration."""


class StoreUnsuitable(Fatal):
    """Raised when MongoDB refuses the credentials or is no replica set."""


class LayoutDiffers(Fatal):
    """Raised when OUTPLAN_PARTITIONS is not the number of partitions in force."""


class LayoutRefused(OutplanError):
    """Raised when the layout in force does not allow a change."""


class PortTaken(Fatal):
    """Raised when the HTTP port is taken or not allowed."""


class Unavailable(OutplanError):
    """Raised when a server is away. Waiting helps; nothing is lost."""


class BrokerUnavailable(Unavailable):
    """Raised when a connection or channel to RabbitMQ has ended."""


class Nacked(Unavailable):
    """Raised when the broker nacks messages, as it does when a subscriber's queue is full."""


class ReplyNacked(Nacked):
    """Raised when the broker nacks replies only."""


class StoreUnavailable(Unavailable):
    """Raised when MongoDB does not answer, is electing, or could not commit."""


class StoreConflict(OutplanError):
    """Raised when another writer was first. Nothing is stored."""


class StoreAborted(StoreConflict):
    """Raised when the server aborted the transaction, for another one or for lack of room."""


class Fenced(OutplanError):
    """Raised when the queue's fence has another epoch. Nothing is stored."""


class LayoutChanged(Fenced):
    """Raised when another layout is in force than the session was opened for."""


class Unprocessable(OutplanError):
    """Raised when a batch fails and a retry would fail too. Nothing is stored."""
