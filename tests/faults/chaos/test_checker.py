"""The checker passes what keeps every promise, and catches whatever breaks one."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.chaos.checker import check
from tests.faults.chaos.record import Copied, Heard, Record, Replied, Sent, Stored, read, write
from tests.faults.chaos.synthetic_history import imagined

Spoiling = Callable[[Record, random.Random], None]


@pytest.mark.parametrize("seed", range(20))
def test_a_faultless_run_has_no_violation(seed: int) -> None:
    record = imagined(seed)
    assert check(record) == []
    # What is not there can't be wrong: enough of each must be.
    codes = {copy.code for copy in record.copied}
    assert codes >= {"not_found", "already_exists", "message_id_reused", "version_conflict"}
    assert any(json.loads(reply.body)["status"] == "unchanged" for reply in record.replied)
    assert len(record.heard) > len({heard.message_id for heard in record.heard}) > 100


def test_a_kept_record_is_the_same_record(tmp_path: Path) -> None:
    record = imagined(1)
    write(record, tmp_path / "record.jsonl")
    with (tmp_path / "record.jsonl").open() as file:
        assert read(file) == record


def events(record: Record) -> list[Stored]:
    return [stored for stored in record.stored if stored.collection == "outplan_events"]


def an_event(record: Record, luck: random.Random) -> Stored:
    return luck.choice([e for e in events(record) if e.document["type"] == "outplan_updated"])


def lose_an_event(record: Record, luck: random.Random) -> None:
    lost = an_event(record, luck).document["_id"]
    record.heard = [heard for heard in record.heard if heard.message_id != lost]


def lose_a_command(record: Record, luck: random.Random) -> None:
    """One that would have made the last version of its outplan: nothing else misses it."""
    last = {e.document["outplan_id"]: e.document["_id"] for e in events(record)}
    resent = {id_ for id_ in last.values() if sum(s.message_id == id_ for s in record.sent) > 1}
    candidates = [
        sent for sent in record.sent
        if sent.message_id in set(last.values()) - resent and sent.verdict == "confirmed"
        and sent.name == "outplan_update"
    ]  # fmt: skip
    sent = luck.choice(candidates)
    forget(record, sent)


def forget(record: Record, sent: Sent) -> None:
    """As if it had never arrived."""
    gone = next(e for e in events(record) if e.document["_id"] == sent.message_id)
    id_, version = gone.document["outplan_id"], gone.document["version"]
    before = next(
        e.document for e in events(record)
        if e.document["outplan_id"] == id_ and e.document["version"] == version - 1
    )  # fmt: skip
    record.stored.remove(gone)
    record.heard = [heard for heard in record.heard if heard.message_id != sent.message_id]
    record.replied = [reply for reply in record.replied if reply.send_id != sent.send_id]
    later = [s.send_id for s in record.sent[record.sent.index(sent) :] if s.outplan_id == id_]
    record.replied = [reply for reply in record.replied if reply.send_id not in later]
    for stored in record.stored:
        if stored.collection == "outplans" and stored.document["_id"] == id_:
            stored.document.clear()
            stored.document.update({**before["data"], "_id": id_, "version": version - 1})
            stored.document.pop("id")


def lose_a_reply(record: Record, luck: random.Random) -> None:
    """Of a command that is confirmed: of any other it may not have come."""
    confirmed = {sent.send_id for sent in record.sent if sent.verdict == "confirmed"}
    lost = luck.choice([reply for reply in record.replied if reply.send_id in confirmed])
    record.replied = [reply for reply in record.replied if reply.send_id != lost.send_id]


def lose_a_copy(record: Record, luck: random.Random) -> None:
    told = {r.send_id for r in record.replied}
    lost = luck.choice([copy for copy in record.copied if copy.send_id in told])
    record.copied.remove(lost)


def alter_a_copy(record: Record, luck: random.Random) -> None:
    n = luck.randrange(len(record.copied))
    record.copied[n] = replace(record.copied[n], body=record.copied[n].body + " ")


def repeat_with_other_bytes(record: Record, luck: random.Random) -> None:
    heard = luck.choice(record.heard)
    record.add(replace(heard, body=heard.body + " "))


def swap_two_events(record: Record, luck: random.Random) -> None:
    one = an_event(record, luck).document
    other = next(
        e.document for e in events(record)
        if (e.document["outplan_id"], e.document["version"]) == (
            one["outplan_id"], one["version"] - 1)
    )  # fmt: skip
    first = {h.message_id: n for n, h in reversed(list(enumerate(record.heard)))}
    moved = record.heard[first[one["_id"]]]
    record.heard.insert(first[other["_id"]], moved)


def publish_what_is_not_stored(record: Record, luck: random.Random) -> None:
    sent = luck.choice([s for s in record.sent if s.wrong == "invalid_command"])
    heard = luck.choice(record.heard)
    record.add(replace(heard, message_id=sent.message_id))


def invent_an_event(record: Record, luck: random.Random) -> None:
    event = an_event(record, luck)
    event.document["_id"] = "nobody's"


def apply_twice(record: Record, luck: random.Random) -> None:
    """The same update as two versions: the second under another command's id."""
    last = {e.document["outplan_id"]: e for e in events(record)}
    event = luck.choice(list(last.values())).document
    record.add(
        Stored(
            "outplan_events", {**event, "_id": f"{event['_id']}!", "version": event["version"] + 1}
        )
    )


def set_the_time_back(record: Record, luck: random.Random) -> None:
    an_event(record, luck).document["data"]["tm_update"] = "2020-01-01 00:00:00.000000"


def spoil_a_document(record: Record, luck: random.Random) -> None:
    outplan = luck.choice([s for s in record.stored if s.collection == "outplans"])
    outplan.document["dial_timeout"] += 1


def reply_to_another(record: Record, luck: random.Random) -> None:
    told = {r.send_id for r in record.replied}
    silent = [s for s in record.sent if s.send_id not in told]
    reply = luck.choice(record.replied)
    record.add(replace(reply, send_id=luck.choice(silent).send_id))


def reject_and_accept(record: Record, luck: random.Random) -> None:
    accepted = [r for r in record.replied if json.loads(r.body)["status"] == "accepted"]
    reply = luck.choice(accepted)
    sent = next(s for s in record.sent if s.send_id == reply.send_id)
    problem = json.dumps({"code": "not_found", "command_id": sent.message_id})
    record.add(
        Copied(
            sent.send_id,
            sent.message_id,
            sent.name,
            sent.outplan_id,
            sent.body,
            "not_found",
            problem,
        )
    )


def misjudge(record: Record, luck: random.Random) -> None:
    n = luck.choice([n for n, c in enumerate(record.copied) if c.code == "invalid_command"])
    copy = record.copied[n]
    problem = json.dumps({"code": "not_found", "command_id": copy.message_id})
    record.copied[n] = replace(copy, code="not_found", problem=problem)
    record.replied = [r for r in record.replied if r.send_id != copy.send_id]


def reorder_a_publishers_commands(record: Record, luck: random.Random) -> None:
    """Two that were accepted one after the other were sent the other way round."""
    times = Counter(sent.message_id for sent in record.sent)
    once = [s for s in record.sent if s.verdict == "confirmed" and times[s.message_id] == 1]
    versions = {e.document["_id"]: e.document["version"] for e in events(record)}
    pairs = [
        (one, two) for one in once for two in once
        if one.publisher == two.publisher and one.outplan_id == two.outplan_id
        and versions.get(one.message_id, 0) > 1
        and versions.get(one.message_id, 0) < versions.get(two.message_id, 0)
    ]  # fmt: skip
    one, two = luck.choice(pairs)
    n, m = record.sent.index(one), record.sent.index(two)
    record.sent[n], record.sent[m] = two, one


SPOILINGS: list[tuple[Spoiling, set[str]]] = [
    (lose_an_event, {"lost event"}),
    (lose_a_command, {"lost command", "commands out of order"}),
    (lose_a_reply, {"no reply"}),
    (lose_a_copy, {"lost copy"}),
    (alter_a_copy, {"copy differs"}),
    (repeat_with_other_bytes, {"repeat differs"}),
    (swap_two_events, {"events out of order"}),
    (publish_what_is_not_stored, {"phantom event"}),
    (invent_an_event, {"never sent"}),
    (apply_twice, {"never sent"}),
    (set_the_time_back, {"tm_update"}),
    (spoil_a_document, {"fold"}),
    (reply_to_another, {"reply for another", "reply differs", "lost copy", "never sent"}),
    (reject_and_accept, {"more than one fate"}),
    (misjudge, {"wrongly judged"}),
    (reorder_a_publishers_commands, {"commands out of order"}),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("spoil", "rules"), SPOILINGS)
def test_a_broken_promise_is_found(spoil: Spoiling, rules: set[str], seed: int) -> None:
    record = imagined(seed)
    spoil(record, random.Random(seed))
    assert {violation.rule for violation in check(record)} & rules


def test_what_no_queue_took_has_no_fate() -> None:
    record = Record()
    record.add(Sent("s", "p", "outplan_delete", "m", "o", "{}", "returned"))
    assert check(record) == []
    record.add(Replied("s", json.dumps({"command_id": "m", "status": "unchanged", "version": 1,
                                        "outplan": {"id": "o"}})))  # fmt: skip
    assert "never sent" in {violation.rule for violation in check(record)}


def test_what_nobody_sent_is_a_phantom() -> None:
    record = imagined(1)
    record.add(Heard("m", "k", json.dumps({"id": "m"})))
    assert [violation.rule for violation in check(record)] == ["phantom event"]
