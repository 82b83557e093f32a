"""Say in plain words what is wrong with an event, a stored document or an outplan to dial by."""

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from outplan.client import dialing
from outplan.client.events import parse_message
from outplan.client.versions import Filter, Unreadable, Versions
from outplan.contract.messages import Address, Outplan
from outplan.errors import Unprocessable
from outplan.mongodb.translation import translate_errors
from tests.support.plain_words import find_foreign_words
from tests.support.samples import delivery, outplan

ENVELOPE = {"publisher": "x", "data_type": "application/json", "type": "outplan_created"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(body: object) -> str:
    """Return why a message is no event."""
    [found] = parse_message(delivery(body), Versions(Filter.of((), None, None), {}))
    assert isinstance(found, Unreadable)
    assert not find_foreign_words(found.reason)
    assert "\n" not in found.reason
    return found.reason


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff", "is not JSON"),
        (b"[]", "should be an object"),
        (b"{}", "publisher, data_type missing"),
        (ENVELOPE, "/id is missing; "),
        ({**ENVELOPE, "version": "one"}, "/version should be a whole number"),
        ({**ENVELOPE, "data": {}}, " more"),
    ],
)
def test_a_message_that_is_no_event_is_told_in_plain_words(body: object, words: str) -> None:
    assert words in read(body)


def test_a_reason_names_no_value_and_a_few_errors() -> None:
    wrong = dict.fromkeys(("id", "type", "version", "data", "publisher", "data_type"), "hunter2")
    reason = read({**wrong, "data": {"id": "hunter2"}})
    assert "hunter2" not in reason
    assert reason.count(";") == 8


def test_a_stored_document_that_breaks_the_contract_is_told_in_plain_words() -> None:
    document = {**outplan().model_dump(), "dial_timeout": "soon", "name": ""}
    with pytest.raises(Unprocessable) as caught, translate_errors():
        Outplan.model_validate(document)
    assert "/dial_timeout should be a whole number" in str(caught.value)
    assert not find_foreign_words(str(caught.value))


def test_an_outplan_that_no_dialer_can_obey_is_told_in_plain_words() -> None:
    target = dialing.Target(destinations=({"type": "tel", "target": "+15551234567"},))
    for wrong in ({}, {**outplan().model_dump(), "dial_timeout": "x"}, json):
        with pytest.raises(ValueError, match="no outplan to dial by: ") as caught:
            dialing.next_attempt(cast(Any, wrong), target, NOW)
        assert not find_foreign_words(str(caught.value))


@pytest.mark.parametrize(
    "destinations",
    [("+15551234567",), (7,), ({"type": "tel", "target": "+1555"}, b"x"), "+15551234567",
     {"type": "tel", "target": "+15551234567"},
     Address.model_construct(type="tel", target="+15551234567")],
)  # fmt: skip
def test_a_destination_that_is_no_address_is_refused_when_the_target_is_made(
    destinations: Any,
) -> None:
    with pytest.raises(TypeError, match="destination"):
        dialing.Target(destinations=destinations)
