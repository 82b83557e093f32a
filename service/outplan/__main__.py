"""Run the command line, as ``outplan`` or as ``python -m outplan``.

This module imports nothing beyond the base install, so that it can name the extra that a command
needs.
"""

import sys
from typing import Final

_EXTRAS: Final = {
    "run": "worker", "check": "worker", "partitions": "worker", "demo": "testing",
    "sandbox": "testing",
}  # fmt: skip


def main() -> None:
    """Run the command in ``sys.argv``; exit with code 2 if its extra is not installed."""
    try:
        from outplan.cli import app  # noqa: PLC0415 - it needs the extra cli

        app.main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "outplan"):  # a defect of the package, not a missing extra
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
