"""Hostile bodies: near misses, made field by field and byte by byte."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final

import orjson

from outplan.contract.fields import MAX_BODY_BYTES

Body = dict[str, Any]

# What no JSON library writes stands in for this text.
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
# Each makes a text of about so many characters that a pattern might choke on.
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


class HostileBodies:
    """Spoils bodies: parsed ones field by field, bytes anyhow."""

    def __init__(self, luck: random.Random) -> None:
        self._luck = luck
        self._raw: bytes | None = None
        self._values: list[tuple[Callable[[Any], Any], int]] = [
            (self._number, 6),
            (self._text, 8),
            (self._other, 4),
            (self._token, 4),
            (self._pathological, 1),
        ]
        self._byte_edits: list[Callable[[bytes], bytes]] = [
            self._flip, self._overwrite, self._drop, self._insert, self._repeat, self._truncate,
        ]  # fmt: skip
        self._shapes: list[Callable[[bytes], bytes]] = [
            self._nest, self._widen, self._say_twice, self._pad, self._respell, self._wrap,
        ]  # fmt: skip

    # --- field by field ---

    def spoil_fields(self, body: Body) -> bytes:
        """Change up to three members, at any depth, and write it all down."""
        self._raw = None
        for _ in range(self._luck.choice((1, 1, 1, 2, 3))):
            inside = body.get("source")
            is_inside = isinstance(inside, dict) and self._luck.random() < 0.3
            self._edit(inside if is_inside and isinstance(inside, dict) else body)
        data = written(body)
        return data if self._raw is None else data.replace(f'"{_RAW}"'.encode(), self._raw)

    def _edit(self, fields: Body) -> None:
        way = self._luck.random()
        key = self._luck.choice(list(fields)) if fields else "name"
        if way < 0.15:
            fields.pop(key, None)
        elif way < 0.25:
            fields[self._luck.choice(_UNKNOWN)] = self._value(None)
        elif way < 0.3 and fields:
            fields[self._luck.choice((*_UNKNOWN, key.upper()))] = fields.pop(key)
        elif way < 0.4:
            fields[key] = deepcopy(fields.get(self._luck.choice(list(fields) or [key])))
        elif way < 0.5 and "type" in fields:
            fields["type"] = self._luck.choice(_TYPES)
        else:
            fields[key] = self._value(fields.get(key))

    def _value(self, value: Any) -> Any:
        ways, weights = zip(*self._values, strict=True)
        return self._luck.choices(ways, weights)[0](value)

    def _number(self, value: Any) -> Any:
        if type(value) is int and self._luck.random() < 0.3:
            return self._luck.choice((value + 1, value - 1, float(value), str(value), -value))
        return self._luck.choice(NUMBERS + _FLOATS)

    def _text(self, value: Any) -> Any:
        if isinstance(value, str) and value and self._luck.random() < 0.5:
            at = self._luck.randrange(len(value) + 1)
            cut = self._luck.choice((0, 0, 1))
            return value[:at] + self._luck.choice(CHARACTERS) + value[at + cut :]
        if isinstance(value, str) and self._luck.random() < 0.3:
            return self._luck.choice((value.upper(), value + "\n", f"{{{value}}}", f"urn:{value}"))
        lengths = _LENGTHS if self._luck.random() < 0.98 else _LONG
        return self._luck.choice(CHARACTERS) * self._luck.choice(lengths)

    def _other(self, _: Any) -> Any:
        return deepcopy(self._luck.choice(_OTHER))

    def _token(self, _: Any) -> Any:
        self._raw = self._luck.choice(_RAW_TOKENS)
        return _RAW

    def _pathological(self, _: Any) -> Any:
        return self._luck.choice(PATHOLOGICAL)(self._size())

    # --- byte by byte ---

    def spoil_bytes(self, body: bytes) -> bytes:
        """Up to four edits anywhere."""
        for _ in range(self._luck.choice((1, 1, 2, 4))):
            body = self._luck.choice(self._byte_edits)(body)
        return body

    def _flip(self, body: bytes) -> bytes:
        at = self._place(body)
        return (
            body[:at]
            + bytes(b ^ (1 << self._luck.randrange(8)) for b in body[at : at + 1])
            + (body[at + 1 :])
        )

    def _overwrite(self, body: bytes) -> bytes:
        at = self._place(body)
        return body[:at] + self._luck.randbytes(1) + body[at + 1 :]

    def _drop(self, body: bytes) -> bytes:
        at = self._place(body)
        return body[:at] + body[at + self._luck.choice((1, 1, 2, 8, 40)) :]

    def _insert(self, body: bytes) -> bytes:
        at = self._place(body)
        return body[:at] + self._luck.choice(_TOKENS) + body[at:]

    def _repeat(self, body: bytes) -> bytes:
        at = self._place(body)
        end = at + self._luck.choice((1, 5, 30))
        return body[:end] + body[at:end] * self._luck.choice((1, 1, 3)) + body[end:]

    def _truncate(self, body: bytes) -> bytes:
        return body[: self._place(body)]

    def _place(self, body: bytes) -> int:
        return self._luck.randrange(len(body) + 1)

    # --- as a whole ---

    def spoil_shape(self, body: bytes) -> bytes:
        """Deep, wide, said twice, padded to the limit, or spelt another way."""
        return self._luck.choice(self._shapes)(body)

    def _nest(self, body: bytes) -> bytes:
        depth = self._size() // 6
        before, after = self._luck.choice(((b"[", b"]"), (b'{"a":', b"}")))
        after = self._luck.choice((after, after, b""))
        return self._with_member(body, before * depth + b"1" + after * depth)

    def _widen(self, body: bytes) -> bytes:
        size = self._size()
        if self._luck.random() < 0.5:
            item = self._luck.choice((b"1", b"{}", b"[]", b'""', b"null", b'{"a":[1]}'))
            return self._with_member(body, b"[" + b",".join([item] * (size // 8)) + b"]")
        return body[:-1] + b"".join(b',"f%d":%d' % (n, n) for n in range(size // 12)) + b"}"

    def _say_twice(self, body: bytes) -> bytes:
        return body[:-1] + b"," + body[1:]

    def _pad(self, body: bytes) -> bytes:
        size = MAX_BODY_BYTES + self._luck.choice((-1, 0, 1, 1_000))
        return body + self._luck.choice((b" ", b"\n", b"\t")) * (size - len(body))

    def _respell(self, body: bytes) -> bytes:
        """The same content in other bytes."""
        members = list(json.loads(body).items())
        self._luck.shuffle(members)
        text = json.dumps(dict(members), indent=self._luck.choice((None, 1)))
        return text.replace("a", "\\u0061").encode()

    def _wrap(self, body: bytes) -> bytes:
        before, after = self._luck.choice(
            ((b"[", b"]"), (b'{"data":', b"}"), (b"", body), (b"\xef\xbb\xbf", b""), (b'"', b'"'))
        )
        return before + body + after

    def _with_member(self, body: bytes, value: bytes) -> bytes:
        name = self._luck.choice((b"name", b"source", b"colour", b"detail", b"id"))
        return body[:-1] + b',"' + name + b'":' + value + b"}"

    def _size(self) -> int:
        """Mostly small, now and then all that a body may hold."""
        return int(10 ** self._luck.triangular(1, 5.4, 1))


def written(body: Body) -> bytes:
    """The body as JSON, also where it has what a strict library refuses to write."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body).encode()
