"""Mutate command bodies: field by field, byte by byte, or as a whole."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final

import orjson

from outplan.contract.fields import MAX_BODY_BYTES

Body = dict[str, Any]

# A placeholder for tokens that no JSON library writes.
_RAW: Final = "@@raw@@"
_RAW_TOKENS: Final = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"-0.0", b"30000.0",
    b"3e4", b"3E+4", b"0x10", b"01", b"+1", b".5", b"1.", b"1e", b"18446744073709551616",
    b"-9223372036854775809", b"9" * 400, b"0." + b"1" * 400, b'"\\ud800"', b'"\\udc00\\ud800"',
    b'"\\ud83d\\udcde"', b'"\\u0000"', b'"\\x"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xff"',
    b'"\x01"', b'"a', b"'a'", b"undefined", b"nul", b"True", b"", b"[", b"{", b"[1,]", b"{,}",
    b"/**/1", b'{"a":1,"a":2}', b'"\xf4\x90\x80\x80"', b'"\\u00"',
)  # fmt: skip
_TOKENS: Final = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\xed\xa0\x80", b"\xc3",
    b"\\u", b"\\ud800", b"\xef\xbb\xbf", b"\n", b" ", b"\xe2\x80\xa8", b"null", b"1e999", b"//",
)  # fmt: skip
NUMBERS: Final = tuple(
    n + step
    for n in (0, 1, 1_000, 30_000, 600_000, 2**31, 2**32, 2**53, 2**63, 2**64 - 1)
    for step in (-1, 0, 1)
)
_FLOATS: Final = (30_000.0, 0.5, 1_000.5, -0.0, 1e300, 2.0**53, 5e-324, 1e16, 600_000.0)
CHARACTERS: Final = (
    "\0", "\x1b", "\n", "\r", "\x7f", "\x85", "\u2028", "\ufeff", "\u202e", "\uffff", "é",
    "e\u0301", "İ", "ß", "\u212a", "٣", "\uff11", "😀", "\U0010ffff", "\ue000", " ", "@", "+",
    "-", ".", "/", "~", "$", "\\", '"', "A", "0",
)  # fmt: skip
_LENGTHS: Final = (0, 1, 2, 7, 15, 36, 254, 255, 256, 257)
_LONG: Final = (4_000, 65_534, 65_535, 65_536, 120_000, 250_000)
_OTHER: Final[tuple[Any, ...]] = (
    None, True, False, [], {}, [None], {"$ne": ""}, {"$gt": 0}, "", "0", "null", [[]], {"": {}},
    "00000000-0000-0000-0000-000000000000", "+15559876543", "a@b", "9999-01-01 00:00:00.000000",
)  # fmt: skip
_UNKNOWN: Final = (
    "colour", "$where", "source.type", "_id", "version", "tm_create", "tm_delete", "__proto__", "",
    "na\0me", "Name", "max_try_count_5", "destination_0", "expected_version", "n" * 300, "a/b~c",
)  # fmt: skip
_UUID_TYPES: Final = ("agent", "ai", "ai_team", "conference", "webchat", "web_session")
_TYPES: Final = ("tel", "whatsapp", "email", "sip", "extension", "line", *_UUID_TYPES)
# Each makes a text of about n characters that may make a regular expression slow.
PATHOLOGICAL: Final[tuple[Callable[[int], str], ...]] = (
    lambda n: "a" * n,
    lambda n: "a" * n + "!",
    lambda n: "a@" + "a" * n,
    lambda n: "a@" + "a." * (n // 2) + "a",
    lambda n: "a@" + "a." * (n // 2) + "!",
    lambda n: "a@" + "a-" * (n // 2),
    lambda n: "a@" + ".".join(["a" * 63] * (n // 64 + 1)),
    lambda n: "a@" + ".".join(["a-" * 31 + "a"] * (n // 64 + 1)) + "\n",
    lambda n: "@" * n,
    lambda n: "a@" * (n // 2),
    lambda n: "+" + "0" * n,
    lambda n: "0000-" * (n // 5),
    lambda n: "aaaaaaaa-aaaa-aaaa-aaaa-" + "a" * n,
    lambda n: "/~0" * (n // 3) + "~",
    lambda n: " " * n + "\n",
    lambda n: "é" * (n // 2),
    lambda n: "9999-01-01 " * (n // 11),
)


class BodyMutator:
    """Mutate bodies, parsed or as bytes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._raw: bytes | None = None
        self._value_mutations: list[tuple[Callable[[Any], Any], int]] = [
            (self._make_number, 6),
            (self._mutate_text, 8),
            (self._pick_other_value, 4),
            (self._insert_raw_token, 4),
            (self._make_pathological, 1),
        ]
        self._byte_mutations: list[Callable[[bytes], bytes]] = [
            self._flip_bit,
            self._overwrite_byte,
            self._drop_bytes,
            self._insert_token,
            self._repeat_bytes,
            self._truncate,
        ]
        self._shape_mutations: list[Callable[[bytes], bytes]] = [
            self._nest, self._widen, self._repeat_members, self._pad, self._reformat, self._wrap,
        ]  # fmt: skip

    # --- field by field ---

    def mutate_fields(self, body: Body) -> bytes:
        """Change one to three members at any depth, and encode the body."""
        self._raw = None
        for _ in range(self._rng.choice((1, 1, 1, 2, 3))):
            source = body.get("source")
            is_in_source = isinstance(source, dict) and self._rng.random() < 0.3
            self._edit_member(source if is_in_source and isinstance(source, dict) else body)
        data = encode_json(body)
        return data if self._raw is None else data.replace(f'"{_RAW}"'.encode(), self._raw)

    def _edit_member(self, fields: Body) -> None:
        draw = self._rng.random()
        key = self._rng.choice(list(fields)) if fields else "name"
        if draw < 0.15:
            fields.pop(key, None)
        elif draw < 0.25:
            fields[self._rng.choice(_UNKNOWN)] = self._mutate_value(None)
        elif draw < 0.3 and fields:
            fields[self._rng.choice((*_UNKNOWN, key.upper()))] = fields.pop(key)
        elif draw < 0.4:
            fields[key] = deepcopy(fields.get(self._rng.choice(list(fields) or [key])))
        elif draw < 0.5 and "type" in fields:
            fields["type"] = self._rng.choice(_TYPES)
        else:
            fields[key] = self._mutate_value(fields.get(key))

    def _mutate_value(self, value: Any) -> Any:
        mutations, weights = zip(*self._value_mutations, strict=True)
        return self._rng.choices(mutations, weights)[0](value)

    def _make_number(self, value: Any) -> Any:
        if type(value) is int and self._rng.random() < 0.3:
            return self._rng.choice((value + 1, value - 1, float(value), str(value), -value))
        return self._rng.choice(NUMBERS + _FLOATS)

    def _mutate_text(self, value: Any) -> Any:
        if isinstance(value, str) and value and self._rng.random() < 0.5:
            at = self._rng.randrange(len(value) + 1)
            cut = self._rng.choice((0, 0, 1))
            return value[:at] + self._rng.choice(CHARACTERS) + value[at + cut :]
        if isinstance(value, str) and self._rng.random() < 0.3:
            return self._rng.choice((value.upper(), value + "\n", f"{{{value}}}", f"urn:{value}"))
        lengths = _LENGTHS if self._rng.random() < 0.98 else _LONG
        return self._rng.choice(CHARACTERS) * self._rng.choice(lengths)

    def _pick_other_value(self, _: Any) -> Any:
        return deepcopy(self._rng.choice(_OTHER))

    def _insert_raw_token(self, _: Any) -> Any:
        self._raw = self._rng.choice(_RAW_TOKENS)
        return _RAW

    def _make_pathological(self, _: Any) -> Any:
        return self._rng.choice(PATHOLOGICAL)(self._pick_size())

    # --- byte by byte ---

    def mutate_bytes(self, body: bytes) -> bytes:
        """Make one to four edits anywhere."""
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            body = self._rng.choice(self._byte_mutations)(body)
        return body

    def _flip_bit(self, body: bytes) -> bytes:
        at = self._pick_index(body)
        return (
            body[:at]
            + bytes(b ^ (1 << self._rng.randrange(8)) for b in body[at : at + 1])
            + (body[at + 1 :])
        )

    def _overwrite_byte(self, body: bytes) -> bytes:
        at = self._pick_index(body)
        return body[:at] + self._rng.randbytes(1) + body[at + 1 :]

    def _drop_bytes(self, body: bytes) -> bytes:
        at = self._pick_index(body)
        return body[:at] + body[at + self._rng.choice((1, 1, 2, 8, 40)) :]

    def _insert_token(self, body: bytes) -> bytes:
        at = self._pick_index(body)
        return body[:at] + self._rng.choice(_TOKENS) + body[at:]

    def _repeat_bytes(self, body: bytes) -> bytes:
        at = self._pick_index(body)
        end = at + self._rng.choice((1, 5, 30))
        return body[:end] + body[at:end] * self._rng.choice((1, 1, 3)) + body[end:]

    def _truncate(self, body: bytes) -> bytes:
        return body[: self._pick_index(body)]

    def _pick_index(self, body: bytes) -> int:
        return self._rng.randrange(len(body) + 1)

    # --- as a whole ---

    def mutate_shape(self, body: bytes) -> bytes:
        """Nest or widen the body, repeat its members, pad it to the limit, or reformat it."""
        return self._rng.choice(self._shape_mutations)(body)

    def _nest(self, body: bytes) -> bytes:
        depth = self._pick_size() // 6
        before, after = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        after = self._rng.choice((after, after, b""))
        return self._add_member(body, before * depth + b"1" + after * depth)

    def _widen(self, body: bytes) -> bytes:
        size = self._pick_size()
        if self._rng.random() < 0.5:
            item = self._rng.choice((b"1", b"{}", b"[]", b'""', b"null", b'{"a":[1]}'))
            return self._add_member(body, b"[" + b",".join([item] * (size // 8)) + b"]")
        return body[:-1] + b"".join(b',"f%d":%d' % (n, n) for n in range(size // 12)) + b"}"

    def _repeat_members(self, body: bytes) -> bytes:
        return body[:-1] + b"," + body[1:]

    def _pad(self, body: bytes) -> bytes:
        size = MAX_BODY_BYTES + self._rng.choice((-1, 0, 1, 1_000))
        return body + self._rng.choice((b" ", b"\n", b"\t")) * (size - len(body))

    def _reformat(self, body: bytes) -> bytes:
        """Encode the same content as other bytes."""
        members = list(json.loads(body).items())
        self._rng.shuffle(members)
        text = json.dumps(dict(members), indent=self._rng.choice((None, 1)))
        return text.replace("a", "\\u0061").encode()

    def _wrap(self, body: bytes) -> bytes:
        before, after = self._rng.choice(
            ((b"[", b"]"), (b'{"data":', b"}"), (b"", body), (b"\xef\xbb\xbf", b""), (b'"', b'"'))
        )
        return before + body + after

    def _add_member(self, body: bytes, value: bytes) -> bytes:
        name = self._rng.choice((b"name", b"source", b"colour", b"detail", b"id"))
        return body[:-1] + b',"' + name + b'":' + value + b"}"

    def _pick_size(self) -> int:
        """Pick a size up to the body limit, mostly a small one."""
        return int(10 ** self._rng.triangular(1, 5.4, 1))


def encode_json(body: Body) -> bytes:
    """Encode a body as JSON, even with values that a strict library refuses."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body).encode()
