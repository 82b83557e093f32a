"""What is demanded of the bytes that leave the service for one outcome."""

from collections.abc import Iterator, Sequence
from typing import Final

import orjson

from outplan.contract import schemas
from outplan.contract.amqp import Publication
from outplan.domain.codec import Outcome
from outplan.rabbitmq.frames import BODY, HEADER, METHOD, WireProperties, read_content_header
from tests.faults.fuzz.properties import FIXED_SIZES
from tests.support.wire import split

# Read or rewritten by broker or service, so that a copy's headers may differ in these.
_TOUCHED: Final = (b"CC", b"x-")
_MAX_TEXT: Final = 255
_KINDS: Final = {*FIXED_SIZES, *b"SAFx"}


def faults_on_the_wire(
    outcome: Outcome, sent: Sequence[tuple[Publication, bytes]], frame_max: int
) -> Iterator[str]:
    """Say what is wrong: too few or too many messages, frames too large, what no schema allows."""
    kinds = [_kind(publication) for publication, _ in sent]
    wanted = {"accepted": ["event"], "rejected": ["copy"], "unchanged": []}[outcome.status]
    if outcome.delivery.properties.reply_to:
        wanted.append("reply")
    if kinds != wanted:
        yield f"sends {kinds}, not {wanted}"
    for publication, data in sent:
        yield from _of_frames(publication, data, frame_max)
        yield from _of_content(outcome, publication)


def _kind(publication: Publication) -> str:
    if publication.original is not None:
        return "copy"
    return "event" if publication.exchange else "reply"


def _of_frames(publication: Publication, data: bytes, frame_max: int) -> Iterator[str]:
    frames = split(data)
    kinds = [kind for kind, _, _ in frames]
    if kinds[:2] != [METHOD, HEADER] or any(kind != BODY for kind in kinds[2:]):
        yield f"frames of kinds {kinds[:5]}"
    if any(len(payload) + 8 > frame_max for _, _, payload in frames):
        yield "a frame is larger than the broker takes"
    found = read_content_header(frames[1][2])
    content = b"".join(payload for _, _, payload in frames[2:])
    if content != publication.body or found.body_size != len(content):
        yield "the body's frames are not the body"
    if publication.original is not None:
        yield from _of_copy(publication, found)


def _of_copy(publication: Publication, found: WireProperties) -> Iterator[str]:
    assert publication.original is not None
    original = publication.original.properties
    assert isinstance(original, WireProperties)
    for name in original.spans.keys() - {"table", "user_id"}:
        if property_bytes(found, name) != property_bytes(original, name):
            yield f"the copy's {name} is not what was sent"
    if fields(original.table) is None:
        return  # No broker hands such a table on, and nobody could say what is in it.
    if found.header("x-problem-code") != publication.headers["x-problem-code"]:
        yield "the copy does not say the code"
    if not kept(original, found):
        yield "the copy's headers are not those that were sent"


def kept(original: WireProperties, found: WireProperties) -> bool:
    """Whether a copy has the headers that were sent, as far as it may; their order is nobody's."""
    sent, copied = fields(original.table), fields(found.table)
    if sent is None or any(name in original.table for name in _TOUCHED):
        return True
    if found.header("x-headers-dropped"):
        return len(original.table) > 100_000
    return copied is not None and sent <= copied


def fields(table: bytes) -> set[bytes] | None:
    """A header table's fields, or None where they don't end where it does; lists may still lie."""
    at, found = 0, set()
    try:
        while at < len(table):
            start = at
            at += 1 + table[at]
            kind = table[at]
            if (size := FIXED_SIZES.get(kind)) is None:
                size = 4 + int.from_bytes(table[at + 1 : at + 5], "big")
            if kind not in _KINDS:
                return None
            at += 1 + size
            found.add(table[start:at])
    except IndexError:
        return None
    return found if at == len(table) else None


def property_bytes(properties: WireProperties, name: str) -> bytes | None:
    """A property's bytes on the wire, or None."""
    span = properties.spans.get(name)
    return None if span is None else properties.raw[slice(*span)]


def _of_content(outcome: Outcome, publication: Publication) -> Iterator[str]:
    kind = _kind(publication)
    if kind == "copy":
        problem = orjson.loads(publication.headers["x-problem"])
        if not schemas.is_valid("problem", problem):
            yield "the problem does not fit its schema"
        return
    name = "reply" if kind == "reply" else str(publication.type)
    if not schemas.is_valid(name, orjson.loads(publication.body)):
        yield f"the {kind} does not fit its schema"
    if kind == "event" and len(publication.routing_key) > _MAX_TEXT:
        yield "the event's routing key is too long"
