"""Name the installed MongoDB driver, and tell a pair of versions that nobody has tested."""

from importlib.metadata import version
from typing import Final

# motor 3.7.1 is the last release, and this is the last PyMongo that its tests ran on (ADR 0017).
_LAST_TESTED: Final = (4, 17)


def describe_driver(driver: str) -> str:
    """Return the driver of a worker with this OUTPLAN_MONGO_DRIVER, with its version."""
    pymongo = f"PyMongo {version('pymongo')}"
    return f"motor {version('motor')} on {pymongo}" if driver == "motor" else pymongo


def find_untested_pair(driver: str) -> str | None:
    """Return what is wrong with the installed versions; None for a pair that was tested."""
    installed = version("pymongo")
    if driver != "motor" or tuple(int(part) for part in installed.split(".")[:2]) <= _LAST_TESTED:
        return None
    last = ".".join(map(str, _LAST_TESTED))
    return f"motor was last tested with PyMongo {last}, and {installed} is installed"
