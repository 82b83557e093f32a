"""Test that the blocking client has the asynchronous client's calls, with the same arguments."""

from inspect import signature

import pytest

from outplan.client import Events, OutplanClient, SyncEvents, SyncOutplanClient, events, sync_events

CALLS = ["create", "update", "delete", "ask", "send", "send_many", "__init__"]


@pytest.mark.parametrize("call", CALLS)
def test_the_blocking_client_takes_the_same_arguments(call: str) -> None:
    blocking = signature(getattr(SyncOutplanClient, call)).parameters
    awaited = signature(getattr(OutplanClient, call)).parameters
    assert list(blocking) == list(awaited)
    for name, parameter in awaited.items():
        same = (parameter.default, parameter.kind)
        assert (blocking[name].default, blocking[name].kind) == same
        # A generator of requests runs in the caller's thread, so it cannot be asynchronous.
        assert name == "requests" or blocking[name].annotation == parameter.annotation


def test_every_public_call_has_its_twin() -> None:
    def list_public(type_: type) -> set[str]:
        return {name for name in vars(type_) if not name.startswith("_")}

    assert list_public(SyncOutplanClient) == list_public(OutplanClient) | {"open", "close"}
    assert list_public(SyncEvents) == (list_public(Events) - {"aclose"}) | {"close"}


def test_both_subscriptions_take_the_same_arguments() -> None:
    assert signature(sync_events).parameters == signature(events).parameters
