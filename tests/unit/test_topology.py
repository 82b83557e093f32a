"""Test names, arguments and bindings against sections 2, 4 and 6 of the contract."""

import pytest

from outplan.contract.topology import (
    DELIVERY_LIMIT,
    PREFETCH,
    Binding,
    Exchange,
    Queue,
    Topology,
    build_topology,
)


def test_the_topology_without_partitions_has_the_contracts_names() -> None:
    layout = build_topology()
    assert layout.commands == Exchange("outplan.commands", "topic")
    assert layout.events == Exchange("outplan.events", "topic")
    assert [queue.name for queue in layout.command_queues] == ["outplan.commands"]
    assert layout.rejected.name == "outplan.rejected"
    assert layout.slot_bindings == ()


@pytest.mark.parametrize("partitions", [1, 3])
def test_what_no_slot_matches_falls_to_the_main_queue(partitions: int) -> None:
    layout = build_topology(partitions=partitions)
    assert layout.slots == Exchange(
        "outplan.commands.slots", "topic", {"alternate-exchange": "outplan.commands.alternate"}
    )
    assert layout.alternate == Exchange("outplan.commands.alternate", "fanout")
    assert layout.bindings == (
        Binding("outplan.commands.alternate", "outplan.commands", ""),
        Binding("outplan.commands", "outplan.commands.slots", "#", to_exchange=True),
    )


def test_each_slot_is_bound_to_its_partition() -> None:
    layout = build_topology(partitions=3)
    names = ["outplan.commands.0", "outplan.commands.1", "outplan.commands.2"]
    assert [queue.name for queue in layout.partitions] == names
    assert layout.command_queues == (layout.main, *layout.partitions)
    bound = layout.slot_bindings
    assert [b.routing_key for b in bound] == [f"*.{n:02x}" for n in range(256)]
    assert [b.destination for b in bound] == [*[names[0]] * 86, *[names[1]] * 85, *[names[2]] * 85]
    assert {b.source for b in bound} == {"outplan.commands.slots"}


def list_names(layout: Topology) -> list[str]:
    return [each.name for each in layout.exchanges] + [each.name for each in layout.queues]


@pytest.mark.parametrize("partitions", [1, 2, 256])
def test_every_name_starts_with_the_prefix(partitions: int) -> None:
    layout, plain = build_topology("team.x", partitions), build_topology(partitions=partitions)
    names = list_names(layout)
    assert names == [name.replace("outplan", "team.x", 1) for name in list_names(plain)]
    assert all(name.startswith("team.x.") for name in names)


@pytest.mark.parametrize("partitions", [1, 4])
def test_bindings_name_only_declared_exchanges_and_queues(partitions: int) -> None:
    layout = build_topology(partitions=partitions)
    exchanges = {exchange.name for exchange in layout.exchanges}
    queues = {queue.name for queue in layout.queues}
    for binding in (*layout.bindings, *layout.slot_bindings):
        assert binding.source in exchanges
        assert binding.destination in (exchanges if binding.to_exchange else queues)


@pytest.mark.parametrize(
    "queue",
    build_topology().command_queues + build_topology("p", 2).command_queues,
    ids=lambda queue: queue.name,
)
def test_a_command_queue_has_one_active_consumer_and_dead_letters_at_least_once(
    queue: Queue,
) -> None:
    prefix = queue.name.partition(".")[0]
    assert queue.arguments == {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{prefix}.rejected",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_the_rejected_queue_has_no_limits_that_drop_messages() -> None:
    rejected = build_topology().rejected
    assert rejected.arguments == {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000}


@pytest.mark.parametrize("partitions", [1, 3])
def test_exchanges_and_queues_list_every_declaration(partitions: int) -> None:
    layout = build_topology(partitions=partitions)
    assert len(layout.exchanges) == 4
    assert layout.queues == (layout.rejected, *layout.command_queues)


def test_the_prefetch_is_positive_and_fits_into_16_bits() -> None:
    assert 0 < PREFETCH <= 65_535, "AMQP has 16 bits for the prefetch, and 0 means no limit"
