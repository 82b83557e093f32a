"""Check the addresses and names that people configure."""

import re
from typing import Final

from yarl import URL

# The prefix of exchanges, queues and the like.
PREFIX_PATTERN: Final = r"^[A-Za-z0-9._-]{1,100}$"

AMQP_FORM: Final = "amqp://user:password@host:port/vhost"
MONGO_FORM: Final = "mongodb://user:password@host:port/?replicaSet=name"
HTTP_FORM: Final = "http://user:password@host:port"
_ESCAPES: Final = "percent-encode user and password: %2F for /, %40 for @, %23 for #, %3F for ?"
_LAST_PORT: Final = 65_535


def check_amqp_url(url: str) -> str:
    """Return an AMQP URL without the white space around it, such as a secret file's line break.

    Raises ValueError for any other text, without quoting it, since it may hold a password.
    """
    url = url.strip()
    if not url.startswith(("amqp://", "amqps://")):
        raise ValueError(f"should start with amqp:// or amqps://, as in {AMQP_FORM}")
    [host] = _split_hosts(url)
    _check_host(host, AMQP_FORM)
    try:
        URL(url)
    except ValueError:
        raise ValueError(f"should be {AMQP_FORM}; {_ESCAPES}") from None
    return url


def check_mongo_url(url: str) -> str:
    """Return a MongoDB URL without the white space around it. Raises as ``check_amqp_url``."""
    url = url.strip()
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError(f"should start with mongodb:// or mongodb+srv://, as in {MONGO_FORM}")
    for host in _split_hosts(url):
        # The path of a socket; pymongo reads it.
        if not host.lower().endswith(".sock"):
            _check_host(host, MONGO_FORM)
    return url


def check_http_url(url: str) -> str:
    """Return an HTTP URL without the white space around it. Raises as ``check_amqp_url``."""
    url = url.strip()
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"should start with http:// or https://, as in {HTTP_FORM}")
    [host] = _split_hosts(url)
    _check_host(host, HTTP_FORM)
    return url


def describe_amqp_url(url: str) -> str:
    """Return host, port and virtual host of an AMQP URL, as in ``rabbit:5672/calls``."""
    return f"{get_address(url)}/{get_virtual_host(url).removeprefix('/')}"


def get_address(url: str) -> str:
    """Return host and port of an AMQP URL."""
    target = URL(url)
    port = target.port or (5671 if target.scheme == "amqps" else 5672)
    return f"{target.host}:{port}"


def get_virtual_host(url: str) -> str:
    """Return the virtual host of an AMQP URL; without one, the default ``/``."""
    return URL(url).path.removeprefix("/") or "/"


def describe_mongo_url(url: str) -> str:
    """Return the hosts and ports of a MongoDB URL, without user, password and options."""
    return ",".join(_split_hosts(url))


def _split_hosts(url: str) -> list[str]:
    """Return the hosts with their ports; AMQP's URLs have one.

    What is not escaped in a password ends the host early, and would be shown as its port.
    """
    if re.search(r"\s", url):
        raise ValueError("holds white space: remove it, or write %20 for a space")
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    # Options may hold an @, but then the user's comes before.
    if "#" in rest or "@" in (after.partition("?")[0] if "@" in authority else after):
        raise ValueError(_ESCAPES)
    hosts = authority.rpartition("@")[2]
    return hosts.split(",") if url.startswith("mongodb://") else [hosts]


def _check_host(host: str, form: str) -> None:
    """Check ``host``, ``host:port`` or ``[address]:port``."""
    matched = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(.*))?", host)
    if matched is None or not matched[1]:
        raise ValueError(f"names no host: it should be {form}")
    port = matched[2]
    is_port = port is None or (
        port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= _LAST_PORT
    )
    if not is_port:
        raise ValueError(f"has a port that is no number from 1 to {_LAST_PORT:,}")
