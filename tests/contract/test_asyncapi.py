"""Compare schemas/asyncapi.yaml with the declared topology and the message models."""

import json
from collections.abc import Iterator
from string import Formatter
from typing import Any, Final, get_args

import pytest
import yaml  # type: ignore[import-untyped]  # has no stubs among its files

from outplan.contract.fields import PUBLISHER
from outplan.contract.messages import COMMANDS, EventType
from outplan.contract.slots import SLOTS, routing_key, slots_of
from outplan.contract.topology import Binding, Exchange, build_topology
from tests.contract.schema_files import SCHEMAS

DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
CHANNELS: Final = DOCUMENT["channels"]
MESSAGES: Final = DOCUMENT["components"]["messages"]
LAYOUT: Final = build_topology(partitions=3)


def find_references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from find_references(part)


def resolve(reference: str) -> Any:
    file, _, pointer = reference.partition("#")
    found = json.loads((SCHEMAS / file).read_text()) if file else DOCUMENT
    for step in pointer.split("/")[1:]:
        found = found[step]
    return found


def amqp_binding(channel: str) -> dict[str, Any]:
    binding: dict[str, Any] = CHANNELS[channel]["bindings"]["amqp"]
    return binding


def read_bindings(channel: str, queue: str = "", slot: str = "") -> set[Binding]:
    return {
        Binding(
            binding["source"],
            binding.get("destination_exchange", queue),
            binding["routing_key"].replace("{slot}", slot),
            to_exchange="destination_exchange" in binding,
        )
        for binding in CHANNELS[channel]["x-amqp-bindings"]
    }


@pytest.mark.parametrize("reference", sorted(set(find_references(DOCUMENT))))
def test_every_reference_resolves(reference: str) -> None:
    assert isinstance(resolve(reference), dict)


@pytest.mark.parametrize(
    ("channel", "exchange"),
    [
        ("commands", LAYOUT.commands),
        ("bare_commands", LAYOUT.commands),
        ("events", LAYOUT.events),
    ],
)
def test_each_exchange_is_described_as_declared(channel: str, exchange: Any) -> None:
    described = amqp_binding(channel)["exchange"]
    assert (described["name"], described["type"]) == (exchange.name, exchange.type)
    assert described["durable"] is True
    assert not exchange.arguments


def test_the_exchanges_behind_the_commands_are_described_as_declared() -> None:
    described = CHANNELS["commands"]["x-amqp-exchanges"]
    assert all(exchange["durable"] is True for exchange in described)
    assert [Exchange(e["name"], e["type"], e["arguments"]) for e in described] == [
        LAYOUT.slots,
        LAYOUT.alternate,
    ]


@pytest.mark.parametrize(
    ("channel", "queue"),
    [("command_queue", LAYOUT.main), ("rejected", LAYOUT.rejected)],
)
def test_each_queue_is_described_as_declared(channel: str, queue: Any) -> None:
    described = amqp_binding(channel)["queue"]
    assert CHANNELS[channel]["address"] == described["name"] == queue.name
    assert (described["durable"], described["exclusive"], described["autoDelete"]) == (
        True,
        False,
        False,
    )
    assert CHANNELS[channel]["x-amqp-queue-arguments"] == queue.arguments


@pytest.mark.parametrize("number", range(3))
def test_each_partition_is_described_as_declared(number: int) -> None:
    channel, queue = CHANNELS["command_partitions"], LAYOUT.partitions[number]
    assert channel["address"] == amqp_binding("command_partitions")["queue"]["name"]
    assert channel["address"].replace("{partition}", str(number)) == queue.name
    assert channel["x-amqp-queue-arguments"] == queue.arguments


def test_the_bindings_are_described_as_declared() -> None:
    described = read_bindings("commands") | read_bindings("command_queue", LAYOUT.main.name)
    assert described == set(LAYOUT.bindings)
    slots = [
        read_bindings("command_partitions", queue.name, slot)
        for number, queue in enumerate(LAYOUT.partitions)
        for slot in slots_of(number, len(LAYOUT.partitions))
    ]
    assert set().union(*slots) == set(LAYOUT.slot_bindings)


def test_every_declared_exchange_and_queue_is_described() -> None:
    bindings = [amqp_binding(channel) for channel in CHANNELS if "bindings" in CHANNELS[channel]]
    exchanges = {b["exchange"]["name"] for b in bindings if "exchange" in b}
    behind = {e["name"] for c in CHANNELS.values() for e in c.get("x-amqp-exchanges", ())}
    queues = {b["queue"]["name"] for b in bindings if "queue" in b}
    assert exchanges | behind == {exchange.name for exchange in LAYOUT.exchanges}
    assert queues == {queue.name for queue in (LAYOUT.rejected, LAYOUT.main)} | {
        "outplan.commands.{partition}"
    }


@pytest.mark.parametrize("name", [*COMMANDS, *get_args(EventType)])
def test_each_message_names_its_schema_and_its_amqp_type(name: str) -> None:
    message = MESSAGES[name]
    assert message["payload"]["schema"]["$ref"] == f"./{name}.json"
    assert message["bindings"]["amqp"]["messageType"] == name == message["name"]
    assert message["headers"]["$ref"]
    assert message["x-amqp-properties"]["$ref"]


@pytest.mark.parametrize(
    "channel", ["commands", "bare_commands", "command_queue", "command_partitions"]
)
def test_each_command_channel_lists_every_command(channel: str) -> None:
    assert CHANNELS[channel]["messages"].keys() == COMMANDS.keys()


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
def test_the_parameters_of_a_channel_are_those_of_its_address(channel: dict[str, Any]) -> None:
    names = {name for _, name, _, _ in Formatter().parse(channel["address"] or "") if name}
    assert channel.get("parameters", {}).keys() == names


def test_the_routing_key_of_a_command_is_its_name_and_slot() -> None:
    address, parameters = CHANNELS["commands"]["address"], CHANNELS["commands"]["parameters"]
    slots = parameters["slot"]["examples"]
    assert slots
    assert set(slots) <= set(SLOTS)
    for slot in slots:
        key = routing_key("outplan_update", f"0192f0c1-7a51-7b7e-a2f5-d7a0e9a4b1{slot}")
        assert address.format(command="outplan_update", slot=slot) == key
    assert CHANNELS["bare_commands"]["address"] == "{command}"


def test_routing_keys_start_with_the_message_name() -> None:
    for channel in ("commands", "bare_commands"):
        assert CHANNELS[channel]["parameters"]["command"]["enum"] == list(COMMANDS)
    assert CHANNELS["events"]["parameters"]["event"]["enum"] == list(get_args(EventType))
    assert CHANNELS["events"]["address"] == "{event}.{customer_id}.{outplan_id}"
    assert CHANNELS["events"]["messages"].keys() == set(get_args(EventType))


def test_every_receive_operation_describes_its_reply() -> None:
    received = [o for o in DOCUMENT["operations"].values() if o["action"] == "receive"]
    assert len(received) == 4
    assert all(o["reply"]["channel"]["$ref"] == "#/channels/replies" for o in received)
    assert MESSAGES["outplan_reply"]["payload"]["schema"]["$ref"] == "./reply.json"


@pytest.mark.parametrize("operation", DOCUMENT["operations"])
def test_each_operation_lists_every_message_of_its_channel(operation: str) -> None:
    described = DOCUMENT["operations"][operation]
    channel = described["channel"]["$ref"]
    messages = {message["$ref"] for message in described["messages"]}
    assert messages == {f"{channel}/messages/{name}" for name in resolve(channel)["messages"]}


def test_properties_and_headers_match_the_contract() -> None:
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
