"""Send rejected commands again, the oldest first, and keep each message until it has an outcome.

Commands go one at a time. So whatever interrupts a redrive, at most one command was sent whose
message is still in the queue; sent again under the same message_id, it is a duplicate.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from outplan.contract.amqp import Delivery
from outplan.contract.messages import Problem
from outplan.domain.codec import Outcome, parse
from outplan.errors import BrokerUnavailable, OutplanError
from outplan.operations.rejected_queue import RejectedMessage, RejectedQueue
from outplan.operations.resend import ReplyClient, restore_command

# RabbitMQ's consumer_timeout is 30 minutes: it requeues messages unacked for longer.
MAX_SECONDS: Final = 25 * 60

Status = Literal["accepted", "unchanged", "duplicate", "rejected", "invalid", "valid"]


class RedriveStopped(OutplanError):
    """Raised when a redrive cannot go on. The text says why."""


class SameProblem(RedriveStopped):
    """Raised when a command is rejected again with the problem code that it had before."""


class NoOutcome(RedriveStopped):
    """Raised when a command may have taken effect. Its message stays in the queue."""


@dataclass(frozen=True, slots=True)
class RedriveResult:
    """Report one message. ``invalid`` was not sent; a dry run reports ``valid`` or ``invalid``."""

    message: RejectedMessage
    status: Status
    version: int | None = None
    problem: Problem | None = None


def validate(
    queue: RejectedQueue, messages: Sequence[RejectedMessage], exchange: str, user: str
) -> Iterator[RedriveResult]:
    """Validate each command against today's schema; send nothing."""
    for message in messages:
        yield _validate(message, restore_command(queue.read(message), exchange, user))


async def redrive(
    queue: RejectedQueue,
    messages: Sequence[RejectedMessage],
    exchange: str,
    client: ReplyClient,
    *,
    rate: float,
    seconds: float,
    keep_going: bool = False,
) -> AsyncGenerator[RedriveResult, None]:
    """Send each valid command, at most ``rate`` a second; wait ``seconds`` for each reply.

    Raises SameProblem (unless ``keep_going``), NoOutcome, RedriveStopped, BrokerRefused and
    BrokerUnavailable.
    """
    began, due = monotonic(), 0.0
    for message in messages:
        command = restore_command(queue.read(message), exchange, client.user, client.reply_queue)
        result = _validate(message, command)
        if result.status == "valid":
            if monotonic() - began > MAX_SECONDS:
                raise RedriveStopped(
                    "stopped after 25 minutes, since the broker requeues messages after 30; "
                    "run it again for the rest"
                )
            await asyncio.sleep(due - monotonic())
            due = monotonic() + 1 / rate
            result = await _send(message, command, client, seconds)
            await queue.ack([message])
        yield result
        if result.status == "rejected" and not keep_going:
            _raise_if_same_problem(result)


def _validate(message: RejectedMessage, command: Delivery) -> RedriveResult:
    parsed = parse(command)
    problem = parsed.problem if isinstance(parsed, Outcome) else parsed.objection
    return RedriveResult(message, "valid" if problem is None else "invalid", problem=problem)


async def _send(
    message: RejectedMessage, command: Delivery, client: ReplyClient, seconds: float
) -> RedriveResult:
    try:
        reply = await client.ask(command, seconds)
    except TimeoutError:
        raise NoOutcome(
            f"no reply to {message.summary.message_id} within {seconds:g} s: the command was sent, "
            "and its message stays in the queue; check that a worker runs, then run it again"
        ) from None
    except BrokerUnavailable as error:
        raise NoOutcome(
            f"no reply to {message.summary.message_id}: {error}; the command may have been sent, "
            "and its message stays in the queue; run it again"
        ) from error
    status: Status = "duplicate" if reply.duplicate else reply.status
    return RedriveResult(message, status, reply.version, reply.problem)


def _raise_if_same_problem(result: RedriveResult) -> None:
    assert result.problem is not None
    if result.problem.code == result.message.summary.code:
        raise SameProblem(
            f"{result.message.summary.message_id} is valid and was rejected again with the same "
            f"code, {result.problem.code}; --keep-going continues with the others"
        )
