"""The tree in the docstring of errors.py is the tree of its classes."""

import inspect
import re
from collections.abc import Iterator

import pytest

from outplan import errors
from outplan.errors import Fatal, OutplanError

CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if each.__module__ == errors.__name__
]


def parse_tree() -> Iterator[tuple[str, str, str]]:
    """Yield each class of the tree: its name, parent and note."""
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^((?:│   |    )*(?:├── |└── )?)(\w+)(?: {2,}(.*))?$", line)
        if found and (found[1] or found[2] == "OutplanError"):
            depth = len(found[1]) // 4
            branch[depth:] = [found[2]]
            yield found[2], branch[depth - 1] if depth else "Exception", found[3] or ""


def test_the_tree_has_every_class_under_its_parent() -> None:
    pictured = {name: parent for name, parent, _ in parse_tree()}
    assert pictured == {each.__name__: each.__base__ and each.__base__.__name__ for each in CLASSES}


def test_the_tree_tells_each_exit_code() -> None:
    codes = {name: note for name, _, note in parse_tree() if note.startswith("exit ")}
    fatal = {each.__name__: f"exit {each.exit_code}" for each in CLASSES
             if issubclass(each, Fatal) and each is not Fatal}  # fmt: skip
    assert codes == fatal


def test_every_class_is_explained_in_the_tree() -> None:
    assert [name for name, _, note in parse_tree() if not note] == ["OutplanError"]


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_every_docstring_starts_with_raised_when(error: type[Exception]) -> None:
    assert issubclass(error, OutplanError)
    assert error is OutplanError or (error.__doc__ or "").startswith("Raised when ")
