"""No driver's exception leaves the store or the broker, whichever class it is of."""

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
from outplan.rabbitmq import connection
from outplan.rabbitmq.reader import FrameHandler


def exceptions(*modules: ModuleType) -> Iterator[type[Exception]]:
    found = {
        each
        for module in modules
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception) and each.__module__.partition(".")[0] in NAMESPACES
    }
    yield from sorted(found, key=lambda each: each.__name__)


NAMESPACES = {"pymongo", "bson", "aiormq", "aio_pika", "pamqp"}
OF_MONGO = list(exceptions(pymongo.errors, bson.errors))
OF_AMQP = list(exceptions(aiormq.exceptions, aio_pika.exceptions))


def mongo_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, pymongo.errors.ClientBulkWriteException):
        return kind({"writeErrors": [], "writeConcernErrors": []}, False)
    if issubclass(kind, pymongo.errors.BulkWriteError):
        return kind({"writeErrors": [], "writeConcernErrors": []})
    if issubclass(kind, pymongo.errors.EncryptedCollectionError):
        return kind(ValueError("why"), {})
    if issubclass(kind, pymongo.errors.EncryptionError):
        return kind(ValueError("why"))
    return kind("why")


def amqp_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, aiormq.exceptions.DeliveryError):
        returned = commands.Basic.Return(312, "NO_ROUTE", "", "key")
        channel: Any = None
        message = DeliveredMessage(returned, header.ContentHeader(), b"", channel)
        return kind(message, returned)
    return kind("why")


# What a class alone says; all others are a server that is away, whatever the reason.
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
    "IncompatibleProtocolError": BrokerRefused,
}


def test_the_lists_are_not_empty_and_name_only_what_there_is() -> None:
    assert len(OF_MONGO) > 20
    assert len(OF_AMQP) > 20
    assert MONGO_KINDS.keys() <= {kind.__name__ for kind in OF_MONGO}
    assert AMQP_KINDS.keys() <= {kind.__name__ for kind in OF_AMQP}


# --- MongoDB -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_MONGO, ids=lambda kind: kind.__name__)
def test_every_exception_of_mongodbs_driver_has_its_translation(kind: type[Exception]) -> None:
    found = store_translation.translate(mongo_error(kind))
    assert type(found) is MONGO_KINDS.get(kind.__name__, StoreUnavailable)


@pytest.mark.parametrize("kind", OF_MONGO, ids=lambda kind: kind.__name__)
def test_none_of_mongodbs_driver_leaves_the_store(kind: type[Exception]) -> None:
    error = mongo_error(kind)
    with pytest.raises(OutplanError) as caught, store_translation.translate_errors():
        raise error
    assert caught.value.__cause__ is error


CODES: list[tuple[int, type[OutplanError]]] = [
    (11_000, StoreConflict),  # DuplicateKey
    (112, StoreAborted),  # WriteConflict
    (13, StoreUnsuitable),  # Unauthorized
    (18, StoreUnsuitable),  # AuthenticationFailed
    (8_000, StoreUnsuitable),
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


@pytest.mark.parametrize(("code", "kind"), CODES)
def test_a_servers_code_says_whose_fault_it_is(code: int, kind: type[OutplanError]) -> None:
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
def test_a_batch_too_large_for_a_transaction_is_taken_apart(code: int) -> None:
    error = pymongo.errors.OperationFailure("too large", code)
    assert type(store_translation.translate(error)) is Unprocessable


def test_somebody_elses_success_outweighs_a_culprit_in_the_same_batch() -> None:
    """Judged again, the batch may not hold the culprit any more."""
    bulk = pymongo.errors.BulkWriteError({"writeErrors": [{"code": 121}, {"code": 11_000}]})
    assert type(store_translation.translate(bulk)) is StoreConflict


@pytest.mark.parametrize(
    "kind", [pymongo.errors.AutoReconnect, pymongo.errors.NotPrimaryError], ids=lambda k: k.__name__
)
def test_details_may_be_a_list(kind: type[pymongo.errors.AutoReconnect]) -> None:
    assert type(store_translation.translate(kind("away", ["one", "two"]))) is StoreUnavailable


def test_a_number_too_large_for_bson_is_the_commands_fault() -> None:
    with pytest.raises(Unprocessable), store_translation.translate_errors():
        raise OverflowError("MongoDB can only handle up to 8-byte ints")


def test_what_is_stored_and_breaks_the_contract_is_the_commands_fault() -> None:
    """Of the one that it is about: its neighbours are not to wait for it."""
    with pytest.raises(Unprocessable), store_translation.translate_errors():
        Outplan.model_validate({})


OWN = [Fenced("x"), StoreConflict("x"), Unprocessable("x"), BrokerUnavailable("x")]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_the_services_own_exceptions_pass_the_store_as_they_are(error: OutplanError) -> None:
    with pytest.raises(OutplanError) as caught, store_translation.translate_errors():
        raise error
    assert caught.value is error


def test_a_bug_is_not_called_an_outage() -> None:
    with pytest.raises(KeyError), store_translation.translate_errors():
        raise KeyError("a bug")


# --- RabbitMQ ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_AMQP, ids=lambda kind: kind.__name__)
def test_every_exception_of_rabbitmqs_driver_has_its_translation(kind: type[Exception]) -> None:
    found = connection.translate(amqp_error(kind))
    assert type(found) is AMQP_KINDS.get(kind.__name__, BrokerUnavailable)


@pytest.mark.parametrize("kind", OF_AMQP, ids=lambda kind: kind.__name__)
async def test_none_of_rabbitmqs_driver_leaves_the_broker(kind: type[Exception]) -> None:
    error = amqp_error(kind)
    with pytest.raises(OutplanError) as caught, connection.translate_errors():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("x"), ConnectionResetError("x"), TimeoutError("x"), OSError("x"),
     RuntimeError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_socket_that_fails_is_a_broker_that_is_away(error: Exception) -> None:
    with pytest.raises(BrokerUnavailable), connection.translate_errors():
        raise error


class FakeDriver:
    """A driver's connection that ends while connecting, or raises while closing."""

    def __init__(self, code: int, error: BaseException, transport_factory: Any) -> None:
        self.code, self.error, self.factory = code, error, transport_factory
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        if self.code:
            self.factory._on_close(self.code, "why")
            raise self.error

    async def ready(self) -> None:
        return None

    async def close(self, _: BaseException) -> None:
        raise self.error


async def connect(monkeypatch: pytest.MonkeyPatch, code: int, error: BaseException) -> None:
    def driver(_: object, *, transport_factory: object, **__: object) -> FakeDriver:
        return FakeDriver(code, error, transport_factory)

    monkeypatch.setattr("aiormq.connection.Connection", driver)
    async with connection.open_connection("amqp://localhost/nope", "consume", FrameHandler()):
        pass


@pytest.mark.parametrize("error", [ConnectionResetError("x"), asyncio.CancelledError()])
async def test_a_virtual_host_that_is_refused_is_for_a_person_to_mend(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever the library makes of it."""
    with pytest.raises(BrokerRefused, match=r"/nope.*OUTPLAN_AMQP_URL"):
        await connect(monkeypatch, 530, error)
    with pytest.raises(BrokerUnavailable):
        await connect(monkeypatch, 320, error)


@pytest.mark.parametrize("kind", OF_AMQP, ids=lambda kind: kind.__name__)
async def test_closing_what_is_broken_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    await connect(monkeypatch, 0, amqp_error(kind))


async def test_what_the_library_cancels_is_a_broker_that_is_away() -> None:
    with pytest.raises(BrokerUnavailable), connection.translate_errors():
        raise asyncio.CancelledError


@pytest.mark.parametrize("raised", [asyncio.CancelledError, ConnectionResetError])
async def test_a_cancelled_caller_stays_cancelled_whatever_the_driver_raises(
    raised: type[BaseException],
) -> None:
    async def waiting() -> None:
        with connection.translate_errors():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise raised from None

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_queue_with_other_arguments_is_refused_with_what_to_do() -> None:
    refused = pytest.raises(BrokerRefused, match="queue a")
    with refused as caught, connection.explain_conflicts("queue a"):
        raise aiormq.exceptions.ChannelPreconditionFailed("inequivalent arg")
    assert "OUTPLAN_PREFIX" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [aiormq.exceptions.ConnectionCommandInvalid, aiormq.exceptions.ChannelPreconditionFailed],
    ids=["RabbitMQ 3", "RabbitMQ 4"],
)
def test_a_missing_plugin_is_refused_with_what_to_do(error: type[Exception]) -> None:
    plugin = "rabbitmq_consistent_hash_exchange"
    with pytest.raises(BrokerRefused, match=plugin), connection.explain_conflicts("exchange a"):
        raise error("unknown exchange type 'x-consistent-hash'")


@pytest.mark.parametrize(
    "found",
    [connection.translate(amqp_error(kind)) for kind in OF_AMQP]
    + [store_translation.translate(mongo_error(kind)) for kind in OF_MONGO],
    ids=lambda found: type(found).__name__,
)
def test_what_is_fatal_says_which_setting_to_look_at(found: OutplanError) -> None:
    if isinstance(found, Fatal):
        assert "OUTPLAN_" in str(found) or "permission" in str(found)
