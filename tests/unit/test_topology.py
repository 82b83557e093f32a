"""Names, arguments and bindings, as section 2, 4 and 6 of the contract have them."""

import pytest

from outplan.contract.topology import (
    DELIVERY_LIMIT,
    PREFETCH,
    Binding,
    Exchange,
    Queue,
    Topology,
    topology,
)


def test_unpartitioned_everything_has_the_contracts_name() -> None:
    layout = topology()
    assert layout.commands == Exchange("outplan.commands", "topic")
    assert layout.events == Exchange("outplan.events", "topic")
    assert [queue.name for queue in layout.command_queues] == ["outplan.commands"]
    assert layout.rejected.name == "outplan.rejected"
    assert layout.partitioner is None
    assert layout.bindings == (Binding("outplan.commands", "outplan.commands", "#"),)


def test_partitioned_a_consistent_hash_on_the_outplan_id_spreads() -> None:
    layout = topology(partitions=3)
    assert layout.partitioner == Exchange(
        "outplan.commands.partitions", "x-consistent-hash", {"hash-header": "outplan_id"}
    )
    names = ["outplan.commands.0", "outplan.commands.1", "outplan.commands.2"]
    assert [queue.name for queue in layout.command_queues] == names
    assert layout.bindings == (
        Binding("outplan.commands", "outplan.commands.partitions", "#", to_exchange=True),
        *(Binding("outplan.commands.partitions", name, "1") for name in names),
    )


def names_of(layout: Topology) -> list[str]:
    return [each.name for each in layout.exchanges] + [each.name for each in layout.queues]


@pytest.mark.parametrize("partitions", [1, 2, 256])
def test_a_prefix_is_in_front_of_every_name(partitions: int) -> None:
    layout, plain = topology("team.x", partitions), topology(partitions=partitions)
    names = names_of(layout)
    assert names == [name.replace("outplan", "team.x", 1) for name in names_of(plain)]
    assert all(name.startswith("team.x.") for name in names)


@pytest.mark.parametrize("partitions", [1, 4])
def test_what_is_bound_is_declared_before(partitions: int) -> None:
    layout = topology(partitions=partitions)
    exchanges = {exchange.name for exchange in layout.exchanges}
    queues = {queue.name for queue in layout.queues}
    for binding in layout.bindings:
        assert binding.source in exchanges
        assert binding.destination in (exchanges if binding.to_exchange else queues)


def command_queues(layout: Topology) -> list[Queue]:
    return list(layout.command_queues)


@pytest.mark.parametrize("queue", command_queues(topology()) + command_queues(topology("p", 2)))
def test_a_command_queue_keeps_order_and_loses_nothing(queue: Queue) -> None:
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


def test_nothing_drops_what_is_rejected() -> None:
    rejected = topology().rejected
    assert rejected.arguments == {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000}


@pytest.mark.parametrize("partitions", [1, 3])
def test_all_that_is_declared_is_listed(partitions: int) -> None:
    layout = topology(partitions=partitions)
    assert len(layout.exchanges) == (2 if partitions == 1 else 3)
    assert layout.queues == (layout.rejected, *layout.command_queues)


def test_the_prefetch_is_one_that_amqp_can_say() -> None:
    assert 0 < PREFETCH <= 65_535, "0 is no limit, and there are 16 bits for it"
