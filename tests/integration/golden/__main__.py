"""Record what the service does, or compare it with the recording that is kept.

``python -m tests.integration.golden`` starts private servers and a worker, sends the fixed
commands, and writes ``recorded/*.json``. ``--check`` compares instead, and exits with 1 where
anything differs.

Record anew only when an issue changes the contract on purpose, or extends it. Then commit the
recording together with that change, and read its diff like code: every changed line is a change
that publishers, subscribers or operators will see. A refactoring never needs a new recording.
New wording by a library (orjson, jsonschema-rs) in an error's ``detail`` needs one too: record in
the commit that upgrades the library, and change nothing else in it.

RabbitMQ 4 sorts the headers of a message, so record on RabbitMQ 3.10, which does not: that is what
``--servers processes`` starts. To record on servers that run already, give all four of
``--amqp-url``, ``--mongo-url``, ``--rabbitmqctl`` and ``--mongod-pid``: the recording needs a
second user of the broker, and a MongoDB that hangs for a moment.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outplan.testing.servers import start_servers
from tests.integration.golden.recording import FOLDER, KINDS, Pair, compare, make, save
from tests.integration.golden.worker import COMMAND

_GIVEN = ("amqp_url", "mongo_url", "rabbitmqctl", "mongod_pid")


@dataclass(frozen=True)
class GivenBroker:
    """A RabbitMQ that runs already."""

    url: str
    command: str

    def ctl(self, *arguments: str) -> str:
        command = [*shlex.split(self.command), "-q", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class GivenStore:
    """A MongoDB that runs already, as a process of this machine."""

    url: str
    process: int

    def pause(self) -> None:
        os.kill(self.process, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process, signal.SIGCONT)


@dataclass(frozen=True)
class GivenPair:
    """Both servers."""

    rabbitmq: GivenBroker
    mongodb: GivenStore
    mode: str = "given"


def main(arguments: Sequence[str]) -> int:
    """Record, or compare; return the exit code."""
    options = _options(arguments)
    worker = shlex.split(options.worker)
    found = 0
    with _servers(options) as servers:
        for kind in options.kinds:
            recording = make(kind, servers, worker)
            if options.check:
                different = compare(kind, recording, options.folder)
                print("\n".join([*different, f"{kind}: {len(different)} differences"]))
                found += len(different)
            elif recording["header_order"]:
                save(kind, recording, options.folder)
                print(f"{kind}: {options.folder / kind}.json")
            else:
                sys.exit("this broker does not keep the order of headers: use RabbitMQ 3.10")
    return min(found, 1)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m tests.integration.golden",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where recordings are kept")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--worker", default=shlex.join(COMMAND), help="the command that runs a worker (%(default)s)"
    )
    parser.add_argument("--servers", choices=["processes", "docker"], default="processes")
    parser.add_argument("--amqp-url", help="a RabbitMQ that runs already")
    parser.add_argument("--mongo-url", help="a MongoDB replica set that runs already")
    parser.add_argument("--rabbitmqctl", help="the command that controls that RabbitMQ")
    parser.add_argument("--mongod-pid", type=int, help="the process of that MongoDB")
    options = parser.parse_args(arguments)
    if len({getattr(options, name) is None for name in _GIVEN}) > 1:
        parser.error("--amqp-url, --mongo-url, --rabbitmqctl and --mongod-pid go together")
    return options


@contextmanager
def _servers(options: argparse.Namespace) -> Iterator[Pair]:
    if options.amqp_url is None:
        with start_servers(options.servers) as servers:
            yield servers
    else:
        broker = GivenBroker(options.amqp_url, options.rabbitmqctl)
        yield GivenPair(broker, GivenStore(options.mongo_url, options.mongod_pid))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
