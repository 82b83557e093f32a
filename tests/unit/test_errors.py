"""The tree in the docstring is the tree of the classes."""

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


def drawn() -> Iterator[tuple[str, str, str]]:
    """Name, parent and note of each class in the picture."""
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^((?:│   |    )*(?:├── |└── )?)(\w+)(?: {2,}(.*))?$", line)
        if found and (found[1] or found[2] == "OutplanError"):
            depth = len(found[1]) // 4
            branch[depth:] = [found[2]]
            yield found[2], branch[depth - 1] if depth else "Exception", found[3] or ""


def test_the_picture_has_every_class_under_its_parent() -> None:
    pictured = {name: parent for name, parent, _ in drawn()}
    assert pictured == {each.__name__: each.__base__ and each.__base__.__name__ for each in CLASSES}


def test_the_picture_tells_each_exit_code() -> None:
    codes = {name: note for name, _, note in drawn() if note.startswith("exit ")}
    fatal = {each.__name__: f"exit {each.exit_code}" for each in CLASSES
             if issubclass(each, Fatal) and each is not Fatal}  # fmt: skip
    assert codes == fatal


def test_every_class_is_explained_in_the_picture() -> None:
    assert [name for name, _, note in drawn() if not note] == ["OutplanError"]


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_every_docstring_says_when_it_is_raised(error: type[Exception]) -> None:
    assert issubclass(error, OutplanError)
    assert error is OutplanError or (error.__doc__ or "").startswith("Raised when ")
