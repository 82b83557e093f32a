"""Test that the client imports only packages of a base install and only its own layers."""

import subprocess
import sys

# Packages of the extras.
NOT_IN_BASE = {
    "aio_pika", "aiohttp", "motor", "opentelemetry", "prometheus_client", "pydantic_settings",
    "pymongo", "rich", "structlog", "typer", "uvloop",
}  # fmt: skip


def list_imported(statement: str) -> list[str]:
    """Run an import statement in a new interpreter, and list the modules that it loads."""
    program = f"import sys; {statement}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return process.stdout.split()


def test_the_client_imports_no_package_of_an_extra() -> None:
    modules = list_imported("import outplan.client, outplan.client.dialing")
    imported = {name.partition(".")[0] for name in modules}
    assert "outplan" in imported
    assert imported.isdisjoint(NOT_IN_BASE)


def test_the_client_imports_no_other_layer() -> None:
    modules = list_imported("import outplan.client")
    for layer in ("domain", "worker", "mongodb", "operations", "cli", "testing", "settings"):
        assert f"outplan.{layer}" not in modules
