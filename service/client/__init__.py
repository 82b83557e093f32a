"""For programs that speak to the service: publishers of commands, subscribers to events.

It needs no MongoDB and none of the worker's code.
"""

from service.client.client import OutplanClient, Result
from service.client.errors import (
    AlreadyExists,
    ClientError,
    CommandRejected,
    GivenUp,
    InvalidCommand,
    InvalidJson,
    MessageIdReused,
    MissingMessageId,
    NotFound,
    OutcomeUnknown,
    Refused,
    TooLarge,
    UnknownCommand,
    Unreachable,
    VersionConflict,
)
from service.client.events import Events, Reconnected, events
from service.client.flow import Progress, Verdict
from service.client.received import Event, Outplan
from service.client.requests import Request
from service.client.versions import Gap, Unreadable

__all__ = [
    "AlreadyExists",
    "ClientError",
    "CommandRejected",
    "Event",
    "Events",
    "Gap",
    "GivenUp",
    "InvalidCommand",
    "InvalidJson",
    "MessageIdReused",
    "MissingMessageId",
    "NotFound",
    "OutcomeUnknown",
    "Outplan",
    "OutplanClient",
    "Progress",
    "Reconnected",
    "Refused",
    "Request",
    "Result",
    "TooLarge",
    "UnknownCommand",
    "Unreachable",
    "Unreadable",
    "Verdict",
    "VersionConflict",
    "events",
]
