"""Build a load of commands with known outcomes, and check everything that it left behind."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from uuid import uuid4

from tests.support.world import Document, World, create_body

SentCommand = tuple[str, str, Document]


@dataclass
class Scenario:
    """Hold commands in order, each one's expected outcome, and each outplan's intervals.

    An outcome is the reply's status, or the problem code if the command is rejected.
    ``intervals`` lists the values of try_interval, one for each version.
    """

    commands: list[SentCommand] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def accepted(self) -> set[str]:
        """Ids of the commands that the service accepts."""
        return {id_ for id_, outcome in self.expected.items() if outcome == "accepted"}

    def add(self, name: str, body: Document, expected: str, id_: str | None = None) -> str:
        """Append a command, or a repeat of the command ``id_``; return its id."""
        id_ = id_ or str(uuid4())
        self.commands.append((id_, name, body))
        self.expected.setdefault(id_, expected)
        return id_


def build_scenario(outplans: int = 8, rounds: int = 5) -> Scenario:
    """Interleave commands of all kinds for many outplans.

    Each round sets try_interval to 60000 while it is 60000, which leaves no event, and then to
    5000. A worker that decides the first command again after the second one would undo the second.
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
            _add_round(scenario, id_, n)
    for id_ in ids[::2]:
        scenario.add("outplan_delete", {"id": id_}, "accepted")
        scenario.add("outplan_delete", {"id": id_}, "unchanged")
        scenario.add("outplan_update", {"id": id_, "name": "too late"}, "not_found")
    return scenario


def _add_round(scenario: Scenario, id_: str, n: int) -> None:
    now = scenario.intervals[id_][-1]
    new = 5_000 + n
    scenario.add("outplan_update", {"id": id_, "try_interval": now}, "unchanged")
    repeated = scenario.add("outplan_update", {"id": id_, "try_interval": new}, "accepted")
    scenario.add("outplan_update", {"id": id_, "try_interval": new}, "accepted", repeated)
    scenario.add("outplan_update", {"id": id_, "try_interval": 60}, "invalid_command")
    stale = {"id": id_, "try_interval": 1_000, "expected_version": 1}
    scenario.add("outplan_update", stale, "version_conflict")
    restored = {"id": id_, "try_interval": 60_000}
    scenario.add("outplan_update", restored, "accepted")
    scenario.intervals[id_] += [new, 60_000]


async def send_scenario(world: World, scenario: Scenario) -> None:
    """Send the commands in order, waiting for each confirm."""
    for id_, name, body in scenario.commands:
        await world.send(name, body, message_id=id_)


async def assert_scenario(world: World, scenario: Scenario) -> None:
    """Wait for all events and replies, and check sections 3 and 4 of the contract on them."""
    await world.wait_for_events(scenario.accepted)
    await world.wait_for(lambda: all(world.replies[id_] for id_ in scenario.expected))
    assert_replies(world, scenario)
    await assert_events_and_documents(world, scenario)


async def assert_events_and_documents(
    world: World, scenario: Scenario, seconds: float = 30
) -> None:
    """Wait for the accepted commands' events; check them and the documents in MongoDB."""
    accepted = scenario.accepted
    await world.wait_for(lambda: world.event_ids() >= accepted, seconds)
    assert world.event_ids() == accepted
    assert_repeats_are_identical(world)
    assert_first_published_in_order(world)
    await assert_stored(world, scenario)


def assert_replies(world: World, scenario: Scenario) -> None:
    for id_, expected in scenario.expected.items():
        outcomes = [
            r["problem"]["code"] if "problem" in r else r["status"] for r in world.replies[id_]
        ]
        assert set(outcomes) == {expected}, (
            outcomes,
            [c for c in scenario.commands if c[0] == id_],
        )


def assert_repeats_are_identical(world: World) -> None:
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for event in world.events:
        bodies[event.message_id or ""].add(event.body)
    assert all(len(distinct) == 1 for distinct in bodies.values())


def assert_first_published_in_order(world: World) -> None:
    versions: dict[str, list[int]] = defaultdict(list)
    for event in world.events:
        id_, version = str(event.headers["outplan_id"]), event.headers["version"]
        assert isinstance(version, int)
        if version not in versions[id_]:
            versions[id_].append(version)
    for published in versions.values():
        assert published == list(range(1, len(published) + 1))


async def assert_stored(world: World, scenario: Scenario) -> None:
    """Check that documents, history and published events agree, version by version."""
    outplans, history = await world.read_documents()
    assert {e["_id"] for e in history} == scenario.accepted
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
            expected = scenario.intervals[outplan["_id"]]
            assert changes == expected, (outplan["_id"], changes, expected)
    assert by_outplan == {}
    recorded = {event["_id"]: event["data"] for event in history}
    for message in world.events:
        assert json.loads(message.body)["data"] == recorded[message.message_id]
