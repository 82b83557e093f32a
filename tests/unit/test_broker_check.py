"""Test what ``outplan check`` says about versions of RabbitMQ that the tests do not run on."""

import pytest

from outplan.operations.broker_check import check_version


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("", "problem"),
        ("3.9.29", "problem"),
        ("3.10.0", "ok"),
        ("4.2.9", "ok"),
        ("4.3.0", "warning"),
        ("4.3.5", "warning"),
        ("4.3.6", "ok"),
    ],
)
def test_versions_that_are_too_old_or_known_to_fail_are_reported(version: str, state: str) -> None:
    assert check_version(version).state == state


def test_a_known_defect_is_reported_with_the_version_to_upgrade_to() -> None:
    finding = check_version("4.3.2")
    assert "4.3.2 can stop delivering" in finding.text
    assert finding.remedy == "upgrade to 4.3.6 or later (rabbitmq-server#17317)"
