"""The pytest plugin: fixtures of the service on real servers and in memory.

Every pytest run loads it, if the package is installed. So it imports nothing of the extra
``testing`` before a test uses a fixture; hence the imports inside functions (PLC0415).
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from outplan.client.portal import Portal
    from outplan.testing.deployment import Deployment
    from outplan.testing.harness import AsyncService, Backend, SyncService
    from outplan.testing.live import LiveService
    from outplan.testing.servers import Mode, Servers

_MODES: Final = ("servers", "memory")
# aiormq drops the coroutine that would close a connection which the broker closed first.
_HARMLESS_WARNINGS: Final = (
    "coroutine 'Connection.close' was never awaited:RuntimeWarning",
    "Exception ignored in. <coroutine object Connection.close:"
    "pytest.PytestUnraisableExceptionWarning",
)
_OWN_SERVERS: Final = "outplan_own_servers"
_RUN_FOLDER: Final = "outplan_run"  # in workerinput: how xdist's workers learn the run's folder
_LOG: Final = pytest.StashKey[Callable[[], str]]()
_FOLDER: Final = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--outplan-mode`` and the ini setting ``outplan_mode``."""
    text = "run outplan_service on real servers or in memory"
    group = parser.getgroup("outplan")
    group.addoption("--outplan-mode", choices=_MODES, help=f"{text} (default: servers)")
    parser.addini("outplan_mode", f"{text}: {' or '.join(_MODES)}", default="servers")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, ignore the driver's warnings and validate the mode."""
    config.addinivalue_line(
        "markers", f"{_OWN_SERVERS}: run outplan_service on servers that the test may stop"
    )
    for warning in _HARMLESS_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")
    if _mode(config) not in _MODES:
        raise pytest.UsageError(f"outplan_mode is {_mode(config)!r}, not {' or '.join(_MODES)}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the run's folder to a worker of xdist; called in the run's first process."""
    if sys.platform == "win32":
        return
    config: pytest.Config = node.config
    if _FOLDER not in config.stash:
        from outplan.testing.run_lock import open_run  # noqa: PLC0415 - Windows has no fcntl

        stack = ExitStack()
        config.add_cleanup(stack.close)
        config.stash[_FOLDER] = stack.enter_context(open_run())
    node.workerinput[_RUN_FOLDER] = str(config.stash[_FOLDER])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the worker's log to the report of a failed test."""
    report = yield
    log = item.stash.get(_LOG, None)
    if log is not None and report.failed:
        report.sections.append(("outplan worker's log", log()))
    return report


@pytest.fixture(scope="session")
def outplan_servers(request: pytest.FixtureRequest) -> Iterator["Servers"]:
    """Start RabbitMQ and MongoDB once per run, also under xdist."""
    _require_extra()
    folder = getattr(request.config, "workerinput", {}).get(_RUN_FOLDER)
    if folder is None:
        yield from _start("auto")
    else:
        from outplan.testing.servers.shared import shared_servers  # noqa: PLC0415

        yield _fail_without(lambda: shared_servers(Path(folder)))


@pytest.fixture(scope="session")
def outplan_own_servers(request: pytest.FixtureRequest) -> Iterator["Servers"]:
    """Start RabbitMQ and MongoDB for this process alone: tests may stop them."""
    if not hasattr(request.config, "workerinput"):
        servers: Servers = request.getfixturevalue("outplan_servers")
        if servers.mode != "urls":
            yield servers
            return
    yield from _start("own")


@pytest.fixture
def outplan_service(request: pytest.FixtureRequest) -> "AsyncService":
    """Start a worker for the test, with calls to await; in memory by --outplan-mode=memory."""
    return _async_service(request, _backend(request))


@pytest.fixture
def outplan_service_sync(request: pytest.FixtureRequest) -> "SyncService":
    """Start a worker for the test, with blocking calls; in memory by --outplan-mode=memory."""
    return _sync_service(request, _backend(request))


@pytest.fixture
def outplan_memory(request: pytest.FixtureRequest) -> "AsyncService":
    """Run the service in memory, with calls to await."""
    return _async_service(request, request.getfixturevalue("_outplan_memory"))


@pytest.fixture
def outplan_memory_sync(request: pytest.FixtureRequest) -> "SyncService":
    """Run the service in memory, with blocking calls."""
    return _sync_service(request, request.getfixturevalue("_outplan_memory"))


@pytest.fixture
def outplan_place(request: pytest.FixtureRequest) -> "Deployment":
    """Return the URLs, prefix and database of the test's worker, for the program under test."""
    if _mode(request.config) == "memory":
        text = "outplan_place needs servers, and memory mode has none: use --outplan-mode=servers"
        pytest.fail(text, False)
    service: LiveService = request.getfixturevalue("_outplan_live")
    return service.deployment


@pytest.fixture(scope="session")
def _outplan_portal() -> Iterator["Portal"]:
    _require_extra()
    from outplan.client.portal import open_portal  # noqa: PLC0415

    with open_portal("outplan-harness", "test harness") as portal:
        yield portal


@pytest.fixture
def _outplan_live(
    request: pytest.FixtureRequest, _outplan_portal: "Portal"
) -> Iterator["LiveService"]:
    from outplan.testing.live import live_service  # noqa: PLC0415

    own = request.node.get_closest_marker(_OWN_SERVERS) is not None
    servers = request.getfixturevalue("outplan_own_servers" if own else "outplan_servers")
    with _outplan_portal.open(live_service(servers)) as service:
        request.node.stash[_LOG] = service.log
        yield service
        del request.node.stash[_LOG]


@pytest.fixture
def _outplan_memory(_outplan_portal: "Portal") -> Iterator["Backend"]:
    from outplan.testing.memory import memory_service  # noqa: PLC0415

    with _outplan_portal.open(memory_service()) as service:
        yield service.backend


def _require_extra() -> None:
    """Fail the test if only the base, or another extra, is installed."""
    if find_spec("testcontainers") is None:
        text = "the fixtures of outplan need an extra: pip install 'outplan-service[testing]'"
        pytest.fail(text, pytrace=False)


def _mode(config: pytest.Config) -> str:
    return str(config.getoption("outplan_mode") or config.getini("outplan_mode"))


def _backend(request: pytest.FixtureRequest) -> "Backend":
    if _mode(request.config) == "memory":
        backend: Backend = request.getfixturevalue("_outplan_memory")
        return backend
    service: LiveService = request.getfixturevalue("_outplan_live")
    return service.backend


def _async_service(request: pytest.FixtureRequest, backend: "Backend") -> "AsyncService":
    from outplan.testing.harness import AsyncService  # noqa: PLC0415

    return AsyncService(backend, request.getfixturevalue("_outplan_portal"))


def _sync_service(request: pytest.FixtureRequest, backend: "Backend") -> "SyncService":
    from outplan.testing.harness import SyncService  # noqa: PLC0415

    return SyncService(backend, request.getfixturevalue("_outplan_portal"))


def _start(mode: "Mode") -> Iterator["Servers"]:
    from outplan.testing.servers import start_servers  # noqa: PLC0415

    with ExitStack() as stack:
        yield _fail_without(lambda: stack.enter_context(start_servers(mode)))


def _fail_without(open_servers: "Callable[[], Servers]") -> "Servers":
    """Return the servers, or fail the test with only the text of what to do."""
    from outplan.testing.errors import ServersUnavailable  # noqa: PLC0415

    try:
        return open_servers()
    except ServersUnavailable as error:
        text = str(error)
    # Outside the except block: pytest would show the one error as the other's context.
    pytest.fail(text, pytrace=False)
