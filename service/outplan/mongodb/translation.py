"""Translate the driver's exceptions into the service's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bson.errors import BSONError
from pydantic import ValidationError
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)

from outplan.errors import (
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    StoreUnsuitable,
    Unprocessable,
)
from outplan.mongodb.suitability import NO_REPLICA_SET

_DUPLICATE_KEY: Final = 11_000
# WriteConflict, NoSuchTransaction and TransactionTooLargeForCache.
_ABORTED: Final = frozenset({112, 251, 388})
_OTHER_INDEX: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict
_REFUSED: Final = frozenset({13, 18, 8_000})  # Unauthorized, AuthenticationFailed, Atlas' own
_ILLEGAL_OPERATION: Final = 20  # "Transaction numbers are only allowed on a replica set member …"
# DocumentValidationFailure, BSONObjectTooLarge, TransactionTooLarge and its former codes.
_UNPROCESSABLE: Final = frozenset({121, 10_334, 17_280, 17_419, 17_420, 257, 358})


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
        return StoreAborted(str(error))
    if _DUPLICATE_KEY in codes:
        return StoreConflict(str(error))
    if codes & _REFUSED or isinstance(error, ConfigurationError):
        return StoreUnsuitable(f"MongoDB refuses: {shorten(error)}; check OUTPLAN_MONGO_URL")
    if codes & _OTHER_INDEX:
        return StoreUnsuitable(f"{error}: drop that index; the next start makes the right one")
    if _ILLEGAL_OPERATION in codes:
        return StoreUnsuitable(NO_REPLICA_SET)
    # A ValidationError means that a stored document breaks the contract.
    at_fault = (BSONError, OverflowError, DocumentTooLarge, InvalidOperation, ValidationError)
    if codes & _UNPROCESSABLE or isinstance(error, at_fault):
        return Unprocessable(str(error))
    # Anything else (a full disk, an election, a shutdown) is not the command's fault.
    return StoreUnavailable(str(error))


def shorten(error: Exception) -> str:
    """Return an error's text without the server's reply, which the driver repeats."""
    return str(error).partition(", full error")[0].partition(", Timeout: ")[0]


def _codes(error: Exception) -> set[int]:
    codes = {error.code} if isinstance(error, OperationFailure) and error.code else set()
    details = getattr(error, "details", None)
    if not isinstance(details, dict):
        return codes
    return codes | {item.get("code", 0) for item in details.get("writeErrors", ())}
