"""Check that the checker passes a faultless history and finds each corruption."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.chaos.checker import check
from tests.faults.chaos.history import (
    History,
    OrderSlack,
    ReceivedEvent,
    ReceivedReply,
    RejectedCopy,
    SentCommand,
    StoredDocument,
    read,
    write,
)
from tests.faults.chaos.synthetic_history import make_synthetic_history
from tests.support.command_generator import Draft

Corruption = Callable[[History, random.Random], None]


@pytest.mark.parametrize("reconnecting", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_a_faultless_history_has_no_violation(seed: int, reconnecting: bool) -> None:
    history = make_synthetic_history(seed, reconnecting=reconnecting)
    assert check(history) == []
    # A history without such entries would prove nothing.
    codes = {copy.code for copy in history.copies}
    assert codes >= {"not_found", "already_exists", "message_id_reused", "version_conflict"}
    assert any(json.loads(reply.body)["status"] == "unchanged" for reply in history.replies)
    assert len(history.events) > len({event.message_id for event in history.events}) > 100


def test_a_written_history_reads_back_equal(tmp_path: Path) -> None:
    history = make_synthetic_history(1)
    write(history, tmp_path / "history.jsonl")
    with (tmp_path / "history.jsonl").open() as file:
        assert read(file) == history


@pytest.mark.parametrize("reconnecting", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_commands_that_overtake_others_are_found(seed: int, reconnecting: bool) -> None:
    """A layout change that starts the new queues too early does this."""
    history = make_synthetic_history(seed, reconnecting=reconnecting, overtaking=range(300, 360))
    assert {violation.rule for violation in check(history)} == {"commands out of order"}


def test_commands_may_change_places_within_the_slack() -> None:
    overtaking = range(300, 360)
    history = make_synthetic_history(1, reconnecting=True, overtaking=overtaking)
    history.add(OrderSlack(len(overtaking)))
    assert check(history) == []


def stored_events(history: History) -> list[StoredDocument]:
    return [stored for stored in history.documents if stored.collection == "outplan_events"]


def pick_update_event(history: History, rng: random.Random) -> StoredDocument:
    return rng.choice(
        [e for e in stored_events(history) if e.document["type"] == "outplan_updated"]
    )


def lose_an_event(history: History, rng: random.Random) -> None:
    dropped = pick_update_event(history, rng).document["_id"]
    history.events = [event for event in history.events if event.message_id != dropped]


def lose_a_command(history: History, rng: random.Random) -> None:
    """Lose a command that made its outplan's last version: no later event shows the gap."""
    last = {e.document["outplan_id"]: e.document["_id"] for e in stored_events(history)}
    resent = {id_ for id_ in last.values() if sum(s.message_id == id_ for s in history.sent) > 1}
    candidates = [
        sent for sent in history.sent
        if sent.message_id in set(last.values()) - resent and sent.outcome == "confirmed"
        and sent.name == "outplan_update"
    ]  # fmt: skip
    sent = rng.choice(candidates)
    remove_effects(history, sent)


def remove_effects(history: History, sent: SentCommand) -> None:
    """Remove every effect of a command, as if it had never arrived."""
    applied = next(e for e in stored_events(history) if e.document["_id"] == sent.message_id)
    id_, version = applied.document["outplan_id"], applied.document["version"]
    before = next(
        e.document for e in stored_events(history)
        if e.document["outplan_id"] == id_ and e.document["version"] == version - 1
    )  # fmt: skip
    history.documents.remove(applied)
    history.events = [event for event in history.events if event.message_id != sent.message_id]
    history.replies = [reply for reply in history.replies if reply.send_id != sent.send_id]
    later = [s.send_id for s in history.sent[history.sent.index(sent) :] if s.outplan_id == id_]
    history.replies = [reply for reply in history.replies if reply.send_id not in later]
    for stored in history.documents:
        if stored.collection == "outplans" and stored.document["_id"] == id_:
            stored.document.clear()
            stored.document.update({**before["data"], "_id": id_, "version": version - 1})
            stored.document.pop("id")


def lose_a_reply(history: History, rng: random.Random) -> None:
    """Lose the reply to a confirmed command; an unconfirmed one may have none."""
    confirmed = {sent.send_id for sent in history.sent if sent.outcome == "confirmed"}
    dropped = rng.choice([reply for reply in history.replies if reply.send_id in confirmed])
    history.replies = [reply for reply in history.replies if reply.send_id != dropped.send_id]


def lose_a_copy(history: History, rng: random.Random) -> None:
    answered = {r.send_id for r in history.replies}
    dropped = rng.choice([copy for copy in history.copies if copy.send_id in answered])
    history.copies.remove(dropped)


def alter_a_copy(history: History, rng: random.Random) -> None:
    n = rng.randrange(len(history.copies))
    history.copies[n] = replace(history.copies[n], body=history.copies[n].body + " ")


def change_a_repeat(history: History, rng: random.Random) -> None:
    event = rng.choice(history.events)
    history.add(replace(event, body=event.body + " "))


def swap_two_events(history: History, rng: random.Random) -> None:
    one = pick_update_event(history, rng).document
    other = next(
        e.document for e in stored_events(history)
        if (e.document["outplan_id"], e.document["version"]) == (
            one["outplan_id"], one["version"] - 1)
    )  # fmt: skip
    first = {h.message_id: n for n, h in reversed(list(enumerate(history.events)))}
    moved = history.events[first[one["_id"]]]
    history.events.insert(first[other["_id"]], moved)


def publish_unstored_event(history: History, rng: random.Random) -> None:
    sent = rng.choice([s for s in history.sent if s.invalid_code == "invalid_command"])
    event = rng.choice(history.events)
    history.add(replace(event, message_id=sent.message_id))


def invent_an_event(history: History, rng: random.Random) -> None:
    event = pick_update_event(history, rng)
    event.document["_id"] = "nobody's"


def apply_twice(history: History, rng: random.Random) -> None:
    """Apply one update as two versions, the second under another id."""
    last = {e.document["outplan_id"]: e for e in stored_events(history)}
    event = rng.choice(list(last.values())).document
    history.add(
        StoredDocument(
            "outplan_events", {**event, "_id": f"{event['_id']}!", "version": event["version"] + 1}
        )
    )


def set_the_time_back(history: History, rng: random.Random) -> None:
    pick_update_event(history, rng).document["data"]["tm_update"] = "2020-01-01 00:00:00.000000"


def change_a_document(history: History, rng: random.Random) -> None:
    outplan = rng.choice([s for s in history.documents if s.collection == "outplans"])
    outplan.document["dial_timeout"] += 1


def reply_to_another(history: History, rng: random.Random) -> None:
    answered = {r.send_id for r in history.replies}
    silent = [s for s in history.sent if s.send_id not in answered]
    reply = rng.choice(history.replies)
    history.add(replace(reply, send_id=rng.choice(silent).send_id))


def reject_and_accept(history: History, rng: random.Random) -> None:
    accepted = [r for r in history.replies if json.loads(r.body)["status"] == "accepted"]
    reply = rng.choice(accepted)
    sent = next(s for s in history.sent if s.send_id == reply.send_id)
    problem = json.dumps({"code": "not_found", "command_id": sent.message_id})
    history.add(
        RejectedCopy(
            sent.send_id,
            sent.message_id,
            sent.routing_key,
            sent.outplan_id,
            sent.body,
            "not_found",
            problem,
        )
    )


def change_the_outcome(history: History, rng: random.Random) -> None:
    n = rng.choice([n for n, c in enumerate(history.copies) if c.code == "invalid_command"])
    copy = history.copies[n]
    problem = json.dumps({"code": "not_found", "command_id": copy.message_id})
    history.copies[n] = replace(copy, code="not_found", problem=problem)
    history.replies = [r for r in history.replies if r.send_id != copy.send_id]


def reorder_a_publishers_commands(history: History, rng: random.Random) -> None:
    """Swap the sends of two commands that were accepted one after the other."""
    times = Counter(sent.message_id for sent in history.sent)
    once = [s for s in history.sent if s.outcome == "confirmed" and times[s.message_id] == 1]
    versions = {e.document["_id"]: e.document["version"] for e in stored_events(history)}
    pairs = [
        (one, two) for one in once for two in once
        if one.connection == two.connection and one.outplan_id == two.outplan_id
        and versions.get(one.message_id, 0) > 1
        and versions.get(one.message_id, 0) < versions.get(two.message_id, 0)
    ]  # fmt: skip
    one, two = rng.choice(pairs)
    n, m = history.sent.index(one), history.sent.index(two)
    for place, moved, at in ((n, two, one), (m, one, two)):
        history.sent[place] = replace(
            moved, published_at=at.published_at, confirmed_at=at.confirmed_at
        )


CORRUPTIONS: list[tuple[Corruption, set[str]]] = [
    (lose_an_event, {"lost event"}),
    (lose_a_command, {"lost command", "commands out of order"}),
    (lose_a_reply, {"no reply"}),
    (lose_a_copy, {"lost copy"}),
    (alter_a_copy, {"copy differs"}),
    (change_a_repeat, {"repeat differs"}),
    (swap_two_events, {"events out of order"}),
    (publish_unstored_event, {"phantom event"}),
    (invent_an_event, {"never sent"}),
    (apply_twice, {"never sent"}),
    (set_the_time_back, {"wrong tm_update"}),
    (change_a_document, {"document differs"}),
    (reply_to_another, {"reply to another command", "reply differs", "lost copy", "never sent"}),
    (reject_and_accept, {"more than one outcome"}),
    (change_the_outcome, {"wrong outcome"}),
    (reorder_a_publishers_commands, {"commands out of order"}),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("corrupt", "rules"), CORRUPTIONS)
def test_a_corruption_is_found(corrupt: Corruption, rules: set[str], seed: int) -> None:
    history = make_synthetic_history(seed)
    corrupt(history, random.Random(seed))
    assert {violation.rule for violation in check(history)} & rules


def test_a_returned_command_must_have_no_outcome() -> None:
    history = History()
    draft = Draft("outplan_delete", "m", "o", b"{}")
    history.add(SentCommand.from_draft(draft, "s", "p", "returned", 0.0, None))
    assert check(history) == []
    reply = {"command_id": "m", "status": "unchanged", "version": 1, "outplan": {"id": "o"}}
    history.add(ReceivedReply("s", json.dumps(reply)))
    assert "never sent" in {violation.rule for violation in check(history)}


def test_an_event_that_nobody_sent_is_a_phantom() -> None:
    history = make_synthetic_history(1)
    history.add(ReceivedEvent("m", "k", json.dumps({"id": "m"})))
    assert [violation.rule for violation in check(history)] == ["phantom event"]
