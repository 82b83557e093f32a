"""Translate the driver's exceptions into the service's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bson.errors import BSONError
from pydantic import ValidationError
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from outplan.contract.invalid import describe_invalid
from outplan.errors import (
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    StoreUnsuitable,
    Unprocessable,
    WrongSetting,
)
from outplan.mongodb.suitability import NO_REPLICA_SET
from outplan.urls import MONGO_FORM

_DUPLICATE_KEY: Final = 11_000
# WriteConflict, NoSuchTransaction and TransactionTooLargeForCache.
_ABORTED: Final = frozenset({112, 251, 388})
# DocumentValidationFailure, BSONObjectTooLarge, TransactionTooLarge and its former codes.
_UNPROCESSABLE: Final = frozenset({121, 10_334, 17_280, 17_419, 17_420, 257, 358})

_LOGIN: Final = "check user, password and authSource in OUTPLAN_MONGO_URL"
_OLD: Final = "a worker needs MongoDB 5.0 or later, at OUTPLAN_MONGO_URL"
_COLLECTION: Final = (
    "a collection of OUTPLAN_MONGO_DATABASE is a view, capped or a time series: rename or drop it"
)
# The server's errors that only a person can mend, with what to do. The worker stops with one
# line. It waits while any other lasts: an election, a shutdown, a full disk.
PERMANENT: Final[dict[int, str]] = {
    13: "grant the user readWrite and dbAdmin on OUTPLAN_MONGO_DATABASE",  # Unauthorized
    18: _LOGIN,  # AuthenticationFailed
    334: _LOGIN,  # MechanismUnavailable
    8_000: _LOGIN,  # Atlas' own
    20: NO_REPLICA_SET,  # IllegalOperation: transaction numbers need a replica set
    76: NO_REPLICA_SET,  # NoReplicationEnabled
    73: "choose another OUTPLAN_MONGO_DATABASE",  # InvalidNamespace
    # DatabaseDifferCase
    13_297: "set OUTPLAN_MONGO_DATABASE to the name of the database that exists",
    72: _COLLECTION,  # InvalidOptions: a validator for a view
    166: _COLLECTION,  # CommandNotSupportedOnView
    263: _COLLECTION,  # OperationNotSupportedInTransaction
    67: "correct or drop that index, in OUTPLAN_MONGO_DATABASE",  # CannotCreateIndex
    85: "drop that index; the next start makes the right one",  # IndexOptionsConflict
    86: "drop that index; the next start makes the right one",  # IndexKeySpecsConflict
    59: _OLD,  # CommandNotFound
    115: _OLD,  # CommandNotSupported
    238: _OLD,  # NotImplemented
    40_415: _OLD,  # IDLUnknownField
}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Let no exception of the driver's out of the block."""
    try:
        yield
    except OutplanError:
        raise
    except (PyMongoError, BSONError, OverflowError, ValidationError) as error:
        raise translate(error) from error


def translate(error: Exception) -> OutplanError:
    """Return the service's exception for one of the driver's."""
    codes = _codes(error)
    if codes & _ABORTED:
        return StoreAborted(shorten(error))
    if _DUPLICATE_KEY in codes:
        return StoreConflict(shorten(error))
    if permanent := codes & PERMANENT.keys():
        return StoreUnsuitable(_explain_permanent(error, min(permanent)))
    if isinstance(error, ConfigurationError):
        return StoreUnsuitable(f"MongoDB: {shorten(error)}; check OUTPLAN_MONGO_URL")
    # A ValidationError means that a stored document breaks the contract.
    at_fault = (BSONError, OverflowError, DocumentTooLarge, InvalidOperation, ValidationError)
    if codes & _UNPROCESSABLE or isinstance(error, at_fault):
        return Unprocessable(shorten(error))
    # Anything else (a full disk, an election, a shutdown) is not the command's fault.
    return StoreUnavailable(shorten(error))


def _explain_permanent(error: Exception, code: int) -> str:
    remedy = PERMANENT[code]
    if remedy == NO_REPLICA_SET:
        return NO_REPLICA_SET
    return f"MongoDB refuses: {shorten(error)} (error {code}); {remedy}"


def shorten(error: Exception) -> str:
    """Return an error in one line.

    Leave out the server's whole reply, and the driver's view of every server, which the driver
    appends.
    """
    if isinstance(error, ValidationError):
        return f"a stored document breaks the contract: {describe_invalid(error)}"
    text = str(error)
    if isinstance(error, BulkWriteError):
        failed = error.details.get("writeErrors") or [{}]
        text = failed[0].get("errmsg", text)
    text = re.split(r", full error|,? Timeout: |, Topology Description", text, maxsplit=1)[0]
    text = " ".join(re.sub(r" \(configured timeouts: [^)]*\)", "", text).split())
    if isinstance(error, ServerSelectionTimeoutError):
        return f"no primary answers: {text}" if text else "no primary answers"
    return text or type(error).__name__


@contextmanager
def explain_wrong_url() -> Iterator[None]:
    """Raise WrongSetting for a URL that the driver does not take; check it in the block."""
    try:
        yield
    except InvalidURI:
        # The driver quotes an unescaped URL, and so part of the password.
        text = f"should be {MONGO_FORM}, with user and password percent-encoded"
        raise WrongSetting(f"OUTPLAN_MONGO_URL: {text}") from None
    except OSError as error:
        # Of TLS: the driver opens certificates at once.
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise WrongSetting(f"OUTPLAN_MONGO_URL: a file cannot be used: {text}") from None
    except (PyMongoError, ValueError) as error:
        raise WrongSetting(f"OUTPLAN_MONGO_URL: {error}") from None


def _codes(error: Exception) -> set[int]:
    codes = {error.code} if isinstance(error, OperationFailure) and error.code else set()
    details = getattr(error, "details", None)
    if not isinstance(details, dict):
        return codes
    return codes | {item.get("code", 0) for item in details.get("writeErrors", ())}
