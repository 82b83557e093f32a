"""Test that every exception of a driver becomes one of the service's errors."""

import asyncio
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import aio_pika.exceptions
import aiormq.exceptions
import bson.errors
import pymongo.errors
import pytest
from aiormq.abc import DeliveredMessage
from pamqp import commands, header
from pymongo import MongoClient

from outplan.contract.messages import Outplan
from outplan.errors import (
    BrokerRefused,
    BrokerUnavailable,
    Fatal,
    Fenced,
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    StoreUnsuitable,
    Unprocessable,
)
from outplan.mongodb import translation as store_translation
from outplan.rabbitmq import connection, refusals
from tests.support.plain_words import find_foreign_words


def list_exceptions(*modules: ModuleType) -> Iterator[type[Exception]]:
    found = {
        each
        for module in modules
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception) and each.__module__.partition(".")[0] in NAMESPACES
    }
    yield from sorted(found, key=lambda each: each.__name__)


NAMESPACES = {"pymongo", "bson", "aiormq", "aio_pika", "pamqp"}
MONGO_EXCEPTIONS = list(list_exceptions(pymongo.errors, bson.errors))
AMQP_EXCEPTIONS = list(list_exceptions(aiormq.exceptions, aio_pika.exceptions))


def make_mongo_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, pymongo.errors.ClientBulkWriteException):
        return kind({"writeErrors": [], "writeConcernErrors": []}, False)
    if issubclass(kind, pymongo.errors.BulkWriteError):
        return kind({"writeErrors": [], "writeConcernErrors": []})
    if issubclass(kind, pymongo.errors.EncryptedCollectionError):
        return kind(ValueError("why"), {})
    if issubclass(kind, pymongo.errors.EncryptionError):
        return kind(ValueError("why"))
    return kind("why")


def make_amqp_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, aiormq.exceptions.DeliveryError):
        returned = commands.Basic.Return(312, "NO_ROUTE", "", "key")
        channel: Any = None
        message = DeliveredMessage(returned, header.ContentHeader(), b"", channel)
        return kind(message, returned)
    return kind("why")


# Exceptions whose class decides; any other means that the server is unavailable.
MONGO_KINDS: dict[str, type[OutplanError]] = {
    "ConfigurationError": StoreUnsuitable,
    "InvalidURI": StoreUnsuitable,
    "DocumentTooLarge": Unprocessable,
    "InvalidOperation": Unprocessable,
    "BSONError": Unprocessable,
    "InvalidBSON": Unprocessable,
    "InvalidDocument": Unprocessable,
    "InvalidId": Unprocessable,
    "InvalidStringData": Unprocessable,
}
AMQP_KINDS: dict[str, type[OutplanError]] = {
    "AuthenticationError": BrokerRefused,
    "ProbableAuthenticationError": BrokerRefused,
    "ChannelAccessRefused": BrokerRefused,
    "ConnectionNotAllowed": BrokerRefused,
    "IncompatibleProtocolError": BrokerRefused,
}


def test_the_expected_translations_name_existing_exceptions() -> None:
    assert len(MONGO_EXCEPTIONS) > 20
    assert len(AMQP_EXCEPTIONS) > 20
    assert MONGO_KINDS.keys() <= {kind.__name__ for kind in MONGO_EXCEPTIONS}
    assert AMQP_KINDS.keys() <= {kind.__name__ for kind in AMQP_EXCEPTIONS}


# --- MongoDB -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MONGO_EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_of_pymongo_is_translated(kind: type[Exception]) -> None:
    found = store_translation.translate(make_mongo_error(kind))
    assert type(found) is MONGO_KINDS.get(kind.__name__, StoreUnavailable)


@pytest.mark.parametrize("kind", MONGO_EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_translate_errors_lets_no_exception_of_pymongo_through(kind: type[Exception]) -> None:
    error = make_mongo_error(kind)
    with pytest.raises(OutplanError) as caught, store_translation.translate_errors():
        raise error
    assert caught.value.__cause__ is error


CODES: list[tuple[int, type[OutplanError]]] = [
    (11_000, StoreConflict),  # DuplicateKey
    (112, StoreAborted),  # WriteConflict
    (13, StoreUnsuitable),  # Unauthorized
    (18, StoreUnsuitable),  # AuthenticationFailed
    (8_000, StoreUnsuitable),
    (13_297, StoreUnsuitable),  # DatabaseDifferCase
    (85, StoreUnsuitable),  # IndexOptionsConflict
    (86, StoreUnsuitable),  # IndexKeySpecsConflict
    (20, StoreUnsuitable),  # IllegalOperation: no replica set
    (121, Unprocessable),  # DocumentValidationFailure
    (10_334, Unprocessable),  # BSONObjectTooLarge
    (17_280, Unprocessable),  # KeyTooLong
    (91, StoreUnavailable),  # ShutdownInProgress
    (189, StoreUnavailable),  # PrimarySteppedDown
    (251, StoreAborted),  # NoSuchTransaction
    (388, StoreAborted),  # TransactionTooLargeForCache
    (17_419, Unprocessable),  # BSONObjectTooLarge, after an update
    (17_420, Unprocessable),  # and after a replacement
    (10_107, StoreUnavailable),  # NotWritablePrimary
    (14_031, StoreUnavailable),  # OutOfDiskSpace
    (50, StoreUnavailable),  # MaxTimeMSExpired
    (64, StoreUnavailable),  # WriteConcernFailed
]


PERMANENT = [(code, StoreUnsuitable) for code in store_translation.PERMANENT]


@pytest.mark.parametrize(("code", "kind"), [*CODES, *PERMANENT])
def test_an_error_code_of_mongodb_decides_the_translation(
    code: int, kind: type[OutplanError]
) -> None:
    plain = pymongo.errors.OperationFailure("why", code)
    bulk = pymongo.errors.BulkWriteError({"writeErrors": [{"code": 0}, {"code": code}]})
    assert type(store_translation.translate(plain)) is kind
    assert type(store_translation.translate(bulk)) is kind


@pytest.mark.parametrize(
    "code",
    [
        257,  # TransactionTooLarge
        358,  # TransactionTooLargeForCache
    ],
)
def test_a_batch_too_large_for_a_transaction_is_unprocessable(code: int) -> None:
    error = pymongo.errors.OperationFailure("too large", code)
    assert type(store_translation.translate(error)) is Unprocessable


def test_a_conflict_in_a_batch_outweighs_an_unprocessable_command() -> None:
    """Retry the batch after a conflict: it may no longer contain the unprocessable command."""
    bulk = pymongo.errors.BulkWriteError({"writeErrors": [{"code": 121}, {"code": 11_000}]})
    assert type(store_translation.translate(bulk)) is StoreConflict


@pytest.mark.parametrize(
    "kind", [pymongo.errors.AutoReconnect, pymongo.errors.NotPrimaryError], ids=lambda k: k.__name__
)
def test_the_details_of_an_error_may_be_a_list(kind: type[pymongo.errors.AutoReconnect]) -> None:
    assert type(store_translation.translate(kind("away", ["one", "two"]))) is StoreUnavailable


def test_a_number_too_large_for_bson_is_unprocessable() -> None:
    with pytest.raises(Unprocessable), store_translation.translate_errors():
        raise OverflowError("MongoDB can only handle up to 8-byte ints")


def test_an_invalid_stored_document_is_unprocessable() -> None:
    """Reject only the commands for that outplan, so that other commands do not wait for it."""
    with pytest.raises(Unprocessable), store_translation.translate_errors():
        Outplan.model_validate({})


OUTPLAN_ERRORS = [Fenced("x"), StoreConflict("x"), Unprocessable("x"), BrokerUnavailable("x")]


@pytest.mark.parametrize("error", OUTPLAN_ERRORS, ids=lambda error: type(error).__name__)
def test_the_services_own_errors_propagate_unchanged(error: OutplanError) -> None:
    with pytest.raises(OutplanError) as caught, store_translation.translate_errors():
        raise error
    assert caught.value is error


def test_a_bug_propagates_unchanged() -> None:
    with pytest.raises(KeyError), store_translation.translate_errors():
        raise KeyError("a bug")


def test_a_permanent_error_says_what_to_do_in_one_line() -> None:
    for code, remedy in store_translation.PERMANENT.items():
        reply = {"ok": 0.0, "errmsg": "why", "code": code, "$clusterTime": {}}
        error = pymongo.errors.OperationFailure("why", code, reply)
        text = str(store_translation.translate(error))
        assert text.endswith(remedy)
        assert "clusterTime" not in text


def test_an_unreachable_server_is_told_without_the_drivers_view_of_it() -> None:
    with (
        MongoClient[dict[str, Any]](
            "mongodb://127.0.0.1:1,127.0.0.1:2/?replicaSet=rs0&serverSelectionTimeoutMS=50"
        ) as client,
        pytest.raises(StoreUnavailable) as caught,
        store_translation.translate_errors(),
    ):
        client.admin.command("ping")
    text = str(caught.value)
    assert text.startswith("no primary answers: 127.0.0.1:")
    assert not find_foreign_words(text)
    assert "Timeout" not in text


# --- RabbitMQ ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AMQP_EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_of_aio_pika_is_translated(kind: type[Exception]) -> None:
    found = refusals.translate(make_amqp_error(kind))
    assert type(found) is AMQP_KINDS.get(kind.__name__, BrokerUnavailable)


@pytest.mark.parametrize("kind", AMQP_EXCEPTIONS, ids=lambda kind: kind.__name__)
async def test_translate_errors_lets_no_exception_of_aio_pika_through(
    kind: type[Exception],
) -> None:
    error = make_amqp_error(kind)
    with pytest.raises(OutplanError) as caught, connection.translate_errors():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("x"), ConnectionResetError("x"), TimeoutError("x"), OSError("x"),
     RuntimeError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_socket_error_means_that_the_broker_is_unavailable(error: Exception) -> None:
    with pytest.raises(BrokerUnavailable), connection.translate_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "TimeoutError: no answer in time"),
        (EOFError(), "EOFError"),
        (OSError("x"), "OSError: x"),
    ],
)
def test_an_error_without_text_shows_its_type(error: Exception, text: str) -> None:
    assert str(refusals.translate(error)) == text


class FakeDriver:
    """A connection of aiormq that is closed while connecting, or raises while closing."""

    def __init__(self, code: int, error: BaseException, transport_factory: Any) -> None:
        self.code, self.error, self.factory = code, error, transport_factory
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.vhost = "nope"

    async def connect(self) -> None:
        if self.code:
            self.factory._on_close(self.code, "NOT_ALLOWED - vhost nope not found")
            raise self.error

    async def ready(self) -> None:
        return None

    async def close(self, _: BaseException) -> None:
        raise self.error


async def connect(monkeypatch: pytest.MonkeyPatch, code: int, error: BaseException) -> None:
    def make_driver(_: object, *, transport_factory: object, **__: object) -> FakeDriver:
        return FakeDriver(code, error, transport_factory)

    monkeypatch.setattr("outplan.rabbitmq.connection._Driver", make_driver)
    async with connection.open_connection("amqp://localhost/nope", "consume"):
        pass


@pytest.mark.parametrize("error", [ConnectionResetError("x"), asyncio.CancelledError()])
async def test_a_refused_virtual_host_names_the_setting_to_change(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Decide by the close code, whatever exception aiormq raises."""
    with pytest.raises(BrokerRefused, match=r"virtual host.*OUTPLAN_AMQP_URL"):
        await connect(monkeypatch, 530, error)
    with pytest.raises(BrokerUnavailable):
        await connect(monkeypatch, 320, error)


@pytest.mark.parametrize("kind", AMQP_EXCEPTIONS, ids=lambda kind: kind.__name__)
async def test_an_error_while_closing_a_connection_is_ignored(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    await connect(monkeypatch, 0, make_amqp_error(kind))


async def test_a_cancellation_by_aiormq_means_that_the_broker_is_unavailable() -> None:
    with pytest.raises(BrokerUnavailable), connection.translate_errors():
        raise asyncio.CancelledError


@pytest.mark.parametrize("raised", [asyncio.CancelledError, ConnectionResetError])
async def test_a_cancelled_caller_stays_cancelled_whatever_aiormq_raises(
    raised: type[BaseException],
) -> None:
    async def wait() -> None:
        with connection.translate_errors():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise raised from None

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_error_for_a_queue_with_other_arguments_names_the_setting_to_change() -> None:
    raises = pytest.raises(BrokerRefused, match="queue a")
    with raises as caught, connection.explain_conflicts("queue a"):
        raise aiormq.exceptions.ChannelPreconditionFailed("inequivalent arg")
    assert "OUTPLAN_PREFIX" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [refusals.translate(make_amqp_error(kind)) for kind in AMQP_EXCEPTIONS]
    + [store_translation.translate(make_mongo_error(kind)) for kind in MONGO_EXCEPTIONS],
    ids=lambda error: type(error).__name__,
)
def test_a_fatal_error_names_a_setting_or_a_permission(error: OutplanError) -> None:
    if isinstance(error, Fatal):
        assert "OUTPLAN_" in str(error) or "permission" in str(error)
