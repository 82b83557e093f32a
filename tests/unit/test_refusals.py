"""Test which closes of RabbitMQ's stop a worker, by RabbitMQ's own words."""

import pytest

from outplan.errors import BrokerRefused, BrokerUnavailable
from outplan.rabbitmq.refusals import REFUSALS, explain_close

VHOST = "NOT_ALLOWED - access to vhost 'a' refused for user 'b'"
# As RabbitMQ 3.10 and 4.3 write them.
CLOSES: list[tuple[int, str, bool, str]] = [
    (403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details "
     "see the broker logfile.", True, "credentials"),
    (403, "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'b'", True,
     "grant the user this permission"),
    (404, "NOT_FOUND - no exchange 'x.commands' in vhost '/'", False, "has a worker run"),
    (404, "NOT_FOUND - no queue 'x.commands' in vhost '/'", False, "has a worker run"),
    (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'", False,
     "another connection"),
    (406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q'", True, "delete it"),
    (406, "PRECONDITION_FAILED - cannot declare queue 'q' in vhost 'a': queue limit in vhost 'a' "
     "(0) is reached", True, "set_vhost_limits"),
    (530, "NOT_ALLOWED - vhost a not found", True, "add_vhost"),
    (530, VHOST, True, "grant the user permissions"),
    (530, f"{VHOST}: connection limit (0) is reached", False, "raise the limit"),
    (530, "NOT_ALLOWED - Connection refused for user 'b': user connection limit (1) is reached",
     False, "raise the limit"),
    (530, "NOT_ALLOWED - anything else", True, "check the AMQP URL"),
    # A person need not do anything: the worker waits.
    (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", False, ""),
    (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", False, ""),
    (541, "INTERNAL_ERROR - access to vhost 'a' refused for user 'b': vhost 'a' is down", False,
     ""),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "stops", "advice"), CLOSES)
def test_a_close_stops_a_worker_or_lets_it_wait(
    code: int, text: str, stops: bool, advice: str
) -> None:
    found = explain_close(code, text)
    assert type(found) is (BrokerRefused if stops else BrokerUnavailable)
    assert text.rstrip(".") in str(found)
    assert advice in str(found)


def test_every_row_of_the_table_is_tested() -> None:
    advice = {refusal.advice for refusal in REFUSALS}
    told = {str(explain_close(code, text)).partition("; ")[2] for code, text, _, _ in CLOSES}
    assert advice <= told
