"""Check the addresses and names that people configure."""

from typing import Final

from yarl import URL

# The prefix of exchanges, queues and the like.
PREFIX_PATTERN: Final = r"^[A-Za-z0-9._-]{1,100}$"


def check_amqp_url(url: str) -> str:
    """Return an AMQP URL unchanged.

    Raises ValueError for any other text, without quoting it, since it may hold a password.
    """
    if not url.startswith(("amqp://", "amqps://")):
        raise ValueError("should start with amqp:// or amqps://")
    try:
        parts = URL(url)
        # A password that is not escaped ends the host early, and would be shown as its port.
        cut = bool(parts.raw_fragment) or "@" in parts.raw_path_qs
        usable = bool(parts.host) and not cut
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("should be amqp://user:password@host:port/vhost, escaped (RFC 3986)")
    return url
