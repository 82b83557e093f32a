"""Dial by the log: a small dialer that obeys outplans and only prints its calls.

python examples/dialer.py --speed 60

It calls the same made-up people for every outplan: one answers the second call, one never answers.
A change of the outplan counts from the next attempt on. A deleted outplan gets no further calls.

Its queue is durable, so after a crash it continues with the events that arrived meanwhile. But it
keeps outplans and try counts in memory only, so a crash loses them until the next event. A real
dialer keeps both in a database: it stores an outplan with its version before it takes the next
event, stores a try count before it calls, and passes the stored versions in ``seen``. For outplans
that are older than its queue, read the collection ``outplans`` (docs/contract.md, section 7).
"""

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from outplan.client import Event, Events, Gap, Reconnected, Unreadable, events
from outplan.client.dialing import (
    Attempt,
    NoAttempt,
    Target,
    dialable,
    end_attempt,
    next_attempt,
    start_attempt,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person(Target):
    """A target with a name. ``answers`` is the number of the call to answer; None: never."""

    name: str
    answers: int | None


PEOPLE = (
    Person(
        name="Ada",
        destinations=(
            {"type": "tel", "target": "+15550100001"},
            {"type": "sip", "target": "ada@example.com"},
        ),
        answers=None,
    ),
    Person(name="Bob", destinations=({"type": "tel", "target": "+15550100002"},), answers=2),
)


class Clock:
    """A clock that runs ``speed`` times as fast as real time."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._start = datetime.now(UTC)

    def now(self) -> datetime:
        return self._start + (datetime.now(UTC) - self._start) * self._speed

    def real_seconds(self, duration: timedelta) -> float:
        """Convert a duration of this clock to real seconds."""
        return max(duration.total_seconds(), 0) / self._speed


class Campaign:
    """One outplan's latest event and the people to call for it."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.people = {person.name: person for person in PEOPLE}

    @property
    def name(self) -> str:
        return self.event.data.name

    def list_due(self, now: datetime) -> list[tuple[Person, Attempt]]:
        return dialable(self.event.data, self.people.values(), now)

    def list_next(self, now: datetime) -> Iterator[tuple[Person, Attempt | NoAttempt]]:
        """Yield each person's next attempt, or why there is none."""
        for person in self.people.values():
            yield person, next_attempt(self.event.data, person, now)


class Dialer:
    """Keep a campaign for each outplan, and call whoever is due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._campaigns: dict[str, Campaign] = {}
        self._last_printed: dict[tuple[str, str], str] = {}
        self._changed = asyncio.Event()

    @property
    def seen(self) -> dict[str, int]:
        """The known version of each outplan; empty at the start, since nothing is stored."""
        return {id_: campaign.event.version for id_, campaign in self._campaigns.items()}

    async def listen(self, stream: Events) -> None:
        """Handle events one by one. Asking for the next one acks the last."""
        async for item in stream:
            match item:
                case Event():
                    self._handle_event(item)
                case Gap():
                    pass  # the event that follows carries the whole outplan
                case Unreadable():
                    self.log(f"unreadable message: {item.reason!r}")

    async def dial(self, group: asyncio.TaskGroup, *, once: bool) -> None:
        """Call whoever is due, for ever; with ``once`` return when nobody is left to call."""
        while True:
            self._changed.clear()
            for campaign in self._campaigns.values():
                for person, attempt in campaign.list_due(self._clock.now()):
                    self._start_call(campaign, person, attempt)
                    group.create_task(self._finish_call(campaign, person.name, attempt))
            due_times = self._find_due_times()
            if once and self._campaigns and not due_times and not self._has_calls_in_progress():
                return
            await self._wait_for_change(until=min(due_times, default=None))

    def log(self, text: str) -> None:
        print(f"{self._clock.now():%Y-%m-%d %H:%M:%S.%f}  {text}", flush=True)

    def log_reconnect(self, how: Reconnected) -> None:
        self.log("reconnected, lossless" if how.lossless else "reconnected, events are missing")

    def _handle_event(self, event: Event) -> None:
        campaign = self._campaigns.setdefault(event.data.id, Campaign(event))
        campaign.event = event
        kind = event.type.removeprefix("outplan_")
        self.log(f"{campaign.name!r}: {kind}, version {event.version}")
        self._changed.set()

    def _start_call(self, campaign: Campaign, person: Person, attempt: Attempt) -> None:
        campaign.people[person.name] = start_attempt(person, attempt.index)
        self.log(
            f"{campaign.name!r}: calls {person.name}, destination {attempt.index}, "
            f"attempt {attempt.number}, rings {attempt.dial_timeout} ms"
        )

    async def _finish_call(self, campaign: Campaign, name: str, attempt: Attempt) -> None:
        """Let it ring and record the end. A real dialer calls ``attempt.destination`` here."""
        await asyncio.sleep(self._clock.real_seconds(attempt.ring_timeout))
        person = campaign.people[name]
        success = sum(person.try_counts) == person.answers
        campaign.people[name] = end_attempt(person, self._clock.now(), success)
        self.log(f"{campaign.name!r}: {name} {'answers' if success else 'does not answer'}")
        self._changed.set()

    def _find_due_times(self) -> list[datetime]:
        """Collect when each idle person is due. Log each new answer once."""
        due_times = []
        for campaign in self._campaigns.values():
            for person, attempt in campaign.list_next(self._clock.now()):
                if isinstance(attempt, Attempt):
                    due_times.append(attempt.not_before)
                self._log_next(campaign, person, attempt)
        return due_times

    def _log_next(self, campaign: Campaign, person: Person, attempt: Attempt | NoAttempt) -> None:
        if attempt is NoAttempt.TARGET_NOT_IDLE:
            return
        key = (campaign.event.data.id, person.name)
        text = f"no more for {person.name}: {attempt}"
        if isinstance(attempt, Attempt):
            text = f"{person.name} not before {attempt.not_before:%H:%M:%S.%f}"
        if self._last_printed.get(key) != text:
            self._last_printed[key] = text
            self.log(f"{campaign.name!r}: {text}")

    def _has_calls_in_progress(self) -> bool:
        people = (p for campaign in self._campaigns.values() for p in campaign.people.values())
        return any(person.status == "progressing" for person in people)

    async def _wait_for_change(self, until: datetime | None) -> None:
        wait = None if until is None else self._clock.real_seconds(until - self._clock.now())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._changed.wait()


async def run(options: argparse.Namespace) -> None:
    """Subscribe to events and dial."""
    dialer = Dialer(Clock(options.speed))
    subscription = events(
        options.amqp_url,
        prefix=options.prefix,
        queue=options.queue,
        seen=dialer.seen,
        on_reconnect=dialer.log_reconnect,
    )
    async with subscription as stream, asyncio.TaskGroup() as group:
        dialer.log("listening")
        listening = group.create_task(dialer.listen(stream))
        await dialer.dial(group, once=options.once)
        listening.cancel()


def main() -> None:
    """Read the command line and dial."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    amqp_url = os.environ.get("OUTPLAN_AMQP_URL") or "amqp://guest:guest@localhost:5672/"
    parser.add_argument("--amqp-url", default=amqp_url, help="default: OUTPLAN_AMQP_URL")
    parser.add_argument("--prefix", default="outplan", help="the worker's OUTPLAN_PREFIX")
    parser.add_argument("--queue", default="dialer", help="the durable queue to read")
    parser.add_argument("--speed", type=float, default=1, help="how fast its clock runs")
    parser.add_argument("--once", action="store_true", help="end when nobody is left to call")
    with suppress(KeyboardInterrupt):
        asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
