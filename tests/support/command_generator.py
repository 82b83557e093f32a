"""Commands of a seed: a few outplans are very hot, and all that a publisher may do happens."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

_CUSTOMERS: Final = 40
_INTERVALS: Final = (5_000, 60_000, 3_600_000)


@dataclass(frozen=True, slots=True)
class Draft:
    """A command to be sent. ``wrong`` is the code that its form alone deserves, or None."""

    name: str
    message_id: str
    outplan_id: str
    body: bytes
    wrong: str | None = None


class Outplans:
    """The outplans that all publishers of a run command; some are replaced while it runs."""

    def __init__(self, seed: int, count: int) -> None:
        self._random = random.Random(seed)
        self._customers = [self._uuid() for _ in range(_CUSTOMERS)]
        self._ids = [self._uuid() for _ in range(count)]
        # Zipf's law: the first is hit twice as often as the second.
        self._weights = list(accumulate(1 / (n + 1) for n in range(count)))
        self._created: set[str] = set()

    def pick(self, luck: random.Random) -> str:
        """Any of them, the hot ones more often."""
        return luck.choices(self._ids, cum_weights=self._weights)[0]

    def owner(self, outplan_id: str) -> str:
        return self._customers[UUID(outplan_id).int % _CUSTOMERS]

    def is_due(self, outplan_id: str) -> bool:
        """Whether nobody has tried to create it so far; asked once, somebody has."""
        due = outplan_id not in self._created
        self._created.add(outplan_id)
        return due

    def replace(self, outplan_id: str) -> None:
        """Put a new one in an outplan's place, as it was deleted."""
        if outplan_id in self._ids:
            self._ids[self._ids.index(outplan_id)] = self._uuid()

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))


class Generator:
    """One publisher's commands, in their order."""

    def __init__(self, seed: int, publisher: str, outplans: Outplans) -> None:
        self._random = random.Random(f"{seed} {publisher}")
        self._publisher = publisher
        self._outplans = outplans
        self._count = 0
        self._earlier: list[Draft] = []
        self._kinds: list[tuple[Callable[[], Draft], int]] = [
            (self._create, 14),
            (self._update, 34),
            (self._set_interval, 14),
            (self._conditional, 8),
            (self._foreign, 2),
            (self._delete, 3),
            (self._again, 10),
            (self._reused, 5),
            (self._invalid, 8),
            (self._unheard_of, 2),
        ]

    def draft(self) -> Draft:
        """The next command."""
        self._count += 1
        kinds, weights = zip(*self._kinds, strict=True)
        made: Draft = self._random.choices(kinds, weights)[0]()
        if made.wrong is None:
            made = self._after_its_create(made)
            self._earlier = [*self._earlier[-200:], made]
        return made

    def last(self) -> Draft:
        """A create of an outplan of its own: what was sent before it is handled before it."""
        self._count += 1
        return self._create(str(UUID(int=self._random.getrandbits(128), version=4)))

    def _after_its_create(self, made: Draft) -> Draft:
        """Mostly a create comes first; an update ahead of it is to be seen too."""
        if self._random.random() < 0.2 or not self._outplans.is_due(made.outplan_id):
            return made
        return self._create(made.outplan_id)

    def _create(self, outplan_id: str | None = None) -> Draft:
        id_ = outplan_id or self._outplans.pick(self._random)
        body = {
            "id": id_,
            "customer_id": self._outplans.owner(id_),
            "name": self._name(),
            "source": {"type": "tel", "target": "+15559876543"},
        }
        return self._draft("outplan_create", id_, body)

    def _update(self) -> Draft:
        return self._change(name=self._name(), dial_timeout=self._random.randint(1_000, 600_000))

    def _set_interval(self) -> Draft:
        # Of few values, so that some change nothing.
        return self._change(try_interval=self._random.choice(_INTERVALS))

    def _conditional(self) -> Draft:
        return self._change(name=self._name(), expected_version=self._random.randint(1, 30))

    def _foreign(self) -> Draft:
        id_ = self._outplans.pick(self._random)
        other = self._outplans.owner(str(UUID(int=UUID(id_).int ^ 1)))
        return self._draft(
            "outplan_update", id_, {"id": id_, "customer_id": other, "name": self._name()}
        )

    def _delete(self) -> Draft:
        id_ = self._outplans.pick(self._random)
        self._outplans.replace(id_)
        return self._draft("outplan_delete", id_, {"id": id_})

    def _again(self) -> Draft:
        return self._random.choice(self._earlier) if self._earlier else self._create()

    def _reused(self) -> Draft:
        """Other content under an id that was sent before."""
        return replace(self._update(), message_id=self._again().message_id)

    def _invalid(self) -> Draft:
        whole = self._update()
        torn = whole.body[: self._random.randrange(len(whole.body))]
        return self._random.choice(
            [
                replace(whole, body=torn, wrong="invalid_json"),
                replace(whole, body=b"\xff" + whole.body, wrong="invalid_json"),
                replace(self._change(dial_timeout=30), wrong="invalid_command"),
                replace(self._change(colour="green"), wrong="invalid_command"),
                replace(whole, name="outplan_paint", wrong="unknown_command"),
            ]
        )

    def _unheard_of(self) -> Draft:
        """An update ahead of its create, should that ever come."""
        id_ = str(UUID(int=self._random.getrandbits(128), version=4))
        return self._draft("outplan_update", id_, {"id": id_, "name": self._name()})

    def _change(self, **fields: Any) -> Draft:
        id_ = self._outplans.pick(self._random)
        return self._draft("outplan_update", id_, {"id": id_, **fields})

    def _draft(self, name: str, outplan_id: str, body: dict[str, Any]) -> Draft:
        message_id = f"{self._publisher}.{self._count}"
        return Draft(name, message_id, outplan_id, json.dumps(body).encode())

    def _name(self) -> str:
        return f"{self._publisher} {self._count}"
