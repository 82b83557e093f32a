"""A load of commands whose every outcome is known beforehand, and the check of what it left."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass, field
from uuid import uuid4

from tests.support.world import Document, World, create_body

Sent = tuple[str, str, Document]


@dataclass
class Scenario:
    """Commands in order, the outcome of each by its id, and what each outplan comes to."""

    commands: list[Sent] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, body: Document, expected: str, id_: str | None = None) -> str:
        id_ = id_ or str(uuid4())
        self.commands.append((id_, name, body))
        self.expected.setdefault(id_, expected)
        return id_


def build_scenario(outplans: int = 8, rounds: int = 5) -> Scenario:
    """Commands of all kinds, those of many outplans among each other.

    Each round holds the trap of commands that leave no trace: "set 60000", which changes nothing
    while it is 60000, then "set 5000". Judged again after the second, the first would undo it.
    """
    scenario = Scenario()
    ids = [str(uuid4()) for _ in range(outplans)]
    for id_ in ids:
        scenario.add("outplan_update", {"id": id_, "name": "too early"}, "not_found")
    for id_ in ids:
        scenario.add("outplan_create", create_body(id=id_), "accepted")
        scenario.intervals[id_].append(60_000)
    for n in range(rounds):
        for id_ in ids:
            _a_round(scenario, id_, n)
    for id_ in ids[::2]:
        scenario.add("outplan_delete", {"id": id_}, "accepted")
        scenario.add("outplan_delete", {"id": id_}, "unchanged")
        scenario.add("outplan_update", {"id": id_, "name": "too late"}, "not_found")
    return scenario


def _a_round(scenario: Scenario, id_: str, n: int) -> None:
    now = scenario.intervals[id_][-1]
    new = 5_000 + n
    scenario.add("outplan_update", {"id": id_, "try_interval": now}, "unchanged")
    again = scenario.add("outplan_update", {"id": id_, "try_interval": new}, "accepted")
    scenario.add("outplan_update", {"id": id_, "try_interval": new}, "accepted", again)
    scenario.add("outplan_update", {"id": id_, "try_interval": 60}, "invalid_command")
    stale = {"id": id_, "try_interval": 1_000, "expected_version": 1}
    scenario.add("outplan_update", stale, "version_conflict")
    back = {"id": id_, "try_interval": 60_000}
    scenario.add("outplan_update", back, "accepted")
    scenario.intervals[id_] += [new, 60_000]


async def send_scenario(world: World, scenario: Scenario) -> None:
    """Send the commands in order, each confirmed."""
    for id_, name, body in scenario.commands:
        await world.send(name, body, message_id=id_)


async def assert_scenario(world: World, scenario: Scenario) -> None:
    """Every promise of the contract's sections 3 and 4, seen from outside."""
    accepted = {id_ for id_, outcome in scenario.expected.items() if outcome == "accepted"}
    await world.wait_for(lambda: {e.message_id for e in world.events} >= accepted)
    await asyncio.gather(*[_answered(world, id_) for id_ in scenario.expected])

    assert_replies(world, scenario)
    assert {e.message_id for e in world.events} == accepted
    assert_repeats_are_the_same(world)
    assert_first_published_in_order(world)
    await assert_stored(world, scenario, accepted)


async def _answered(world: World, id_: str) -> None:
    await world.wait_for(lambda: bool(world.replies[id_]))


def assert_replies(world: World, scenario: Scenario) -> None:
    for id_, outcome in scenario.expected.items():
        said = [r["problem"]["code"] if "problem" in r else r["status"] for r in world.replies[id_]]
        assert set(said) == {outcome}, (said, [c for c in scenario.commands if c[0] == id_])


def assert_repeats_are_the_same(world: World) -> None:
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for event in world.events:
        bodies[event.message_id or ""].add(event.body)
    assert all(len(seen) == 1 for seen in bodies.values())


def assert_first_published_in_order(world: World) -> None:
    versions: dict[str, list[int]] = defaultdict(list)
    for event in world.events:
        id_, version = str(event.headers["outplan_id"]), event.headers["version"]
        assert isinstance(version, int)
        if version not in versions[id_]:
            versions[id_].append(version)
    for seen in versions.values():
        assert seen == list(range(1, len(seen) + 1))


async def assert_stored(world: World, scenario: Scenario, accepted: set[str]) -> None:
    outplans, history = await world.read_documents()
    assert {e["_id"] for e in history} == accepted
    by_outplan: dict[str, list[Document]] = defaultdict(list)
    for event in history:
        by_outplan[event["outplan_id"]].append(event)
    for outplan in outplans:
        events = by_outplan.pop(outplan["_id"])
        assert [e["version"] for e in events] == list(range(1, len(events) + 1))
        times = [e["data"]["tm_update"] for e in events]
        assert times == sorted(set(times))
        last = dict(events[-1]["data"])
        assert {"_id": last.pop("id"), **last, "version": len(events)} == outplan
        changes = [e["data"]["try_interval"] for e in events if e["type"] != "outplan_deleted"]
        if outplan["_id"] in scenario.intervals:
            assert changes == scenario.intervals[outplan["_id"]]
    assert by_outplan == {}
    recorded = {event["_id"]: event["data"] for event in history}
    for message in world.events:
        assert json.loads(message.body)["data"] == recorded[message.message_id]
