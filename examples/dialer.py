"""A dialer in small: it hears of outplans and "dials" by the log, as they say.

python examples/dialer.py --speed 60

Every outplan that it hears of gets the same made-up people to call: one answers the second call,
one never does. A change of the outplan counts from the next attempt on; its end ends the dialing.

Its queue is durable: after a crash it goes on with the events that came meanwhile. But what it
knows, it knows in memory: the outplans of before are gone until their next event, and so is how
often it has called whom. A real dialer keeps both in a database: an outplan with its version
before it takes the next event, a try count before it calls. It then says by ``seen`` what it has.
Where the outplans were there before its queue was, it reads them from the collection ``outplans``
(docs/contract.md, section 7); the service has no call for that.
"""

import argparse
import asyncio
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
    ended,
    next_attempt,
    started,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person(Target):
    """A target with a name, who answers the call of that number (None: no call)."""

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
    """The time, which runs ``speed`` times as fast as everybody else's."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began = datetime.now(UTC)

    def now(self) -> datetime:
        return self._began + (datetime.now(UTC) - self._began) * self._speed

    def seconds(self, duration: timedelta) -> float:
        """How many real seconds a duration takes."""
        return max(duration.total_seconds(), 0) / self._speed


class Campaign:
    """The people that one outplan is for, and how each of them stands."""

    def __init__(self, event: Event) -> None:
        self.event = event
        self.people = {person.name: person for person in PEOPLE}

    @property
    def name(self) -> str:
        return self.event.data.name

    def due(self, now: datetime) -> list[tuple[Person, Attempt]]:
        return dialable(self.event.data, self.people.values(), now)

    def outlook(self, now: datetime) -> Iterator[tuple[Person, Attempt | NoAttempt]]:
        """What comes next for each; asked afresh whenever anything has changed."""
        for person in self.people.values():
            yield person, next_attempt(self.event.data, person, now)


class Dialer:
    """Keeps campaigns by their outplan's id, and calls whoever is due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._campaigns: dict[str, Campaign] = {}
        self._said: dict[tuple[str, str], str] = {}
        self._news = asyncio.Event()

    @property
    def seen(self) -> dict[str, int]:
        """Which outplans are known in which version: none yet, where nothing is kept."""
        return {id_: campaign.event.version for id_, campaign in self._campaigns.items()}

    async def listen(self, stream: Events) -> None:
        """Take each event as it comes; the next that it asks for acknowledges the last."""
        async for item in stream:
            match item:
                case Event():
                    self._hear(item)
                case Gap():
                    pass  # The event that follows carries the whole outplan.
                case Unreadable():
                    self.say(f"cannot read what came: {item.reason!r}")

    async def dial(self, group: asyncio.TaskGroup, *, once: bool) -> None:
        """Call whoever is due, until nobody is left to be called if ``once``, else for ever."""
        while True:
            self._news.clear()
            for campaign in self._campaigns.values():
                for person, attempt in campaign.due(self._clock.now()):
                    self._begin(campaign, person, attempt)
                    group.create_task(self._call(campaign, person.name, attempt))
            coming = self._coming()
            if once and self._campaigns and not coming and not self._in_progress():
                return
            await self._news_or(min(coming, default=None))

    def say(self, text: str) -> None:
        print(f"{self._clock.now():%Y-%m-%d %H:%M:%S.%f}  {text}", flush=True)

    def say_reconnected(self, how: Reconnected) -> None:
        self.say("connected again, and nothing lost" if how.lossless else "events were lost")

    def _hear(self, event: Event) -> None:
        campaign = self._campaigns.setdefault(event.data.id, Campaign(event))
        campaign.event = event
        kind = event.type.removeprefix("outplan_")
        self.say(f"{campaign.name!r}: {kind}, version {event.version}")
        self._news.set()

    def _begin(self, campaign: Campaign, person: Person, attempt: Attempt) -> None:
        campaign.people[person.name] = started(person, attempt.index)
        self.say(
            f"{campaign.name!r}: calls {person.name}, destination {attempt.index}, "
            f"attempt {attempt.number}, rings {attempt.dial_timeout} ms"
        )

    async def _call(self, campaign: Campaign, name: str, attempt: Attempt) -> None:
        """Let it ring; where this stands, a real dialer calls ``attempt.destination``."""
        await asyncio.sleep(self._clock.seconds(attempt.ring_timeout))
        person = campaign.people[name]
        success = sum(person.try_counts) == person.answers
        campaign.people[name] = ended(person, self._clock.now(), success)
        self.say(f"{campaign.name!r}: {name} {'answers' if success else 'does not answer'}")
        self._news.set()

    def _coming(self) -> list[datetime]:
        """When who is idle is due; who is not, and why, is said once."""
        moments = []
        for campaign in self._campaigns.values():
            for person, attempt in campaign.outlook(self._clock.now()):
                if isinstance(attempt, Attempt):
                    moments.append(attempt.not_before)
                self._say_outlook(campaign, person, attempt)
        return moments

    def _say_outlook(
        self, campaign: Campaign, person: Person, attempt: Attempt | NoAttempt
    ) -> None:
        if attempt is NoAttempt.TARGET_NOT_IDLE:
            return
        which = (campaign.event.data.id, person.name)
        text = f"no more for {person.name}: {attempt}"
        if isinstance(attempt, Attempt):
            text = f"{person.name} not before {attempt.not_before:%H:%M:%S.%f}"
        if self._said.get(which) != text:
            self._said[which] = text
            self.say(f"{campaign.name!r}: {text}")

    def _in_progress(self) -> bool:
        people = (p for campaign in self._campaigns.values() for p in campaign.people.values())
        return any(person.status == "progressing" for person in people)

    async def _news_or(self, moment: datetime | None) -> None:
        wait = None if moment is None else self._clock.seconds(moment - self._clock.now())
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._news.wait()


async def run(options: argparse.Namespace) -> None:
    """Subscribe, and dial."""
    dialer = Dialer(Clock(options.speed))
    subscription = events(
        options.amqp_url,
        prefix=options.prefix,
        queue=options.queue,
        seen=dialer.seen,
        on_reconnect=dialer.say_reconnected,
    )
    async with subscription as stream, asyncio.TaskGroup() as group:
        dialer.say("listening")
        listening = group.create_task(dialer.listen(stream))
        await dialer.dial(group, once=options.once)
        listening.cancel()


def main() -> None:
    """Read the command line and dial."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--amqp-url", default="amqp://guest:guest@localhost:5672/")
    parser.add_argument("--prefix", default="outplan", help="the worker's OUTPLAN_PREFIX")
    parser.add_argument("--queue", default="dialer", help="the durable queue to read from")
    parser.add_argument("--speed", type=float, default=1, help="how fast its clock runs")
    parser.add_argument("--once", action="store_true", help="end when nobody is left to be called")
    with suppress(KeyboardInterrupt):
        asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
