"""Check what the service knows of RabbitMQ's versions."""

import pytest

from outplan.rabbitmq.versions import find_known_defect, parse_version


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("3.10.8", (3, 10, 8)),
        ("4.3.0-rc.1", (4, 3, 0)),
        ("4.3.6+12.gabcdef", (4, 3, 6)),
        ("4.10", (4, 10)),
        ("", ()),
        ("unknown", ()),
    ],
)
def test_a_version_is_read_up_to_its_suffix(version: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(version) == numbers


@pytest.mark.parametrize("version", ["4.3", "4.3.0", "4.3.0-rc.1", "4.3.2", "4.3.5"])
def test_the_deadlock_of_4_3_is_reported_with_the_version_that_mends_it(version: str) -> None:
    defect = find_known_defect(version)
    assert defect is not None
    assert defect.startswith(f"RabbitMQ {version} can stop delivering")
    assert "upgrade to 4.3.6 or later" in defect


@pytest.mark.parametrize(
    "version", ["3.10.8", "4.0.5", "4.2.9", "4.3.6", "4.3.10", "4.4.0", "4.30.1", "5.0.0", "", "x"]
)
def test_other_versions_have_no_known_defect(version: str) -> None:
    assert find_known_defect(version) is None
