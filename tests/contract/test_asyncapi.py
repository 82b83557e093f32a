"""The AsyncAPI document says what the topology declares and the messages are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml  # type: ignore[import-untyped]  # has no stubs among its files

from outplan.contract.fields import PUBLISHER
from outplan.contract.messages import COMMANDS, EventType
from outplan.contract.topology import Binding, topology

SCHEMAS: Final = Path(__file__).parents[2] / "schemas"
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
CHANNELS: Final = DOCUMENT["channels"]
MESSAGES: Final = DOCUMENT["components"]["messages"]
ONE: Final = topology()
MANY: Final = topology(partitions=3)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from references(part)


def resolve(reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    found = json.loads((SCHEMAS / file).read_text()) if file else DOCUMENT
    for step in pointer.split("/")[1:]:
        found = found[step]
    return found


def amqp(channel: str) -> dict[str, Any]:
    binding: dict[str, Any] = CHANNELS[channel]["bindings"]["amqp"]
    return binding


def bound(channel: str, queue: str) -> set[Binding]:
    return {
        Binding(
            binding["source"],
            binding.get("destination_exchange", queue),
            binding["routing_key"],
            to_exchange="destination_exchange" in binding,
        )
        for binding in CHANNELS[channel]["x-amqp-bindings"]
    }


@pytest.mark.parametrize("reference", sorted(set(references(DOCUMENT))))
def test_every_reference_resolves(reference: str) -> None:
    assert isinstance(resolve(reference), dict)


@pytest.mark.parametrize(
    ("channel", "exchange"), [("commands", ONE.commands), ("events", ONE.events)]
)
def test_an_exchange_is_the_one_that_is_declared(channel: str, exchange: Any) -> None:
    described = amqp(channel)["exchange"]
    assert (described["name"], described["type"]) == (exchange.name, exchange.type)
    assert described["durable"] is True
    assert not exchange.arguments


def test_the_partitioner_is_the_one_that_is_declared() -> None:
    described = CHANNELS["command_partitions"]["x-amqp-partitioner"]
    assert MANY.partitioner is not None
    assert (described["name"], described["type"]) == (MANY.partitioner.name, MANY.partitioner.type)
    assert described["arguments"] == MANY.partitioner.arguments


@pytest.mark.parametrize(
    ("channel", "queue"), [("command_queue", ONE.command_queues[0]), ("rejected", ONE.rejected)]
)
def test_a_queue_is_the_one_that_is_declared(channel: str, queue: Any) -> None:
    described = amqp(channel)["queue"]
    assert CHANNELS[channel]["address"] == described["name"] == queue.name
    assert (described["durable"], described["exclusive"], described["autoDelete"]) == (
        True,
        False,
        False,
    )
    assert CHANNELS[channel]["x-amqp-queue-arguments"] == queue.arguments


@pytest.mark.parametrize("number", range(3))
def test_a_partition_is_the_one_that_is_declared(number: int) -> None:
    channel, queue = CHANNELS["command_partitions"], MANY.command_queues[number]
    assert channel["address"] == amqp("command_partitions")["queue"]["name"]
    assert channel["address"].replace("{partition}", str(number)) == queue.name
    assert channel["x-amqp-queue-arguments"] == queue.arguments


def test_the_bindings_are_those_that_are_declared() -> None:
    assert bound("command_queue", ONE.command_queues[0].name) == set(ONE.bindings)
    queues = [queue.name for queue in MANY.command_queues]
    partitioned = set().union(*(bound("command_partitions", queue) for queue in queues))
    assert partitioned == set(MANY.bindings)


def test_everything_that_is_declared_is_described() -> None:
    bindings = [amqp(channel) for channel in CHANNELS if "bindings" in CHANNELS[channel]]
    exchanges = {b["exchange"]["name"] for b in bindings if "exchange" in b}
    queues = {b["queue"]["name"] for b in bindings if "queue" in b}
    assert exchanges == {exchange.name for exchange in ONE.exchanges}
    assert queues == {queue.name for queue in ONE.queues} | {"outplan.commands.{partition}"}


@pytest.mark.parametrize("name", [*COMMANDS, *get_args(EventType)])
def test_a_message_has_its_schema_and_its_type(name: str) -> None:
    message = MESSAGES[name]
    assert message["payload"]["schema"]["$ref"] == f"./{name}.json"
    assert message["bindings"]["amqp"]["messageType"] == name == message["name"]
    assert message["headers"]["$ref"]
    assert message["x-amqp-properties"]["$ref"]


@pytest.mark.parametrize("channel", ["commands", "command_queue", "command_partitions"])
def test_a_channel_for_commands_carries_every_command(channel: str) -> None:
    assert CHANNELS[channel]["messages"].keys() == COMMANDS.keys()


def test_commands_and_events_are_routed_by_their_names() -> None:
    assert CHANNELS["commands"]["parameters"]["command"]["enum"] == list(COMMANDS)
    assert CHANNELS["events"]["parameters"]["event"]["enum"] == list(get_args(EventType))
    assert CHANNELS["events"]["address"] == "{event}.{customer_id}.{outplan_id}"
    assert CHANNELS["events"]["messages"].keys() == set(get_args(EventType))


def test_a_command_that_asks_for_it_gets_a_reply() -> None:
    received = [o for o in DOCUMENT["operations"].values() if o["action"] == "receive"]
    assert len(received) == 3
    assert all(o["reply"]["channel"]["$ref"] == "#/channels/replies" for o in received)
    assert MESSAGES["outplan_reply"]["payload"]["schema"]["$ref"] == "./reply.json"


@pytest.mark.parametrize("operation", DOCUMENT["operations"])
def test_an_operation_handles_every_message_of_its_channel(operation: str) -> None:
    described = DOCUMENT["operations"][operation]
    channel = described["channel"]["$ref"]
    messages = {message["$ref"] for message in described["messages"]}
    assert messages == {f"{channel}/messages/{name}" for name in resolve(channel)["messages"]}


def test_the_properties_are_those_of_the_contract() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["command_properties"]["required"] == ["message_id"]
    assert schemas["command_properties"]["properties"]["type"]["enum"] == list(COMMANDS)
    assert schemas["event_properties"]["properties"]["app_id"]["const"] == PUBLISHER
    assert schemas["event_headers"]["required"] == ["outplan_id", "customer_id", "version"]
    assert schemas["rejected_headers"]["properties"].keys() == {
        "x-problem-code",
        "x-problem",
        "x-rejected-at",
        "x-original-exchange",
        "x-original-routing-key",
    }
