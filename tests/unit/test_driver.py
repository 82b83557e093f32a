"""Which pairs of MongoDB's drivers were tested upstream, and that one of them is installed."""

import pytest

from outplan.mongodb import driver


@pytest.mark.parametrize(
    ("name", "pymongo", "is_tested"),
    [
        ("motor", "4.15.5", True),
        ("motor", "4.17.0", True),
        ("motor", "4.17.3", True),
        ("motor", "4.18.0", False),
        ("motor", "4.20.1", False),
        ("motor", "5.0.0", False),
        ("pymongo", "4.20.1", True),
    ],
)
def test_motor_with_a_later_pymongo_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, pymongo: str, is_tested: bool
) -> None:
    monkeypatch.setattr(driver, "version", {"motor": "3.7.1", "pymongo": pymongo}.__getitem__)
    found = driver.find_untested_pair(name)
    assert (found is None) is is_tested
    assert is_tested or pymongo in str(found)


def test_the_installed_pair_was_tested() -> None:
    assert driver.find_untested_pair("motor") is None
