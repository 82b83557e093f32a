"""The client imports only what a base install has."""

import subprocess
import sys

# What the extras bring; a base install has none of it.
NOT_IN_BASE = {
    "aio_pika", "aiohttp", "motor", "opentelemetry", "prometheus_client", "pydantic_settings",
    "pymongo", "rich", "structlog", "typer", "uvloop",
}  # fmt: skip


def test_the_client_imports_nothing_that_only_an_extra_brings() -> None:
    program = "import sys, outplan.client, outplan.client.dialing; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "outplan" in imported
    assert imported.isdisjoint(NOT_IN_BASE)


def test_the_client_imports_neither_the_workers_domain_nor_its_store() -> None:
    program = "import sys, outplan.client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    rooms = {name for name in done.stdout.split() if name.startswith("outplan.")}
    for room in ("domain", "worker", "mongodb", "operations", "cli", "testing", "settings"):
        assert f"outplan.{room}" not in rooms
