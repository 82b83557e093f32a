"""Describe what a check found and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Report one point: its state, the details, and for a warning or a problem what to do."""

    point: str
    state: State
    text: str
    remedy: str = ""


def ok(point: str, text: str) -> Finding:
    """Report that a point is in order."""
    return Finding(point, "ok", text)


def warning(point: str, text: str, remedy: str) -> Finding:
    """Report what a worker runs with, but an operator should see to."""
    return Finding(point, "warning", text, remedy)


def problem(point: str, text: str, remedy: str) -> Finding:
    """Report a problem and its remedy."""
    return Finding(point, "problem", text, remedy)


def not_checked(points: Sequence[str], why: str) -> list[Finding]:
    """Report that points could not be checked, and why."""
    return [Finding(point, "not checked", why) for point in points]
