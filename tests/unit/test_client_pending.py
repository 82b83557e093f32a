"""Test which replies end a call, and the error of each problem code."""

import json

import pytest

from outplan.client.errors import (
    REJECTIONS,
    CommandRejected,
    OutcomeUnknown,
    VersionConflict,
    rejection,
)
from outplan.client.pending import PendingCall, PendingReplies
from outplan.contract.messages import PROBLEM_CODES, Problem
from outplan.errors import BrokerUnavailable
from tests.support.samples import outplan


def encode_accepted_reply(version: int = 1) -> bytes:
    reply = {
        "command_id": "c",
        "status": "accepted",
        "duplicate": False,
        "version": version,
        "outplan": outplan().model_dump(),
    }
    return json.dumps(reply).encode()


def encode_rejected_reply() -> bytes:
    problem = Problem.of("not_found", "no such outplan", "c").model_dump(exclude_none=True)
    reply = {"command_id": "c", "status": "rejected", "duplicate": False, "problem": problem}
    return json.dumps(reply).encode()


@pytest.fixture
async def pending_replies() -> PendingReplies:
    return PendingReplies("client")


async def test_a_reply_to_the_only_attempt_is_final(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), encode_rejected_reply())
    assert call.reply.result().status == "rejected"


async def test_an_accepted_reply_is_final_whichever_attempt_it_answers(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, _ = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, encode_accepted_reply())
    assert call.reply.result().status == "accepted"


async def test_a_rejection_of_an_earlier_attempt_is_not_final(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, second = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, encode_rejected_reply())
    assert not call.reply.done()
    pending_replies.on_reply(second, encode_accepted_reply())
    assert call.reply.result().status == "accepted"


async def test_a_second_reply_changes_nothing(pending_replies: PendingReplies) -> None:
    call = PendingCall(pending_replies)
    attempt = call.start_attempt()
    pending_replies.on_reply(attempt, encode_accepted_reply(1))
    pending_replies.on_reply(attempt, encode_accepted_reply(2))
    pending_replies.on_reply(attempt, b"{")
    assert call.reply.result().version == 1


async def test_an_unreadable_reply_fails_the_attempt(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), b"{}")
    with pytest.raises(BrokerUnavailable, match="this is no reply"):
        call.reply.result()


async def test_a_call_gets_no_replies_of_others_and_none_after_discard(
    pending_replies: PendingReplies,
) -> None:
    one, other = PendingCall(pending_replies), PendingCall(pending_replies)
    attempt = one.start_attempt()
    other.start_attempt()
    pending_replies.discard(one)
    for id_ in (attempt, None, "somebody's"):
        pending_replies.on_reply(id_, encode_accepted_reply())
    assert not one.reply.done()
    assert not other.reply.done()


def test_each_problem_code_has_its_own_error() -> None:
    assert REJECTIONS.keys() == PROBLEM_CODES.keys()
    assert len(set(REJECTIONS.values())) == len(PROBLEM_CODES)
    for code in PROBLEM_CODES:
        problem = Problem.of(code, "the reason", "c")
        error = rejection(problem)
        assert isinstance(error, CommandRejected)
        assert (error.problem, error.code) == (problem, code)
        assert "the reason" in str(error)


def test_errors_carry_the_current_version_and_the_message_id() -> None:
    conflict = rejection(Problem.of("version_conflict", "no", "c", current_version=4))
    assert isinstance(conflict, VersionConflict)
    assert conflict.current_version == 4
    unknown = OutcomeUnknown("c-1", "no answer")
    assert (unknown.message_id, unknown.trouble) == ("c-1", "no answer")
