"""``python -I wheel_smoke.py CHECKOUT``: the wheel that this interpreter has installed works.

Run by ``make wheel-test``, from a folder and with an environment where no checkout is at hand.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import outplan
from outplan.contract.schemas import is_valid, schema_names, schema_text
from outplan.testing.demo import EXAMPLE

SCRIPTS = Path(sys.executable).parent


def installed_apart_from(checkout: Path) -> None:
    package = Path(outplan.__file__).resolve()
    assert checkout.resolve() not in package.parents, f"{package} is the checkout's"
    assert (package.parent / "py.typed").is_file(), "type checkers would not read the types"


def schemas_are_inside() -> None:
    assert {"outplan", "outplan_create", "outplan_updated", "reply"} <= set(schema_names())
    assert schema_text("outplan").startswith(b"{")
    assert is_valid("outplan_create", EXAMPLE)
    assert not is_valid("outplan_create", EXAMPLE | {"dial_timeout": 30})


def command_line_says_its_version() -> None:
    said = subprocess.check_output([SCRIPTS / "outplan", "--version"], text=True).strip()
    assert said == version("outplan-service"), said


def commands_go_through() -> None:
    """The demo fails unless each of its commands comes out as it should."""
    told = subprocess.run(
        [SCRIPTS / "outplan", "demo"], check=False, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr


if __name__ == "__main__":
    installed_apart_from(Path(sys.argv[1]))
    schemas_are_inside()
    command_line_says_its_version()
    commands_go_through()
    print(f"the wheel of outplan-service {version('outplan-service')} works")
