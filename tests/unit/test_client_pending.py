"""Which answer is a verdict: any "accepted", and else only the latest attempt's."""

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


async def test_an_answer_to_the_only_attempt_is_the_verdict(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), not_found())
    assert call.reply.result().status == "rejected"


async def test_accepted_counts_whichever_attempt_it_answers(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, _ = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, accepted())
    assert call.reply.result().status == "accepted"


async def test_a_rejection_of_an_earlier_attempt_leaves_the_verdict_to_the_latest(
    pending_replies: PendingReplies,
) -> None:
    call = PendingCall(pending_replies)
    first, second = call.start_attempt(), call.start_attempt()
    pending_replies.on_reply(first, not_found())
    assert not call.reply.done()
    pending_replies.on_reply(second, accepted())
    assert call.reply.result().status == "accepted"


async def test_a_second_answer_changes_nothing(pending_replies: PendingReplies) -> None:
    call = PendingCall(pending_replies)
    attempt = call.start_attempt()
    pending_replies.on_reply(attempt, accepted(1))
    pending_replies.on_reply(attempt, accepted(2))
    pending_replies.on_reply(attempt, b"{")
    assert call.reply.result().version == 1


async def test_an_answer_that_cannot_be_read_is_trouble(pending_replies: PendingReplies) -> None:
    call = PendingCall(pending_replies)
    pending_replies.on_reply(call.start_attempt(), b"{}")
    with pytest.raises(BrokerUnavailable, match="could not be read"):
        call.reply.result()


async def test_calls_do_not_hear_each_others_answers_nor_those_after_their_end(
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


def test_every_code_of_the_contract_has_an_error_of_its_own() -> None:
    assert REJECTIONS.keys() == PROBLEM_CODES.keys()
    assert len(set(REJECTIONS.values())) == len(PROBLEM_CODES)
    for code in PROBLEM_CODES:
        problem = Problem.of(code, "the reason", "c")
        error = rejection(problem)
        assert isinstance(error, CommandRejected)
        assert (error.problem, error.code) == (problem, code)
        assert "the reason" in str(error)


def test_a_conflict_tells_the_version_and_the_unknown_what_to_ask_for() -> None:
    conflict = rejection(Problem.of("version_conflict", "no", "c", current_version=4))
    assert isinstance(conflict, VersionConflict)
    assert conflict.current_version == 4
    unknown = OutcomeUnknown("c-1", "no answer")
    assert (unknown.message_id, unknown.trouble) == ("c-1", "no answer")
