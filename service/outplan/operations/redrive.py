"""Rejected commands sent once more, the oldest first, and each copy kept until that has an outcome.

One at a time: whatever ends this, and whenever, at most one command was sent whose copy is still
there. Sent again under the same message_id, it is a duplicate.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from outplan.contract.amqp import Delivery
from outplan.contract.messages import Problem
from outplan.domain.codec import parse
from outplan.errors import BrokerUnavailable, OutplanError
from outplan.operations.rejected_queue import Custody, Held
from outplan.operations.resend import Asking, resendable

# The broker takes back what is held for 30 minutes, and closes the channel.
LONGEST_SECONDS: Final = 25 * 60

Status = Literal["accepted", "unchanged", "duplicate", "rejected", "invalid", "valid"]


class Halted(OutplanError):
    """Raised when it is no good to go on. The text says why."""


class SameProblem(Halted):
    """Raised when a command comes back for the reason that it was rejected for before."""


class NoOutcome(Halted):
    """Raised when it is not known what became of a command. Its copy stays."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """What became of one. ``invalid`` was not sent; ``valid`` is all that a dry run says."""

    held: Held
    status: Status
    version: int | None = None
    problem: Problem | None = None


def judged(
    custody: Custody, chosen: Sequence[Held], exchange: str, user: str
) -> Iterator[Redriven]:
    """Say of each whether it passes today's schema; nothing is sent."""
    for held in chosen:
        yield _judged(held, resendable(custody.delivery(held), exchange, user))


async def redrive(
    custody: Custody,
    chosen: Sequence[Held],
    exchange: str,
    asking: Asking,
    *,
    rate: float,
    seconds: float,
    keep_going: bool = False,
) -> AsyncGenerator[Redriven, None]:
    """Send each that is valid, ``rate`` a second at most; ``seconds`` to await each outcome.

    Raises SameProblem, unless told to ``keep_going``, NoOutcome and Halted, BrokerRefused and
    BrokerUnavailable.
    """
    began, due = monotonic(), 0.0
    for held in chosen:
        command = resendable(custody.delivery(held), exchange, asking.user, asking.reply_queue)
        found = _judged(held, command)
        if found.status == "valid":
            if monotonic() - began > LONGEST_SECONDS:
                raise Halted("the broker lends copies for half an hour; run it again for the rest")
            await asyncio.sleep(due - monotonic())
            due = monotonic() + 1 / rate
            found = await _sent(held, command, asking, seconds)
            await custody.acknowledge([held])
        yield found
        if found.status == "rejected" and not keep_going:
            _halt_if_same(found)


def _judged(held: Held, command: Delivery) -> Redriven:
    verdict = parse(command)
    if isinstance(verdict, Problem):
        return Redriven(held, "invalid", problem=verdict)
    return Redriven(held, "valid")


async def _sent(held: Held, command: Delivery, asking: Asking, seconds: float) -> Redriven:
    try:
        reply = await asking.ask(command, seconds)
    except TimeoutError:
        raise NoOutcome(
            f"no outcome of {held.summary.message_id} within {seconds:g} s: does a worker run? "
            "The command is sent, its copy stays"
        ) from None
    except BrokerUnavailable as error:
        raise NoOutcome(
            f"no outcome of {held.summary.message_id}: {error}. It may be sent, its copy stays"
        ) from error
    status: Status = "duplicate" if reply.duplicate else reply.status
    return Redriven(held, status, reply.version, reply.problem)


def _halt_if_same(found: Redriven) -> None:
    assert found.problem is not None
    if found.problem.code == found.held.summary.code:
        raise SameProblem(
            f"{found.held.summary.message_id} is valid and was rejected once more for the same "
            f"reason, {found.problem.code}; --keep-going goes on all the same"
        )
