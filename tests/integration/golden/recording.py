"""Make recordings on real servers, keep them in files, and compare new ones with those."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Protocol

from tests.integration.golden import scenario
from tests.integration.golden.broker import other_user
from tests.integration.golden.command import Command
from tests.integration.golden.comparison import differences, sorted_headers
from tests.integration.golden.normal import Document
from tests.integration.golden.scenario import Place, Split
from tests.integration.golden.worker import COMMAND, running_worker

FOLDER: Final = Path(__file__).parent / "recorded"
KINDS: Final[dict[str, Callable[[], list[list[Command]]]]] = {
    "one_by_one": scenario.one_by_one,
    "batched": scenario.split_into_batches,
}
_ATTEMPTS: Final = 5
_WIDTH: Final = 100


class Broker(Protocol):
    """RabbitMQ: its URL, and its rabbitmqctl."""

    @property
    def url(self) -> str: ...
    def ctl(self, *arguments: str) -> str: ...


class Store(Protocol):
    """MongoDB: its URL, and a way to make it hang."""

    @property
    def url(self) -> str: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Pair(Protocol):
    """Both servers. In mode ``urls`` they belong to somebody else, and obey no call."""

    @property
    def mode(self) -> str: ...
    @property
    def rabbitmq(self) -> Broker: ...
    @property
    def mongodb(self) -> Store: ...


def can_be_made(kind: str, servers: Pair) -> bool:
    """Tell whether these servers do: batches need a MongoDB that can be paused."""
    return kind != "batched" or servers.mode != "urls"


def make(kind: str, servers: Pair, command: Sequence[str] = COMMAND) -> Document:
    """Run a worker in a place of its own, send it the commands, and record what comes out.

    On somebody else's servers the recording lacks what needs rabbitmqctl: the commands of another
    user, and the broker's lists.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _record(kind, servers, command)
        except Split:  # The machine was busy.
            continue
    return _record(kind, servers, command)


def _record(kind: str, servers: Pair, command: Sequence[str]) -> Document:
    batches, replies = KINDS[kind](), f"golden.replies.{kind}"
    ctl = None if servers.mode == "urls" else servers.rabbitmq.ctl
    paused = partial(_pause, servers.mongodb)
    with _place(servers) as place, running_worker(place, command):
        return scenario.record(place, batches, replies, paused, ctl)


@contextmanager
def _place(servers: Pair) -> Iterator[Place]:
    name = f"golden-{token_hex(6)}"
    place = Place(servers.rabbitmq.url, servers.mongodb.url, name, name)
    try:
        if servers.mode == "urls":
            yield place
        else:
            with other_user(place.amqp_url, servers.rabbitmq.ctl) as url:
                yield replace(place, other_amqp_url=url)
    finally:
        scenario.remove(place)


@contextmanager
def _pause(store: Store) -> Iterator[None]:
    store.pause()
    try:
        yield
    finally:
        store.resume()


# --- files ------------------------------------------------------------------------------------


def load(kind: str, folder: Path = FOLDER) -> Document:
    """Read the recording that is kept."""
    found: Document = json.loads((folder / f"{kind}.json").read_text("utf-8"))
    return found


def save(kind: str, recording: Document, folder: Path = FOLDER) -> None:
    """Keep a recording, one that lacks nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.json").write_text("".join(_lines(recording)) + "\n", "utf-8")


def _lines(value: Any, margin: str = "") -> Iterator[str]:
    """Write JSON: what is short on one line, the rest with an item a line."""
    short = json.dumps(value, ensure_ascii=False)
    if len(short) + len(margin) <= _WIDTH or not isinstance(value, dict | list):
        yield short
        return
    named = isinstance(value, dict)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    yield "{" if named else "["
    for n, (name, item) in enumerate(items):
        yield f"{',' if n else ''}\n{margin} "
        yield f"{json.dumps(name, ensure_ascii=False)}: " if named else ""
        yield from _lines(item, f"{margin} ")
    yield f"\n{margin}{'}' if named else ']'}"


def compare(kind: str, new: Document, folder: Path = FOLDER) -> list[str]:
    """Say where a new recording differs from the one that is kept, as far as it can be told.

    RabbitMQ 4 sorts the headers of a message. Then their order tells nothing of the worker.
    """
    kept = load(kind, folder)
    if "broker" not in new:
        kept = scenario.without_other_user(kept)
        del kept["broker"]
    if not new["header_order"]:
        kept, new = sorted_headers({**kept, "header_order": False}), sorted_headers(new)
    return list(differences(kept, new, kind))
