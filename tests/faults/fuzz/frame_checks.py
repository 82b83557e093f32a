"""Check the frames that the service writes for an outcome."""

from collections.abc import Iterator, Sequence
from typing import Final

import orjson
import pamqp.frame
from pamqp.header import ContentHeader

from outplan.contract import schemas
from outplan.contract.amqp import Delivery, Publication
from outplan.domain.codec import Outcome
from outplan.rabbitmq.frames import (
    BODY,
    DELIVER,
    FRAME_HEAD,
    HEADER,
    METHOD,
    U32,
    WireProperties,
    read_content_header,
    write_content_header,
)
from tests.faults.fuzz.properties import FIXED_SIZES
from tests.support.wire import split_frames

# The broker or the service rewrites these, so a copy may differ.
_REWRITTEN: Final = (b"CC", b"x-")
_MAX_TEXT: Final = 255
_TYPES: Final = {*FIXED_SIZES, *b"SAFx"}


def check_frames(
    outcome: Outcome, sent: Sequence[tuple[Publication, bytes]], frame_max: int
) -> Iterator[str]:
    """Yield failures: too few or too many messages, oversized frames, schema violations."""
    kinds = [_kind_of(publication) for publication, _ in sent]
    expected = {"accepted": ["event"], "rejected": ["copy"], "unchanged": []}[outcome.status]
    if _is_text(outcome.delivery.properties.reply_to):
        expected.append("reply")
    if kinds != expected:
        yield f"the service sends {kinds}, expected {expected}"
    for publication, data in sent:
        yield from _check_framing(publication, data, frame_max)
        yield from _check_content(outcome, publication)


def _is_text(value: str | None) -> bool:
    return bool(value) and not any("\ud800" <= char <= "\udfff" for char in value or "")


def check_readable(method: bytes, header: bytes) -> Iterator[str]:
    """Yield why an AMQP client may be unable to read a message: it reads strictly, as most do.

    ``method`` and ``header`` are the payloads of the frames.
    """
    try:
        for kind, payload in ((METHOD, method), (HEADER, header)):
            raw = FRAME_HEAD.pack(kind, 1, len(payload)) + payload + b"\xce"
            frame = pamqp.frame.unmarshal(raw)[2]
    except Exception as error:
        yield f"not every client can read it: {error!r}"
        return
    assert isinstance(frame, ContentHeader)
    # The library turns the text of a header that is not UTF-8 into bytes.
    if any(isinstance(value, bytes) for value in (frame.properties.headers or {}).values()):
        yield "a header's text is not UTF-8"


def check_delivery_readable(delivery: Delivery) -> Iterator[str]:
    """Yield why an AMQP client may be unable to read a message, apart from its body."""
    assert isinstance(delivery.properties, WireProperties)
    names = [
        name.encode("utf-8", "surrogateescape")
        for name in (delivery.exchange, delivery.routing_key)
    ]
    method = U32.pack(DELIVER) + b"\1c" + bytes(9) + b"".join(bytes([len(n)]) + n for n in names)
    header = write_content_header(delivery.properties, len(delivery.body))
    yield from check_readable(method, header)


def _kind_of(publication: Publication) -> str:
    if publication.original is not None:
        return "copy"
    return "event" if publication.exchange else "reply"


def _check_framing(publication: Publication, data: bytes, frame_max: int) -> Iterator[str]:
    frames = split_frames(data)
    kinds = [kind for kind, _, _ in frames]
    if kinds[:2] != [METHOD, HEADER] or any(kind != BODY for kind in kinds[2:]):
        yield f"frames of kinds {kinds[:5]}"
    if any(len(payload) + 8 > frame_max for _, _, payload in frames):
        yield "a frame exceeds frame_max"
    parsed = read_content_header(frames[1][2])
    content = b"".join(payload for _, _, payload in frames[2:])
    if content != publication.body or parsed.body_size != len(content):
        yield "the body frames do not add up to the body"
    if publication.original is not None:
        yield from _check_copy(publication, parsed)
    else:
        yield from check_readable(frames[0][2], frames[1][2])


def _check_copy(publication: Publication, parsed: WireProperties) -> Iterator[str]:
    assert publication.original is not None
    original = publication.original.properties
    assert isinstance(original, WireProperties)
    for name in original.spans.keys() - {"table", "user_id"}:
        if property_bytes(parsed, name) != property_bytes(original, name):
            yield f"the copy's {name} differs from the original"
    if split_table(original.table) is None:
        return  # No broker forwards such a table.
    if parsed.header("x-problem-code") != publication.headers["x-problem-code"]:
        yield "the copy has another problem code"
    if not has_same_headers(original, parsed):
        yield "the copy's headers differ from the original"


def has_same_headers(original: WireProperties, parsed: WireProperties) -> bool:
    """Return whether a copy has the original's headers, in any order, as far as it may."""
    sent, copied = split_table(original.table), split_table(parsed.table)
    if sent is None or any(name in original.table for name in _REWRITTEN):
        return True
    if parsed.header("x-headers-dropped"):
        return len(original.table) > 100_000
    return copied is not None and sent <= copied


def split_table(table: bytes) -> set[bytes] | None:
    """Split a header table into fields; return None if their lengths are wrong.

    Nested lists and tables are not checked.
    """
    at, parsed = 0, set()
    try:
        while at < len(table):
            start = at
            at += 1 + table[at]
            kind = table[at]
            if (size := FIXED_SIZES.get(kind)) is None:
                size = 4 + int.from_bytes(table[at + 1 : at + 5], "big")
            if kind not in _TYPES:
                return None
            at += 1 + size
            parsed.add(table[start:at])
    except IndexError:
        return None
    return parsed if at == len(table) else None


def property_bytes(properties: WireProperties, name: str) -> bytes | None:
    """Return a property's bytes on the wire, or None."""
    span = properties.spans.get(name)
    return None if span is None else properties.raw[slice(*span)]


def _check_content(outcome: Outcome, publication: Publication) -> Iterator[str]:
    kind = _kind_of(publication)
    if kind == "copy":
        problem = orjson.loads(publication.headers["x-problem"])
        if not schemas.is_valid("problem", problem):
            yield "the problem violates its schema"
        return
    name = "reply" if kind == "reply" else str(publication.type)
    if not schemas.is_valid(name, orjson.loads(publication.body)):
        yield f"the {kind} violates its schema"
    if kind == "event" and len(publication.routing_key) > _MAX_TEXT:
        yield "the event's routing key is too long"
