"""List, show, redrive and discard rejected commands: ``outplan rejected``."""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer

from outplan.cli.errors import ExitCode, fail, handle_errors, run_async
from outplan.cli.options import BrokerOptions, FilterOptions, RedriveOptions, SelectOptions
from outplan.cli.output import print_note
from outplan.cli.rejected_output import (
    RedriveReport,
    count_messages,
    encode_message,
    print_counts,
    print_list,
    print_message,
)
from outplan.contract.topology import build_topology
from outplan.operations.redrive import NoOutcome, SameProblem, redrive, validate
from outplan.operations.rejected_message import Selection, build_record
from outplan.operations.rejected_queue import RejectedMessage, RejectedQueue, open_rejected_queue
from outplan.operations.resend import open_reply_client, user_of

_MAX_ROWS: Final = 50


def list_rejected(
    broker: BrokerOptions, filters: FilterOptions, ids: list[str], limit: int | None, *,
    as_json: bool,
) -> None:  # fmt: skip
    """Print the messages that match, and count them by code."""

    async def run() -> None:
        async with _open_queue(broker, with_bodies=False) as queue:
            found = _select(queue, filters, ids)
            _warn_of_hidden_messages(queue)
        print_list(found[:limit], as_json)
        print_counts(found, len(queue.messages), limit)

    with handle_errors():
        run_async(run())


def show_rejected(broker: BrokerOptions, which: str, *, as_json: bool) -> None:
    """Print the messages with the message_id ``which``, or the one with that number."""
    with handle_errors():
        run_async(_show(broker, which, as_json))


def redrive_rejected(
    broker: BrokerOptions, selection: SelectOptions, ids: list[str], options: RedriveOptions, *,
    as_json: bool,
) -> None:  # fmt: skip
    """Send the selected commands again, or validate them; raise typer.Exit unless all went well."""
    _require_selection(selection, ids)
    report = RedriveReport(as_json)
    with handle_errors():
        try:
            run_async(_redrive(broker, selection, ids, options, report))
        except SameProblem as error:
            fail(error, ExitCode.REJECTED)
        except NoOutcome as error:
            fail(error, ExitCode.UNKNOWN)
    if report.has_failures:
        raise typer.Exit(ExitCode.REJECTED)


def discard_rejected(
    broker: BrokerOptions, selection: SelectOptions, ids: list[str], *,
    save: Path | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the selected messages, ask, save them, and remove them, in this order."""
    _require_selection(selection, ids)
    if not yes and not sys.stdin.isatty():
        fail(
            "cannot ask for confirmation: standard input is not a terminal. Add --yes",
            ExitCode.WRONG_USAGE,
        )
    with handle_errors():
        run_async(_discard(broker, selection, ids, save=save, yes=yes, as_json=as_json))


async def _show(broker: BrokerOptions, which: str, as_json: bool) -> None:
    async with _open_queue(broker, with_bodies=True) as queue:
        _warn_of_hidden_messages(queue)
        found = [m for m in queue.messages if m.summary.message_id == which]
        if not found and which.isdecimal():
            found = [m for m in queue.messages if m.number == int(which)]
        if not found:
            fail(f"{which!r} is neither a message_id nor a number: {_describe_content(queue)}")
        results = validate(queue, found, _exchange(broker), user_of(broker.amqp_url))
        for message, result in zip(found, results, strict=True):
            print_message(message, build_record(queue.read(message)), result, as_json)


async def _redrive(
    broker: BrokerOptions,
    selection: SelectOptions,
    ids: list[str],
    options: RedriveOptions,
    report: RedriveReport,
) -> None:
    async with _open_queue(broker, with_bodies=True) as queue:
        found = _select(queue, selection, ids)
        _warn_of_hidden_messages(queue)
        report.expect(len(found), len(queue.messages))
        try:
            if options.dry_run or not found:
                for result in validate(queue, found, _exchange(broker), user_of(broker.amqp_url)):
                    report.add(result)
            else:
                await _send_all(broker, queue, found, options, report)
        finally:
            report.close()


async def _send_all(
    broker: BrokerOptions,
    queue: RejectedQueue,
    found: list[RejectedMessage],
    options: RedriveOptions,
    report: RedriveReport,
) -> None:
    async with open_reply_client(broker.amqp_url) as client:
        results = redrive(
            queue, found, _exchange(broker), client,
            rate=options.rate, seconds=options.timeout, keep_going=options.keep_going,
        )  # fmt: skip
        async with aclosing(results):
            async for result in results:
                report.add(result)


async def _discard(
    broker: BrokerOptions, selection: SelectOptions, ids: list[str], *,
    save: Path | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    async with _open_queue(broker, with_bodies=save is not None) as queue:
        found = _select(queue, selection, ids)
        _warn_of_hidden_messages(queue)
        print_list(found if as_json else found[:_MAX_ROWS], as_json)
        print_counts(found, len(queue.messages), None if as_json else _MAX_ROWS)
        if not found:
            return
        if not yes and not await _confirm(f"Discard {count_messages(len(found))} for ever?"):
            fail("nothing was discarded")
        if save is not None:
            _save(queue, found, save)
        await queue.ack(found)
    saved = f"; saved in {save}" if save else ""
    print_note(f"discarded {count_messages(len(found))}{saved}")


def _open_queue(
    broker: BrokerOptions, *, with_bodies: bool
) -> AbstractAsyncContextManager[RejectedQueue]:
    name = build_topology(broker.prefix).rejected.name
    return open_rejected_queue(broker.amqp_url, name, with_bodies=with_bodies)


def _exchange(broker: BrokerOptions) -> str:
    return build_topology(broker.prefix).commands.name


def _require_selection(selection: SelectOptions, ids: list[str]) -> None:
    filters = (
        selection.code, selection.customer_id, selection.outplan_id, selection.number, ids,
        selection.older_than, selection.newer_than,
    )  # fmt: skip
    if not any(filters) and not selection.all:
        fail("no messages selected: give message_ids, filters or --all", ExitCode.WRONG_USAGE)
    if any(filters) and selection.all:
        fail("--all cannot be combined with message_ids and filters", ExitCode.WRONG_USAGE)


def _select(
    queue: RejectedQueue, filters: FilterOptions, ids: Sequence[str]
) -> list[RejectedMessage]:
    """Return the messages that match; fail if one named by id or number is not there."""
    selection = Selection(
        codes=frozenset(filters.code),
        message_ids=frozenset(ids),
        customer_id=str(filters.customer_id) if filters.customer_id else None,
        outplan_id=str(filters.outplan_id) if filters.outplan_id else None,
        older_than=filters.older_than,
        newer_than=filters.newer_than,
    )
    known = {message.summary.message_id for message in queue.messages}
    if missing := [id_ for id_ in ids if id_ not in known]:
        fail(f"no message has the message_id {', '.join(missing)}: {_describe_content(queue)}")
    if missing := [str(n) for n in filters.number if n > len(queue.messages)]:
        fail(f"there is no number {', '.join(missing)}: {_describe_content(queue)}")
    now, numbers = datetime.now(UTC), frozenset(filters.number)
    return [
        message
        for message in queue.messages
        if selection.matches(message.summary, now) and (not numbers or message.number in numbers)
    ]


def _describe_content(queue: RejectedQueue) -> str:
    found = count_messages(len(queue.messages))
    return f"{found} in the queue {queue.name}; `outplan rejected list` shows all"


def _warn_of_hidden_messages(queue: RejectedQueue) -> None:
    if queue.other_consumers:
        others = queue.other_consumers
        who = "another consumer reads" if others == 1 else f"{others} other consumers read"
        print_note(f"{who} the queue {queue.name}; messages in flight to it are not shown")
    if queue.missing:
        print_note(
            f"the queue {queue.name} counted {count_messages(queue.missing)} more than it "
            "delivered: another consumer took them, they expired, or the broker is slow; "
            "run the command again"
        )


async def _confirm(question: str) -> bool:
    """Ask on the terminal while the event loop keeps the connection alive."""
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


def _save(queue: RejectedQueue, found: Sequence[RejectedMessage], path: Path) -> None:
    """Append messages to a file; return when they are on the disk."""
    with path.open("ab") as file:
        for message in found:
            file.write(encode_message(message, build_record(queue.read(message))))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
