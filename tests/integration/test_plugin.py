"""Test the pytest plugin in users' suites, each in a pytest run of its own."""

import sys
from pathlib import Path
from subprocess import DEVNULL

import pytest

from outplan import testing
from outplan.testing.servers import AMQP_VARIABLE, MODE_VARIABLE, MONGO_VARIABLE, Servers
from tests.support.leak_check import find_processes_with, wait_until

pytest_plugins = ["pytester"]

START_SECONDS = 100.0  # two workers start servers and a worker process each

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

A_CREATE = """
import os
from pathlib import Path
from threading import Event
import pytest
from outplan.testing import NotControllable
NEW = {
    "customer_id": "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11",
    "name": "evenings",
    "source": {"type": "tel", "target": "+15559876543"},
}
def told(name, text):
    Path(name).with_suffix(".part").write_text(text)
    Path(name).with_suffix(".part").rename(name)
"""

ALL_KINDS = """
def test_sync(outplan_service_sync):
    result = outplan_service_sync.create(**NEW)
    assert outplan_service_sync.next_event().data == result.outplan

async def test_async(outplan_service):
    result = await outplan_service.create(**NEW)
    assert (await outplan_service.next_event()).data == result.outplan

@pytest.mark.asyncio(loop_scope="module")
async def test_async_in_another_loop(outplan_service):
    result = await outplan_service.create(**NEW)
    assert (await outplan_service.next_event()).data == result.outplan

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_anyio(anyio_backend, outplan_service):
    result = await outplan_service.create(**NEW)
    assert (await outplan_service.next_event()).data == result.outplan
"""


@pytest.fixture
def suite(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> pytest.Pytester:
    """Make a user's suite with its own temporary folder and no servers by URL."""
    for name in (AMQP_VARIABLE, MONGO_VARIABLE, MODE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    pytester.makeini(INI)
    return pytester


@pytest.fixture
def suite_with_servers(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, servers: Servers
) -> pytest.Pytester:
    """Make a user's suite that is given servers by URL."""
    monkeypatch.setenv(AMQP_VARIABLE, servers.rabbitmq.url)
    monkeypatch.setenv(MONGO_VARIABLE, servers.mongodb.url)
    return suite


def run_suite(suite: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(A_CREATE + tests)
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *options)


def assert_nothing_remains(tmp_path: Path) -> None:
    """Wait until no process and no file remains."""
    wait_until(lambda: not any((tmp_path / "tmp").iterdir()))
    wait_until(lambda: not find_processes_with(f"TMPDIR={tmp_path / 'tmp'}"))


def test_fixtures_serve_sync_asyncio_and_anyio_tests_and_leave_nothing(
    suite_with_servers: pytest.Pytester, tmp_path: Path
) -> None:
    run_suite(suite_with_servers, ALL_KINDS).assert_outcomes(passed=4)
    assert_nothing_remains(tmp_path)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_the_same_tests_pass_in_memory_without_servers(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "none")
    if how == "ini":
        suite.makeini(f"{INI}outplan_mode = memory\n")
    options = ["--outplan-mode=memory"] if how == "option" else []
    run_suite(suite, ALL_KINDS, *options).assert_outcomes(passed=4)


def test_outplan_place_fails_in_memory_and_says_why(suite: pytest.Pytester) -> None:
    result = run_suite(suite, "def test_place(outplan_place): ...", "--outplan-mode=memory")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["outplan_place needs servers, and memory mode has none: use --outplan-mode=servers*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_an_unknown_mode_is_refused(suite: pytest.Pytester) -> None:
    suite.makeini(f"{INI}outplan_mode = memori\n")
    result = run_suite(suite, ALL_KINDS)
    result.stderr.fnmatch_lines(["ERROR: outplan_mode is 'memori', not servers or memory"])


def test_memory_and_servers_can_be_used_in_one_test(suite_with_servers: pytest.Pytester) -> None:
    tests = """
def test_both(outplan_memory_sync, outplan_service_sync, outplan_place):
    assert outplan_memory_sync.create(**NEW).version == 1
    assert not outplan_service_sync.documents()
    assert outplan_place.amqp_url and outplan_place.prefix == outplan_place.database

async def test_one_worker_for_both_ways_to_call_it(outplan_service, outplan_service_sync):
    await outplan_service.create(**NEW)
    assert len(outplan_service_sync.documents()) == 1

async def test_awaited_memory(outplan_memory):
    assert (await outplan_memory.create(**NEW)).version == 1
"""
    run_suite(suite_with_servers, tests).assert_outcomes(passed=3)


def test_a_failing_test_reports_the_end_of_its_workers_log(
    suite_with_servers: pytest.Pytester,
) -> None:
    tests = """
def test_fails(outplan_service_sync):
    outplan_service_sync.publish("outplan_create", b"{", message_id="nonsense")
    outplan_service_sync.create(**NEW)  # handled after the nonsense
    assert not outplan_service_sync.rejected()

def test_passes(outplan_service_sync):
    outplan_service_sync.create(**NEW)
"""
    result = run_suite(suite_with_servers, tests)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*- outplan worker's log -*", '*"ready"*', '*"command_id": "nonsense"*']
    )
    assert result.stdout.str().count("outplan worker's log") == 1


@pytest.mark.parametrize("options", [[], ["-n1"]], ids=["alone", "xdist"])
def test_without_servers_the_error_says_what_to_do(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///var/empty/no-daemon.sock")
    monkeypatch.setenv(MODE_VARIABLE, "docker")
    result = run_suite(suite, ALL_KINDS, *options)
    result.assert_outcomes(errors=4)
    result.stdout.re_match_lines(["(?i).*no docker.*"])
    for more_than_that in ("*Traceback*", "*another exception occurred*"):
        result.stdout.no_fnmatch_line(more_than_that)
    assert_nothing_remains(tmp_path)


@pytest.mark.parametrize("options", [[], ["-n1"], ["--outplan-mode=memory"]])
def test_without_the_extra_the_error_names_it_and_other_tests_pass(
    suite: pytest.Pytester, options: list[str]
) -> None:
    suite.makeconftest("import sys; sys.modules['testcontainers'] = None")
    tests = ALL_KINDS + "def test_other(): ..."
    result = run_suite(suite, tests, *options)
    result.assert_outcomes(errors=4, passed=1)
    result.stdout.fnmatch_lines(["*pip install 'outplan-service?testing?'"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_test_can_stop_and_start_the_broker(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "processes")
    tests = """
def test_outage(outplan_service_sync):
    outplan_service_sync.pause_worker()
    sent = outplan_service_sync.publish("outplan_create", NEW)
    outplan_service_sync.stop_broker()
    outplan_service_sync.resume_worker()
    outplan_service_sync.start_broker()
    assert outplan_service_sync.next_event(within=60).id == sent
"""
    run_suite(suite, tests).assert_outcomes(passed=1)
    assert_nothing_remains(tmp_path)


def test_under_xdist_only_own_servers_can_be_stopped(
    suite_with_servers: pytest.Pytester, tmp_path: Path
) -> None:
    tests = """
def test_shared(outplan_service_sync, outplan_servers):
    with pytest.raises(NotControllable, match="outplan_own_servers"):
        outplan_service_sync.stop_broker()
    assert outplan_servers.rabbitmq.url == os.environ["OUTPLAN_TEST_AMQP_URL"]

@pytest.mark.outplan_own_servers
def test_own(outplan_service_sync, outplan_place, outplan_servers):
    assert outplan_place.amqp_url != outplan_servers.rabbitmq.url
    outplan_service_sync.stop_broker()

@pytest.mark.outplan_own_servers
def test_that_comes_after_finds_it_running(outplan_service_sync):
    assert outplan_service_sync.create(**NEW).version == 1
"""
    run_suite(suite_with_servers, tests, "-n1").assert_outcomes(passed=3)
    assert_nothing_remains(tmp_path)


def test_xdist_starts_servers_once_and_a_killed_run_leaves_nothing(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, "processes")
    tests = """
@pytest.mark.parametrize("number", [0, 1])
def test_that_hangs(outplan_service_sync, outplan_place, number):
    told(f"{number}.url", outplan_place.amqp_url)
    Event().wait()
"""
    suite.makepyfile(A_CREATE + tests)
    command = [sys.executable, "-m", "pytest", "-n2", "-p", "no:cacheprovider"]
    run = suite.popen(command, stdout=DEVNULL, stderr=DEVNULL)
    urls = [suite.path / f"{number}.url" for number in (0, 1)]
    try:
        wait_until(lambda: all(url.exists() for url in urls), START_SECONDS)
    finally:
        run.kill()
        run.wait()

    assert urls[0].read_text() == urls[1].read_text()
    assert_nothing_remains(tmp_path)


def test_loading_the_plugin_imports_no_other_module(suite: pytest.Pytester) -> None:
    program = """
import sys
import outplan.testing.plugin
print(sorted(name for name in sys.modules if name.startswith("outplan")))
print({"aio_pika", "pymongo", "pydantic", "xdist", "docker"} & sys.modules.keys())
"""
    told = suite.run(sys.executable, "-c", program)
    assert told.outlines == ["['outplan', 'outplan.testing', 'outplan.testing.plugin']", "set()"]


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(testing, name).__name__ == name


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match=r"'outplan\.testing' has no attribute 'magic'"):
        getattr(testing, "magic")  # noqa: B009 - type checkers know that it is not there
