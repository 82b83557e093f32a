"""Check W3C Trace Context headers before they are copied to other messages. Pure."""

import re
from typing import Any, Final

# The forms of https://www.w3.org/TR/trace-context/: version ff and ids of zeros are invalid. Only
# later versions than 00 may have more fields.
_FIELDS: Final = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_PARENT: Final = re.compile(rf"00{_FIELDS}|(?!00|ff)[0-9a-f]{{2}}{_FIELDS}(?:-[!-~]*)?")
_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MAX_MEMBERS: Final = 32
_MAX_LENGTH: Final = 512  # Every participant should propagate so many.


def check_trace_context(parent: Any, state: Any) -> dict[str, str]:
    """Return the headers ``traceparent`` and ``tracestate`` as far as they are valid.

    Without a valid ``traceparent`` there is neither.
    """
    if not (_is_short_text(parent) and _PARENT.fullmatch(parent)):
        return {}
    if _is_short_text(state) and _is_state(state):
        return {"traceparent": parent, "tracestate": state}
    return {"traceparent": parent}


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_LENGTH


def _is_state(text: str) -> bool:
    members = [member.strip(" \t") for member in text.split(",")]
    given = [member for member in members if member]
    keys = {member.partition("=")[0] for member in given}
    return (
        0 < len(given) <= _MAX_MEMBERS
        and len(keys) == len(given)
        and all(_MEMBER.fullmatch(member) for member in given)
    )
