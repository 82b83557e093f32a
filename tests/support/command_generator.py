"""Generate a seed's commands: hot outplans, resends, invalid bodies, updates before the create."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

from outplan.contract.slots import routing_key

_CUSTOMERS: Final = 40
_INTERVALS: Final = (5_000, 60_000, 3_600_000)


@dataclass(frozen=True, slots=True)
class Draft:
    """A command to send. ``invalid_code`` is the problem code that its form calls for, or None.

    A ``bare`` one has no slot in its routing key.
    """

    name: str
    message_id: str
    outplan_id: str
    body: bytes
    invalid_code: str | None = None
    bare: bool = False

    @property
    def routing_key(self) -> str:
        return self.name if self.bare else routing_key(self.name, self.outplan_id)


class Outplans:
    """The outplans that all publishers of a run change; deleted ones are replaced."""

    def __init__(self, seed: int, count: int) -> None:
        self._rng = random.Random(seed)
        self._customers = [self._uuid() for _ in range(_CUSTOMERS)]
        self._ids = [self._uuid() for _ in range(count)]
        # Zipf's law: the first is picked twice as often as the second.
        self._weights = list(accumulate(1 / (n + 1) for n in range(count)))
        self._created: set[str] = set()

    def pick(self, rng: random.Random) -> str:
        """Pick an outplan, hot ones more often."""
        return rng.choices(self._ids, cum_weights=self._weights)[0]

    def owner(self, outplan_id: str) -> str:
        return self._customers[UUID(outplan_id).int % _CUSTOMERS]

    def claim_create(self, outplan_id: str) -> bool:
        """Return True to the first caller for each outplan: that one sends the create."""
        due = outplan_id not in self._created
        self._created.add(outplan_id)
        return due

    def replace(self, outplan_id: str) -> None:
        """Replace a deleted outplan by a new one."""
        if outplan_id in self._ids:
            self._ids[self._ids.index(outplan_id)] = self._uuid()

    def _uuid(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))


class Generator:
    """Generate one publisher's commands in order."""

    def __init__(self, seed: int, publisher: str, outplans: Outplans) -> None:
        self._rng = random.Random(f"{seed} {publisher}")
        self._publisher = publisher
        self._outplans = outplans
        self._count = 0
        self._earlier: list[Draft] = []
        self._kinds: list[tuple[Callable[[], Draft], int]] = [
            (self._create, 14),
            (self._update, 34),
            (self._update_interval, 14),
            (self._update_expected_version, 8),
            (self._update_of_another_customer, 2),
            (self._delete, 3),
            (self._resend, 10),
            (self._reuse_message_id, 5),
            (self._make_invalid, 8),
            (self._update_unknown, 2),
            (self._create_bare, 1),
        ]

    def draft(self) -> Draft:
        """Return the next command."""
        self._count += 1
        kinds, weights = zip(*self._kinds, strict=True)
        draft: Draft = self._rng.choices(kinds, weights)[0]()
        if draft.invalid_code is None:
            draft = draft if draft.bare else self._with_create_first(draft)
            self._earlier = [*self._earlier[-200:], draft]
        return draft

    def create_marker(self) -> Draft:
        """Create an outplan that no other command touches."""
        self._count += 1
        return self._create(self._new_id())

    def _with_create_first(self, draft: Draft) -> Draft:
        """Put the outplan's create first, except for one in five: updates may come too early."""
        if self._rng.random() < 0.2 or not self._outplans.claim_create(draft.outplan_id):
            return draft
        return self._create(draft.outplan_id)

    def _create(self, outplan_id: str | None = None) -> Draft:
        id_ = outplan_id or self._outplans.pick(self._rng)
        body = {
            "id": id_,
            "customer_id": self._outplans.owner(id_),
            "name": self._make_name(),
            "source": {"type": "tel", "target": "+15559876543"},
        }
        return self._make_draft("outplan_create", id_, body)

    def _update(self) -> Draft:
        return self._change(name=self._make_name(), dial_timeout=self._rng.randint(1_000, 600_000))

    def _update_interval(self) -> Draft:
        # Few values, so that some updates change nothing.
        return self._change(try_interval=self._rng.choice(_INTERVALS))

    def _update_expected_version(self) -> Draft:
        return self._change(name=self._make_name(), expected_version=self._rng.randint(1, 30))

    def _update_of_another_customer(self) -> Draft:
        id_ = self._outplans.pick(self._rng)
        other = self._outplans.owner(str(UUID(int=UUID(id_).int ^ 1)))
        return self._make_draft(
            "outplan_update", id_, {"id": id_, "customer_id": other, "name": self._make_name()}
        )

    def _delete(self) -> Draft:
        id_ = self._outplans.pick(self._rng)
        self._outplans.replace(id_)
        return self._make_draft("outplan_delete", id_, {"id": id_})

    def _resend(self) -> Draft:
        return self._rng.choice(self._earlier) if self._earlier else self._create()

    def _reuse_message_id(self) -> Draft:
        """Send other content under a message_id that was sent before."""
        return replace(self._update(), message_id=self._resend().message_id)

    def _make_invalid(self) -> Draft:
        valid = self._update()
        truncated = valid.body[: self._rng.randrange(len(valid.body))]
        return self._rng.choice(
            [
                replace(valid, body=truncated, invalid_code="invalid_json"),
                replace(valid, body=b"\xff" + valid.body, invalid_code="invalid_json"),
                replace(self._change(dial_timeout=30), invalid_code="invalid_command"),
                replace(self._change(colour="green"), invalid_code="invalid_command"),
                replace(valid, name="outplan_paint", invalid_code="unknown_command"),
            ]
        )

    def _update_unknown(self) -> Draft:
        """Update an outplan that nobody creates."""
        id_ = self._new_id()
        return self._make_draft("outplan_update", id_, {"id": id_, "name": self._make_name()})

    def _create_bare(self) -> Draft:
        """Create an outplan of its own: a bare command has no order with those that have a slot."""
        return replace(self._create(self._new_id()), bare=True)

    def _change(self, **fields: Any) -> Draft:
        id_ = self._outplans.pick(self._rng)
        return self._make_draft("outplan_update", id_, {"id": id_, **fields})

    def _make_draft(self, name: str, outplan_id: str, body: dict[str, Any]) -> Draft:
        message_id = f"{self._publisher}.{self._count}"
        return Draft(name, message_id, outplan_id, json.dumps(body).encode())

    def _new_id(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    def _make_name(self) -> str:
        return f"{self._publisher} {self._count}"
