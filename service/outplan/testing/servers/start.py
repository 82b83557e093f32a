"""Find or start RabbitMQ and MongoDB."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from outplan.testing.errors import ServerFailed, ServersUnavailable
from outplan.testing.servers.external import external_servers
from outplan.testing.servers.interface import (
    AMQP_VARIABLE,
    MODE_VARIABLE,
    MONGO_VARIABLE,
    Mode,
    Servers,
)
from outplan.testing.servers.processes import process_servers

_NONE_FOUND = (
    "no RabbitMQ and MongoDB to test with. Fix one of these, or set "
    f"{AMQP_VARIABLE} and {MONGO_VARIABLE} to servers that the tests may write to:"
)

_log = logging.getLogger(__name__)


@contextmanager
def start_servers(mode: Mode = "auto") -> Iterator[Servers]:
    """Find or start RabbitMQ and MongoDB, ready to use; end what was started with the block.

    ``auto`` follows OUTPLAN_TEST_SERVERS. Without it, it takes the first that is available: the
    URLs in the environment, Docker, child processes. ``own`` skips the URLs: its servers can be
    stopped. Raises `ServersUnavailable`.
    """
    with ExitStack() as stack:
        chosen = _choose(mode)
        yield _start_own(stack) if chosen == "own" else _start(stack, chosen)


def _choose(mode: Mode) -> str:
    setting = os.environ.get(MODE_VARIABLE, "auto")
    chosen = setting if mode == "auto" or (mode == "own" and setting != "urls") else mode
    if chosen != "auto":
        return chosen
    has_urls = os.environ.get(AMQP_VARIABLE) or os.environ.get(MONGO_VARIABLE)
    return "urls" if has_urls and mode == "auto" else "own"


def _start_own(stack: ExitStack) -> Servers:
    failures = []
    for mode in ("docker", "processes"):
        try:
            return _start(stack, mode)
        except ServersUnavailable as error:
            # Not warnings.warn: a suite that turns warnings into errors would stop here.
            level = logging.WARNING if isinstance(error, ServerFailed) else logging.INFO
            _log.log(level, "no servers by %s: %s", mode, error)
            failures.append(f"- {mode}: {error}")
    raise ServersUnavailable("\n".join([_NONE_FOUND, *failures]))


def _start(stack: ExitStack, mode: str) -> Servers:
    openers = {"urls": external_servers, "docker": _docker_servers, "processes": process_servers}
    if mode not in openers:
        raise ServersUnavailable(f"{MODE_VARIABLE} is {mode!r}, not auto, {', '.join(openers)}")
    return stack.enter_context(openers[mode]())


def _docker_servers() -> AbstractContextManager[Servers]:
    try:
        from outplan.testing.servers.containers import container_servers  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ServersUnavailable(f"{error} (pip install 'outplan-service[testing]')") from error
    return container_servers()
