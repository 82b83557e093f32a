"""What ``outplan rejected`` does, once its options are understood."""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer

from outplan.cli import outcome
from outplan.cli.outcome import Exit, failure
from outplan.cli.rejected import copies
from outplan.cli.rejected.command import Chosen, Conditions, Queue
from outplan.contract.topology import topology
from outplan.errors import BrokerUnavailable, OutplanError
from outplan.operations.redrive import NoOutcome, SameProblem, redrive, validate
from outplan.operations.rejected_message import Selection, build_record
from outplan.operations.rejected_queue import RejectedMessage, RejectedQueue, open_rejected_queue
from outplan.operations.resend import open_reply_client, user_of

_MOST_ROWS: Final = 50


@dataclass(frozen=True, slots=True)
class Redriving:
    """How to send again: ``rate`` a second, ``timeout`` seconds for each outcome."""

    dry_run: bool
    rate: float
    timeout: float
    keep_going: bool


@contextmanager
def told() -> Iterator[None]:
    """End with a line and a code where the broker, or the person, gives up."""
    try:
        with outcome.told():
            yield
    except SameProblem as error:
        raise failure(error, Exit.REJECTED) from None
    except NoOutcome as error:
        raise failure(error, Exit.UNKNOWN) from None
    except BrokerUnavailable as error:
        raise failure(f"{error}. {outcome.WHERE}") from None
    except OutplanError as error:
        raise failure(error) from None


async def list_copies(
    queue: Queue, conditions: Conditions, ids: list[str], limit: int | None, as_json: bool
) -> None:
    """Print the copies that fit, and how many of each code."""
    async with _taken(queue, with_bodies=False) as taken:
        found = _chosen(taken, conditions, ids)
        _mind(taken)
    copies.rows(found[:limit], as_json)
    copies.counts(found, len(taken.messages), limit)


async def show_copies(queue: Queue, which: str, as_json: bool) -> None:
    """Print the copy, or copies, in full."""
    async with _taken(queue, with_bodies=True) as taken:
        _mind(taken)
        found = [h for h in taken.messages if h.summary.message_id == which]
        if not found and which.isdecimal():
            found = [h for h in taken.messages if h.number == int(which)]
        if not found:
            raise failure(f"{which!r} is neither a message_id nor a number among the "
                          f"{len(taken.messages)} copies there are")  # fmt: skip
        now = validate(taken, found, _exchange(queue), user_of(queue.amqp_url))
        for held, verdict in zip(found, now, strict=True):
            copies.whole(held, build_record(taken.read(held)), verdict, as_json)


async def redrive_copies(
    queue: Queue, chosen: Chosen, ids: list[str], how: Redriving, as_json: bool
) -> None:
    """Send them, or say what would be sent; the exit code tells whether all went well."""
    _must_choose(chosen, ids)
    tally = copies.Tally(as_json)
    async with _taken(queue, with_bodies=True) as taken:
        found = _chosen(taken, chosen, ids)
        _mind(taken)
        tally.expect(len(found), len(taken.messages))
        try:
            await _redrive(queue, taken, found, how, tally)
        finally:
            tally.close()
    if tally.failed:
        raise typer.Exit(Exit.REJECTED)


async def _redrive(
    queue: Queue,
    taken: RejectedQueue,
    found: list[RejectedMessage],
    how: Redriving,
    tally: copies.Tally,
) -> None:
    if how.dry_run or not found:
        for each in validate(taken, found, _exchange(queue), user_of(queue.amqp_url)):
            tally.add(each)
        return
    async with open_reply_client(queue.amqp_url) as sender:
        sending = redrive(
            taken, found, _exchange(queue), sender,
            rate=how.rate, seconds=how.timeout, keep_going=how.keep_going,
        )  # fmt: skip
        async with aclosing(sending):
            async for each in sending:
                tally.add(each)


async def discard_copies(
    queue: Queue, chosen: Chosen, ids: list[str], save: Path | None, yes: bool, as_json: bool
) -> None:
    """Show them, ask, save, and drop them, in this order."""
    _must_choose(chosen, ids)
    if not yes and not sys.stdin.isatty():
        raise failure("nobody is there to ask: --yes discards without", Exit.WRONG_USAGE)
    async with _taken(queue, with_bodies=save is not None) as taken:
        found = _chosen(taken, chosen, ids)
        _mind(taken)
        copies.rows(found if as_json else found[:_MOST_ROWS], as_json)
        copies.counts(found, len(taken.messages), None if as_json else _MOST_ROWS)
        if not found:
            return
        if not yes and not await _agreed(f"Discard {copies.counted(len(found))} for ever?"):
            raise failure("nothing is discarded")
        if save is not None:
            _save(taken, found, save)
        await taken.ack(found)
    saved = f"; they are in {save}" if save else ""
    copies.note(f"{copies.counted(len(found))} discarded{saved}")


def _taken(queue: Queue, *, with_bodies: bool) -> AbstractAsyncContextManager[RejectedQueue]:
    name = topology(queue.prefix).rejected.name
    return open_rejected_queue(queue.amqp_url, name, with_bodies=with_bodies)


def _exchange(queue: Queue) -> str:
    return topology(queue.prefix).commands.name


def _must_choose(chosen: Chosen, ids: list[str]) -> None:
    conditions = any((chosen.code, chosen.customer, chosen.outplan, chosen.number, ids))
    conditions = conditions or bool(chosen.older_than or chosen.newer_than)
    if not conditions and not chosen.all:
        raise failure("say which: message_ids, conditions, or --all", Exit.WRONG_USAGE)
    if conditions and chosen.all:
        raise failure("--all goes without message_ids and conditions", Exit.WRONG_USAGE)


def _chosen(
    taken: RejectedQueue, conditions: Conditions, ids: Sequence[str]
) -> list[RejectedMessage]:
    """The copies that fit, the oldest first; what is named has to be there."""
    selection = Selection(
        codes=frozenset(conditions.code),
        message_ids=frozenset(ids),
        customer_id=conditions.customer,
        outplan_id=conditions.outplan,
        older_than=conditions.older_than,
        newer_than=conditions.newer_than,
    )
    there = {held.summary.message_id for held in taken.messages}
    if missing := [id_ for id_ in ids if id_ not in there]:
        raise failure(f"no copy has the message_id {', '.join(missing)}")
    if missing := [str(n) for n in conditions.number if n > len(taken.messages)]:
        raise failure(f"there is no copy {', '.join(missing)}: there are {len(taken.messages)}")
    now, numbers = datetime.now(UTC), frozenset(conditions.number)
    return [
        held
        for held in taken.messages
        if selection.matches(held.summary, now) and (not numbers or held.number in numbers)
    ]


def _mind(taken: RejectedQueue) -> None:
    """Say what may be out of sight."""
    if taken.other_consumers:
        consumers = (
            "another consumer is"
            if taken.other_consumers == 1
            else f"{taken.other_consumers} others are"
        )
        copies.note(f"{consumers} at this queue; what they hold is not seen here")
    if taken.missing:
        copies.note(
            f"{copies.counted(taken.missing)} more were counted and did not come: "
            "somebody took them, they expired, or the broker is slow; look again"
        )


async def _agreed(question: str) -> bool:
    """Ask on the terminal, while the connection is kept alive."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)

    def read() -> None:
        if not answer.done():
            answer.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin, read)
    try:
        return (await answer).strip().lower() in ("y", "yes")
    finally:
        loop.remove_reader(sys.stdin)


def _save(taken: RejectedQueue, found: Sequence[RejectedMessage], path: Path) -> None:
    """Add them to the file; returns when they are on the disk."""
    with path.open("ab") as file:
        for held in found:
            file.write(copies.as_line(held, build_record(taken.read(held))))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
