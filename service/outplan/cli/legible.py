"""Other people's text on a terminal: what could steer it is shown, not obeyed.

Control characters steer a terminal; others turn the direction of writing, or have no width, and
so hide what stands there. Python calls none of them printable.
"""

import json


def legible(text: str) -> str:
    r"""Escape all that is not printable, line breaks too, as Python does: ``\n``, ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def legible_json(text: str) -> str:
    r"""Escape what is not printable in JSON of one line; it says the same as before."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
