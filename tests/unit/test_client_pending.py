"""A reply is final if it is accepted, or if it answers the latest attempt."""

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


def accepted(version: int = 1) -> bytes:
    reply = {
        "command_id": "c",
        "status": "accepted",
        "duplicate": False,
        "version": version,
        "outplan": outplan().model_dump(),
    }
    return json.dumps(reply).encode()


def not_found() -> bytes:
    problem = Problem.of("not_found", "there is none", "c").model_dump(exclude_none=True)
    reply = {"command_id": "c", "status": "rejected", "duplicate": False, "problem": problem}
    return json.dumps(reply).encode()


@pytest.fixture
async def pending_replies() -> PendingReplies:
    return PendingReplies("client")


async def test_a_reply_to_the_only_attempt_is_final(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), not_found())
    assert call.reply.result().status == "rejected"


async def test_an_accepted_reply_is_final_whichever_attempt_it_answers(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, _ = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, accepted())
    assert call.reply.result().status == "accepted"


async def test_a_rejection_of_an_earlier_attempt_is_not_final(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, second = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, not_found())
    assert not call.reply.done()
    pending_replies.on_reply(second, accepted())
    assert call.reply.result().status == "accepted"


async def test_a_second_reply_changes_nothing(pending_replies: PendingReplies) -> None:
    call = PendingCall(pending_replies)
    attempt = call.start_attempt()
    pending_replies.on_reply(attempt, accepted(1))
    pending_replies.on_reply(attempt, accepted(2))
    pending_replies.on_reply(attempt, b"{")
    assert call.reply.result().version == 1


async def test_an_unreadable_reply_makes_the_client_try_again(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), b"{}")
    with pytest.raises(BrokerUnavailable, match="could not be read"):
        call.reply.result()


async def test_calls_do_not_receive_each_others_replies_nor_any_after_discard(
    pending_replies: PendingReplies,
) -> None:
    one, other = PendingCall(pending_replies), PendingCall(pending_replies)
    attempt = one.start_attempt()
    other.start_attempt()
    pending_replies.discard(one)
    for id_ in (attempt, None, "somebody's"):
        pending_replies.on_reply(id_, accepted())
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


def test_a_version_conflict_has_the_current_version_and_an_unknown_outcome_the_message_id() -> None:
    conflict = rejection(Problem.of("version_conflict", "no", "c", current_version=4))
    assert isinstance(conflict, VersionConflict)
    assert conflict.current_version == 4
    unknown = OutcomeUnknown("c-1", "no answer")
    assert (unknown.message_id, unknown.trouble) == ("c-1", "no answer")
