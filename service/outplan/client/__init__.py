"""Publish commands and subscribe to events.

Needs no MongoDB and none of the worker's code.
"""

from outplan.client.bulk import CommandResult, Progress
from outplan.client.client import OutplanClient, Result
from outplan.client.errors import (
    AlreadyExists,
    ClientError,
    CommandRejected,
    GivenUp,
    InvalidCommand,
    InvalidJson,
    InvalidProperties,
    MessageIdReused,
    MissingMessageId,
    NoExchange,
    NotFound,
    OutcomeUnknown,
    Refused,
    TooLarge,
    UnknownCommand,
    Unreachable,
    VersionConflict,
)
from outplan.client.events import Events, Reconnected, events
from outplan.client.models import Event, Outplan
from outplan.client.requests import Request
from outplan.client.sync import SyncEvents, SyncOutplanClient, sync_events
from outplan.client.versions import Gap, Unreadable

__all__ = [
    "AlreadyExists",
    "ClientError",
    "CommandRejected",
    "CommandResult",
    "Event",
    "Events",
    "Gap",
    "GivenUp",
    "InvalidCommand",
    "InvalidJson",
    "InvalidProperties",
    "MessageIdReused",
    "MissingMessageId",
    "NoExchange",
    "NotFound",
    "OutcomeUnknown",
    "Outplan",
    "OutplanClient",
    "Progress",
    "Reconnected",
    "Refused",
    "Request",
    "Result",
    "SyncEvents",
    "SyncOutplanClient",
    "TooLarge",
    "UnknownCommand",
    "Unreachable",
    "Unreadable",
    "VersionConflict",
    "events",
    "sync_events",
]
