"""Check the installed wheel: ``python -I wheel_smoke.py EXTRA``.

`scripts/wheel-test` runs it in an environment that has nothing but the wheel with that extra.
``base`` stands for no extra.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import outplan
from outplan.client import OutplanClient, Unreachable
from outplan.contract.schemas import is_valid, list_schema_names, read_schema_text

PYTHON: Final = sys.executable
OUTPLAN: Final = str(Path(sys.executable).with_name("outplan"))
NO_BROKER: Final = "amqp://127.0.0.1:1/"
NO_SERVERS: Final = {"OUTPLAN_AMQP_URL": NO_BROKER, "OUTPLAN_MONGO_URL": "mongodb://127.0.0.1:1/"}
# The smallest test of a project that uses the plugin.
THREE_LINES: Final = """\
def test_dialers_hear_of_a_new_outplan(outplan_service_sync):
    created = outplan_service_sync.create(customer_id="5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11", name="evenings", source={"type": "tel", "target": "+15559876543"})
    assert outplan_service_sync.next_event("outplan_created").data == created.outplan
"""  # noqa: E501
CREATE: Final[dict[str, Any]] = {
    "customer_id": "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11",
    "name": "evenings",
    "source": {"type": "tel", "target": "+15559876543"},
}


def run(*command: str, exit_code: int = 0, **environment: str) -> str:
    """Run a program, require its exit code, and return its output."""
    finished = subprocess.run(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == exit_code, f"{command}: {finished.returncode}\n{finished.stdout}"
    return finished.stdout


def check_package() -> None:
    folder = files("outplan")
    assert "site-packages" in str(outplan.__file__), outplan.__file__
    assert folder.joinpath("py.typed").is_file(), "type checkers would not read the types"


def check_schemas() -> None:
    assert {"outplan", "outplan_create", "outplan_updated", "reply"} <= set(list_schema_names())
    assert read_schema_text("outplan").startswith(b"{")
    assert is_valid("outplan_create", CREATE)
    assert not is_valid("outplan_create", CREATE | {"dial_timeout": 30})


def check_unreachable_broker() -> None:
    async def publish() -> None:
        async with OutplanClient(NO_BROKER, timeout=1) as client:
            await client.create(**CREATE)

    try:
        asyncio.run(publish())
    except Unreachable:
        return
    raise AssertionError("published without a broker")


def require_missing_extra(extra: str, *command: str) -> None:
    """Require that the command names the extra in one line, with exit code 2."""
    (line,) = run(OUTPLAN, *command, exit_code=2).splitlines()
    assert line.startswith("outplan: "), line
    assert f"pip install 'outplan-service[{extra}]'" in line, line


def check_no_command_line() -> None:
    require_missing_extra("cli", "--help")
    require_missing_extra("cli", "schema")
    require_missing_extra("cli", "publish", "--help")
    require_missing_extra("worker", "run")
    require_missing_extra("worker", "check")
    require_missing_extra("testing", "demo")
    (line,) = run(PYTHON, "-m", "outplan", "run", exit_code=2).splitlines()
    assert "outplan-service[worker]" in line, line


def check_command_line() -> None:
    assert run(OUTPLAN, "--version").strip() == version("outplan-service")
    assert "publish" in run(OUTPLAN, "--help")
    assert "outplan_create" in run(OUTPLAN, "schema")
    assert json.loads(run(OUTPLAN, "schema", "outplan"))["title"] == "Outplan"
    assert "create" in run(OUTPLAN, "publish", "--help")
    assert "RabbitMQ" in run(OUTPLAN, "rejected", "list", exit_code=1, **NO_SERVERS)


def check_no_worker() -> None:
    require_missing_extra("worker", "run")
    require_missing_extra("worker", "check")


def check_no_harness() -> None:
    require_missing_extra("testing", "demo")
    require_missing_extra("testing", "sandbox")


def check_worker() -> None:
    """Require exit code 2 for a bad setting, and "not ready" while there is no broker."""
    assert "OUTPLAN_PARTITIONS" in run(OUTPLAN, "run", exit_code=2, OUTPLAN_PARTITIONS="0")
    assert "rabbitmq" in run(OUTPLAN, "check", exit_code=1, **NO_SERVERS)
    port = find_free_port()
    environment = os.environ | NO_SERVERS | {"OUTPLAN_HTTP_PORT": str(port)}
    with subprocess.Popen([OUTPLAN, "run"], env=environment) as worker:
        try:
            status, body = wait_for_answer(worker, port, "/readyz")
            assert (status, body["status"]) == (503, "waiting"), body
            assert "broker" in body["troubles"], body
        finally:
            worker.terminate()
    assert worker.returncode == 0, worker.returncode


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_answer(
    worker: "subprocess.Popen[bytes]", port: int, path: str
) -> tuple[int, dict[str, Any]]:
    """Ask until the worker listens; give up after a minute or when it ends."""
    deadline = time.monotonic() + 60
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except OSError:
            assert worker.poll() is None, f"outplan run ended with {worker.returncode}"
            assert time.monotonic() < deadline, "outplan run does not listen"
            time.sleep(0.1)
        finally:
            connection.close()


def check_test_in_memory() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_dialer.py").write_text(THREE_LINES)
        pytest = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--outplan-mode=memory")
        assert "1 passed" in run(*pytest, folder, OUTPLAN_TEST_SERVERS="none")


def check_trace_headers() -> None:
    from opentelemetry import trace  # noqa: PLC0415 - only with the extra otel

    from outplan.client.tracing import trace_headers  # noqa: PLC0415 - see above

    assert trace_headers() == {}
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert trace_headers() == {"traceparent": f"00-{0xABC:032x}-{0xDEF:016x}-01"}


def check_no_trace_headers() -> None:
    from outplan.client.tracing import trace_headers  # noqa: PLC0415 - see above

    assert trace_headers() == {}


def check_demo() -> None:
    """Play the demo, which fails unless each of its commands has the outcome it should."""
    run(OUTPLAN, "demo")


CHECKS: Final[dict[str, tuple[Callable[[], None], ...]]] = {
    "base": (check_no_command_line, check_no_trace_headers),
    "cli": (check_command_line, check_no_worker, check_no_harness),
    "worker": (check_command_line, check_worker, check_no_harness),
    "testing": (check_worker, check_test_in_memory),
    "otel": (check_no_command_line, check_trace_headers),
    "all": (check_command_line, check_test_in_memory, check_trace_headers, check_demo),
}


if __name__ == "__main__":
    extra = sys.argv[1]
    for check in (check_package, check_schemas, check_unreachable_broker, *CHECKS[extra]):
        check()
