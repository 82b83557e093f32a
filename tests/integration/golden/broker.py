"""Ask rabbitmqctl for what AMQP does not tell."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from tests.integration.golden.normal import Document

# Run rabbitmqctl with these arguments, and return what it prints.
Ctl = Callable[..., str]

_OTHER_USER: Final = "golden-other"
_LISTS: Final = {
    "queues": ("list_queues", "name", "durable", "auto_delete", "arguments"),
    "exchanges": ("list_exchanges", "name", "type", "durable", "auto_delete", "internal",
                  "arguments"),
    "bindings": ("list_bindings", "source_name", "destination_name", "destination_kind",
                 "routing_key", "arguments"),
}  # fmt: skip


@contextmanager
def other_user(amqp_url: str, ctl: Ctl) -> Iterator[str]:
    """Add a user who may publish, and yield the URL to connect by."""
    ctl("add_user", _OTHER_USER, _OTHER_USER)
    try:
        ctl("set_permissions", _OTHER_USER, "^$", ".*", "^$")
        parts = urlsplit(amqp_url)
        host = parts.netloc.rpartition("@")[2]
        yield parts._replace(netloc=f"{_OTHER_USER}:{_OTHER_USER}@{host}").geturl()
    finally:
        ctl("delete_user", _OTHER_USER)


def list_topology(prefix: str, ctl: Ctl) -> Document:
    """List the queues, exchanges and bindings whose names begin with a prefix."""
    return {name: _list(prefix, ctl, *columns) for name, columns in _LISTS.items()}


def _list(prefix: str, ctl: Ctl, command: str, *columns: str) -> list[list[Any]]:
    rows = json.loads(ctl(command, "--formatter", "json", *columns))
    found = [[row[column] for column in columns] for row in rows]
    # The first two columns of a binding are its ends. The scenario binds a queue of its own.
    ours = [row for row in found if any(str(name).startswith(prefix) for name in row[:2])]
    return sorted((row for row in ours if not str(row[1]).startswith("amq.gen")), key=json.dumps)
