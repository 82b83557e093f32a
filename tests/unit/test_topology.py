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
    assert layout.partitioner is None
    assert layout.bindings == (Binding("outplan.commands", "outplan.commands", "#"),)


def test_partitions_are_bound_to_a_consistent_hash_of_the_outplan_id() -> None:
    layout = build_topology(partitions=3)
    assert layout.partitioner == Exchange(
        "outplan.commands.partitions", "x-consistent-hash", {"hash-header": "outplan_id"}
    )
    names = ["outplan.commands.0", "outplan.commands.1", "outplan.commands.2"]
    assert [queue.name for queue in layout.command_queues] == names
    assert layout.bindings == (
        Binding("outplan.commands", "outplan.commands.partitions", "#", to_exchange=True),
        *(Binding("outplan.commands.partitions", name, "1") for name in names),
    )


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
    for binding in layout.bindings:
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
    assert len(layout.exchanges) == (2 if partitions == 1 else 3)
    assert layout.queues == (layout.rejected, *layout.command_queues)


def test_the_prefetch_is_positive_and_fits_into_16_bits() -> None:
    assert 0 < PREFETCH <= 65_535, "AMQP has 16 bits for the prefetch, and 0 means no limit"
