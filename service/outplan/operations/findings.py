"""What a check has found: one point each, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "problem", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One point: how it is, in words, and what to do where it is not as it should be."""

    point: str
    state: State
    text: str
    remedy: str = ""


def ok(point: str, text: str) -> Finding:
    """Find that all is well."""
    return Finding(point, "ok", text)


def problem(point: str, text: str, remedy: str) -> Finding:
    """Find that something is wrong."""
    return Finding(point, "problem", text, remedy)


def not_checked(points: Sequence[str], why: str) -> list[Finding]:
    """Say of each that it could not be found out."""
    return [Finding(point, "not checked", why) for point in points]
