"""Run the command line, as ``outplan`` or as ``python -m outplan``.

This module imports nothing beyond the base install, so that it can name the extra that a command
needs.
"""

import sys
from typing import Final

# Import names of the packages that the extras install.
_OPTIONAL: Final = frozenset(
    {
        "aiohttp", "bson", "click", "motor", "orjson", "pika", "prometheus_client",
        "pydantic_settings", "pymongo", "pytest", "rich", "structlog", "testcontainers", "typer",
        "uvloop",
    }
)  # fmt: skip
_EXTRAS: Final = {"run": "worker", "check": "worker", "demo": "testing", "sandbox": "testing"}


def main() -> None:
    """Run the command in ``sys.argv``; exit with code 2 where its extra is not installed."""
    try:
        from outplan.cli import app  # noqa: PLC0415 - it needs the extra cli

        app.main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _OPTIONAL:
            raise
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        print(_name_extra(command, missing), file=sys.stderr)
        sys.exit(2)


def _name_extra(command: str, missing: str) -> str:
    needs = f"{command!r} needs" if command else "the command line needs"
    extra = _EXTRAS.get(command, "cli")
    return (
        f"outplan: {needs} the module {missing}, which is not installed; "
        f"run: pip install 'outplan-service[{extra}]'"
    )


if __name__ == "__main__":
    main()
