"""``outplan rejected redrive`` on real servers: nothing lost, nothing done twice."""

import asyncio
import json
import signal
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.support.commands import command
from tests.support.rejects import ids, outside, put, queued, run
from tests.support.worker_process import Place, running_worker
from tests.support.world import Outside, a_create

__all__ = ["outside"]  # a fixture, by its name


async def test_a_command_that_has_become_possible_is_accepted_under_its_message_id(
    place: Place, outside: Outside
) -> None:
    id_ = str(uuid4())
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with running_worker(place):
        await outside.ask(
            "outplan_update", {"id": id_, "name": "renamed"}, message_id="early",
            correlation_id="mine", headers={"traceparent": trace, "outplan_id": id_},
        )  # fmt: skip
        await outside.ask("outplan_create", a_create(id=id_))
        code, out, err = await run(place, "redrive", "early")

    assert (code, err) == (0, "1 of 1 copy: 1 accepted\n")
    assert out.split() == ["accepted", "outplan_update", "early", "version", "2"]
    await outside.event_of("early")
    event = outside.events[-1]
    assert event.correlation_id == "mine"
    assert event.headers["traceparent"] == trace
    assert await queued(outside) == []


async def test_what_is_sent_again_is_what_was_sent_less_what_the_rejection_added(
    place: Place, outside: Outside
) -> None:
    sent: dict[str, Any] = {
        "headers": {
            "outplan_id": str(uuid4()),
            "half": 0.5,
            "bytes": bytearray(b"\xff"),
            "n": {"a": [1]},
        },
        "priority": 3,
        "app_id": "theirs",
        "correlation_id": "c",
        "content_type": "text/plain",
        "timestamp": 1_764_000_000,
    }
    body = json.dumps(a_create(), indent=3).encode()
    spy = await outside.channel.declare_queue(f"{place.prefix}.witness.commands", exclusive=True)
    await spy.bind(f"{place.prefix}.commands", "#")
    more = {"x-first-death-reason": "expired", "x-original-cc": "x", "x-headers-dropped": True}
    await put(
        outside, "m", body=body, **{**sent, "headers": {**sent["headers"], **more}},
        reply_to="gone", user_id=None,
    )  # fmt: skip
    async with running_worker(place):
        code, _, _ = await run(place, "redrive", "m")
    assert code == 0

    again = await spy.get(timeout=10)
    assert again is not None
    assert again.body == body
    assert again.routing_key == "outplan_create"
    assert (again.message_id, again.correlation_id, again.app_id) == ("m", "c", "theirs")
    assert (again.priority, again.content_type, again.type) == (3, "text/plain", None)
    assert again.timestamp == datetime.fromtimestamp(1_764_000_000, UTC)
    assert again.headers == sent["headers"]
    assert again.reply_to != "gone"


async def test_what_is_still_invalid_is_not_sent_and_stays(place: Place, outside: Outside) -> None:
    spy = await outside.channel.declare_queue(f"{place.prefix}.witness.commands", exclusive=True)
    await spy.bind(f"{place.prefix}.commands", "#")
    await put(outside, "wrong", body=a_create(dial_timeout=30))
    await put(outside, "right")
    async with running_worker(place):
        code, out, err = await run(place, "redrive", "--all")

    assert code == 3
    assert "invalid    outplan_create  wrong  /dial_timeout: 30 is less" in out
    assert err == "2 of 2 copies: 1 still invalid, not sent, 1 accepted\n"
    assert [m.message_id for m in await queued(outside)] == ["wrong"]
    sent = await spy.get(timeout=10)
    assert sent is not None
    assert sent.message_id == "right"
    assert await spy.get(fail=False) is None


async def test_a_dry_run_tells_what_would_pass_and_sends_nothing(
    place: Place, outside: Outside
) -> None:
    await put(outside, "wrong", body=a_create(dial_timeout=30))
    await put(outside, "right")
    code, out, err = await run(place, "redrive", "--all", "--dry-run", "--json")

    said = {line["message_id"]: line["status"] for line in map(json.loads, out.splitlines())}
    assert (code, said) == (3, {"wrong": "invalid", "right": "valid"})
    assert err == "2 of 2 copies: 1 still invalid, not sent, 1 valid now\n"
    assert await outside.waiting() == 0
    assert len(await queued(outside)) == 2


@pytest.mark.parametrize(("options", "tried"), [([], 1), (["--keep-going"], 3)])
async def test_it_stops_where_the_same_problem_comes_back_and_never_goes_round_in_circles(
    place: Place, outside: Outside, options: list[str], tried: int
) -> None:
    for n in range(3):
        body = {"id": str(uuid4()), "name": "x"}
        await put(outside, f"id-{n}", code="not_found", name="outplan_update", body=body)
    async with running_worker(place):
        code, out, err = await run(place, "redrive", "--all", *options)

    assert code == 3
    assert [line.split()[2] for line in out.splitlines()] == [f"id-{n}" for n in range(tried)]
    if tried == 1:
        assert "1 of 3 copies: 1 rejected once more; 2 not tried\n" in err
        assert "same reason, not_found; --keep-going" in err
    back = [str(message.message_id) for message in await queued(outside)]
    assert sorted(back) == ["id-0", "id-1", "id-2"]
    assert back[: 3 - tried] == ["id-1", "id-2"][: 3 - tried]


async def test_another_problem_than_before_does_not_stop_it(place: Place, outside: Outside) -> None:
    body = {"id": str(uuid4()), "name": "x"}
    await put(outside, "gone", code="invalid_command", name="outplan_update", body=body)
    await put(outside, "right")
    async with running_worker(place):
        code, _, err = await run(place, "redrive", "--all")

    assert code == 3
    assert err == "2 of 2 copies: 1 rejected once more, 1 accepted\n"


async def test_without_a_worker_the_outcome_is_unknown_the_copy_stays_and_no_harm_comes_of_it(
    place: Place, outside: Outside
) -> None:
    await put(outside, "twice")
    code, _, err = await run(place, "redrive", "--all", "--timeout", "0.5")
    assert code == 4
    assert "no outcome of twice within 0.5 s: does a worker run?" in err
    assert await ids(place) == ["twice"]

    async with running_worker(place):
        await outside.event_of("twice")
        code, _, err = await run(place, "redrive", "--all")
    assert (code, err) == (0, "1 of 1 copy: 1 duplicate (accepted before)\n")
    assert len((await outside.stored())[1]) == 1
    assert await ids(place) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_ended_in_the_middle_and_run_again_each_takes_effect_once_and_in_order(
    place: Place, outside: Outside, how: signal.Signals
) -> None:
    id_ = str(uuid4())
    wanted = [f"id-{n:03}" for n in range(120)]
    async with running_worker(place):
        await outside.ask("outplan_create", a_create(id=id_))
        for name in wanted:
            body = {"id": id_, "name": name}
            await put(outside, name, code="not_found", name="outplan_update", body=body)
        async with command(place, "rejected", "redrive", "--all", "--rate", "200") as process:
            await process.printed("accepted", 20)
            process.process.send_signal(how)
            code = await process.ended()
        assert code == (-9 if how == signal.SIGKILL else 130), process.err
        assert b"Traceback" not in process.err
        # An operator looks in between, and is killed too.
        async with command(place, "rejected", "list") as process:
            process.process.kill()

        code, _, err = await run(place, "redrive", "--all")
        assert code == 0, err

    history = await outside.history(id_)
    assert [event["_id"] for event in history[1:]] == wanted
    assert await queued(outside) == []


async def test_no_more_are_sent_a_second_than_it_is_told(place: Place, outside: Outside) -> None:
    for n in range(5):
        await put(outside, f"id-{n}")
    async with running_worker(place):
        began = asyncio.get_running_loop().time()
        code, _, _ = await run(place, "redrive", "--all", "--rate", "4")
        took = asyncio.get_running_loop().time() - began
    assert code == 0
    assert took > 1
