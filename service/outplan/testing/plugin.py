"""The pytest plugin: fixtures that have a worker, or its like in memory.

Every pytest run of whoever has the package installed loads it: so it imports nothing else of the
service, nor of the extra ``testing``, before a test asks for a fixture.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from outplan.testing.deployment import Deployment
    from outplan.testing.facades import AsyncService, SyncService
    from outplan.testing.harness import OutplanService
    from outplan.testing.live import LiveService
    from outplan.testing.portal import Portal
    from outplan.testing.servers import Mode, Servers

_MODES: Final = ("servers", "memory")
# aiormq drops the coroutine that would close a connection which the broker closed first.
_HARMLESS: Final = (
    "coroutine 'Connection.close' was never awaited:RuntimeWarning",
    "Exception ignored in. <coroutine object Connection.close:"
    "pytest.PytestUnraisableExceptionWarning",
)
_OWN: Final = "outplan_own_servers"
_RUN: Final = "outplan_run"  # where xdist's first process hands a worker the run's folder
_LOG: Final = pytest.StashKey[Callable[[], str]]()
_FOLDER: Final = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--outplan-mode`` and its twin for the ini file."""
    says = "what outplan_service is: a worker on real servers, or its like in memory"
    group = parser.getgroup("outplan")
    group.addoption("--outplan-mode", choices=_MODES, help=f"{says} (default: servers)")
    parser.addini("outplan_mode", f"{says}: {' or '.join(_MODES)}", default="servers")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; see to the warnings of a stopped broker; refuse a mode there is not."""
    config.addinivalue_line(
        "markers", f"{_OWN}: outplan_service is on servers that the test may stop"
    )
    for about_aiormq in _HARMLESS:
        config.addinivalue_line("filterwarnings", f"ignore:{about_aiormq}")
    if _mode(config) not in _MODES:
        raise pytest.UsageError(f"outplan_mode is {_mode(config)!r}, not {' or '.join(_MODES)}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist's which run it belongs to; called in the run's first process."""
    if sys.platform == "win32":
        return
    config: pytest.Config = node.config
    if _FOLDER not in config.stash:
        from outplan.testing.run_lock import open_run  # noqa: PLC0415 - Windows has not what it needs

        stack = ExitStack()
        config.add_cleanup(stack.close)
        config.stash[_FOLDER] = stack.enter_context(open_run())
    node.workerinput[_RUN] = str(config.stash[_FOLDER])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a failing test's report end with the end of its worker's log."""
    report = yield
    log = item.stash.get(_LOG, None)
    if log is not None and report.failed:
        report.sections.append(("outplan worker's log", log()))
    return report


@pytest.fixture(scope="session")
def outplan_servers(request: pytest.FixtureRequest) -> Iterator["Servers"]:
    """RabbitMQ and MongoDB, started once per run, also under xdist."""
    folder = getattr(request.config, "workerinput", {}).get(_RUN)
    if folder is None:
        yield from _started("auto")
    else:
        from outplan.testing.servers.shared import shared_servers  # noqa: PLC0415 - see above

        yield _had(lambda: shared_servers(Path(folder)))


@pytest.fixture(scope="session")
def outplan_own_servers(request: pytest.FixtureRequest) -> Iterator["Servers"]:
    """Servers that only this process' tests use: they may be stopped."""
    if not hasattr(request.config, "workerinput"):
        servers: Servers = request.getfixturevalue("outplan_servers")
        if servers.mode != "urls":
            yield servers
            return
    yield from _started("own")


@pytest.fixture
def outplan_service(request: pytest.FixtureRequest) -> "AsyncService":
    """A worker of the test's own, its calls to be awaited; in memory if so wanted."""
    from outplan.testing.facades import AsyncService  # noqa: PLC0415 - see above

    return AsyncService(_service(request), _portal(request))


@pytest.fixture
def outplan_service_sync(request: pytest.FixtureRequest) -> "SyncService":
    """A worker of the test's own, its calls blocking; in memory if so wanted."""
    from outplan.testing.facades import SyncService  # noqa: PLC0415 - see above

    return SyncService(_service(request), _portal(request))


@pytest.fixture
def outplan_memory(request: pytest.FixtureRequest) -> "AsyncService":
    """The service in memory, its calls to be awaited."""
    from outplan.testing.facades import AsyncService  # noqa: PLC0415 - see above

    return AsyncService(request.getfixturevalue("_outplan_memory"), _portal(request))


@pytest.fixture
def outplan_memory_sync(request: pytest.FixtureRequest) -> "SyncService":
    """The service in memory, its calls blocking."""
    from outplan.testing.facades import SyncService  # noqa: PLC0415 - see above

    return SyncService(request.getfixturevalue("_outplan_memory"), _portal(request))


@pytest.fixture
def outplan_place(request: pytest.FixtureRequest) -> "Deployment":
    """Where the test's worker is: what the program under test has to be told."""
    if _mode(request.config) == "memory":
        pytest.fail("outplan_place needs servers: in memory there are none to connect to", False)
    deployment: Deployment = request.getfixturevalue("_outplan_live").deployment
    return deployment


@pytest.fixture(scope="session")
def _outplan_portal() -> Iterator["Portal"]:
    from outplan.testing.portal import open_portal  # noqa: PLC0415 - see above

    with open_portal() as portal:
        yield portal


@pytest.fixture
def _outplan_live(request: pytest.FixtureRequest) -> Iterator["LiveService"]:
    from outplan.testing.live import live_service  # noqa: PLC0415 - see above

    own = request.node.get_closest_marker(_OWN) is not None
    servers = request.getfixturevalue("outplan_own_servers" if own else "outplan_servers")
    with _portal(request).opened(live_service(servers)) as service:
        request.node.stash[_LOG] = service.log
        yield service
        del request.node.stash[_LOG]


@pytest.fixture
def _outplan_memory(request: pytest.FixtureRequest) -> Iterator["OutplanService"]:
    from outplan.testing.memory import memory_service  # noqa: PLC0415 - see above

    with _portal(request).opened(memory_service()) as service:
        yield service


def _mode(config: pytest.Config) -> str:
    return str(config.getoption("outplan_mode") or config.getini("outplan_mode"))


def _service(request: pytest.FixtureRequest) -> "OutplanService":
    fixture = "_outplan_memory" if _mode(request.config) == "memory" else "_outplan_live"
    service: OutplanService = request.getfixturevalue(fixture)
    return service


def _portal(request: pytest.FixtureRequest) -> "Portal":
    portal: Portal = request.getfixturevalue("_outplan_portal")
    return portal


def _started(mode: "Mode") -> Iterator["Servers"]:
    from outplan.testing.servers import start_servers  # noqa: PLC0415 - see above

    with ExitStack() as stack:
        yield _had(lambda: stack.enter_context(start_servers(mode)))


def _had(servers: "Callable[[], Servers]") -> "Servers":
    """The servers, or the test's failure with nothing but what to do about it."""
    from outplan.testing.errors import ServersUnavailable  # noqa: PLC0415 - see above

    try:
        return servers()
    except ServersUnavailable as error:
        complaint = str(error)
    # Not from in there: pytest would show the one error on top of the other.
    pytest.fail(complaint, pytrace=False)
