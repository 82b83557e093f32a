"""Decide whether waiting mends what RabbitMQ refuses, and say what to do about it."""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionClosed,
    ConnectionNotAllowed,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from yarl import URL

from outplan.errors import BrokerRefused, BrokerUnavailable

_URL: Final = "the AMQP URL (OUTPLAN_AMQP_URL)"
_PREFIX: Final = "the prefix (OUTPLAN_PREFIX)"
_CHECK_URL: Final = f"check that RabbitMQ runs there, and {_URL}"
_PORTS: Final = f"RabbitMQ's AMQP port is 5672, or 5671 for amqps://; check {_URL}"
_LOGIN: Final = f"check the credentials, user and password, in {_URL}"
_MOST_QUOTED: Final = 40
# What OpenSSL calls an answer that is not TLS, in different versions.
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Advise on the closes with this ``code`` whose text has these ``words``, a pattern.

    ``stops``: only a person can mend it, so the worker stops, and a client gives up. Otherwise
    both wait and try again.
    """

    code: int
    words: str
    stops: bool
    advice: str


# The first that fits counts.
REFUSALS: Final = (
    Refusal(403, "Login was refused|invalid credentials", True, _LOGIN),
    Refusal(
        403, "", True, "grant the user this permission; outplan check prints the command"
    ),
    Refusal(404, "no exchange|no queue", False, f"has a worker run with {_PREFIX}?"),
    Refusal(405, "", False, "another connection holds it alone: end that one"),
    Refusal(406, " limit in ", True, "raise the limit: rabbitmqctl set_vhost_limits"),
    Refusal(406, "inequivalent arg", True, f"delete it once it is empty, or change {_PREFIX}"),
    Refusal(530, r"limit \(\d+\) is reached", False, "close connections, or raise the limit"),
    Refusal(
        530, "vhost .* not found", True,
        f"create the virtual host with rabbitmqctl add_vhost, or correct it in {_URL}",
    ),
    Refusal(
        530, "refused for user", True,
        f"grant the user permissions on the virtual host, or correct it in {_URL}",
    ),
    Refusal(530, "", True, f"check {_URL}"),
)  # fmt: skip

_CODES: Final[dict[type[BaseException], int]] = {
    AuthenticationError: 403,
    ProbableAuthenticationError: 403,
    ChannelAccessRefused: 403,
    ChannelNotFoundEntity: 404,
    ChannelLockedResource: 405,
    ChannelPreconditionFailed: 406,
    ConnectionNotAllowed: 530,
}


def explain_close(code: int, text: str) -> BrokerRefused | BrokerUnavailable:
    """Return the error for a connection or channel that the broker closes."""
    text = text.rstrip(". ")
    for refusal in REFUSALS:
        if refusal.code == code and re.search(refusal.words, text):
            kind = BrokerRefused if refusal.stops else BrokerUnavailable
            return kind(f"RabbitMQ refuses: {text}; {refusal.advice}")
    return BrokerUnavailable(f"the broker closed it: {code} {text}")


def translate(error: BaseException) -> BrokerRefused | BrokerUnavailable:
    """Return the BrokerUnavailable or BrokerRefused for one of the driver's exceptions."""
    if isinstance(error, AuthenticationError):
        return BrokerRefused(f"RabbitMQ refuses the user's way to log in; {_LOGIN}")
    if isinstance(error, IncompatibleProtocolError):
        return BrokerRefused(f"the server does not speak AMQP 0-9-1; {_PORTS}")
    if (code := _CODES.get(type(error))) is not None:
        return explain_close(code, str(error))
    if isinstance(error, ChannelClosed | ConnectionClosed) and len(error.args) == 2:
        return explain_close(*error.args)
    text = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else "")
    return BrokerUnavailable(": ".join(filter(None, (type(error).__name__, text))))


@dataclass(slots=True)
class Arrivals:
    """What has arrived from the server.

    ``first_bytes`` are what it sent first, ``last_at`` is when the last bytes came, by the
    monotonic clock, ``close`` is the code and the text with which it closed the connection.
    """

    has_socket: bool = False
    first_bytes: bytes = b""
    last_at: float = 0.0
    close: tuple[int, str] | None = None

    @property
    def is_foreign(self) -> bool:
        """True if the server's first bytes are no AMQP frame for a method."""
        return self.first_bytes[:1] not in (b"", b"\x01")


def explain_failed_opening(
    error: BrokerRefused | BrokerUnavailable, arrivals: Arrivals, url: URL, vhost: str
) -> BrokerRefused | BrokerUnavailable:
    """Return the error for a connection that did not open, from all that is known of it."""
    address = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
    if arrivals.close is not None:
        return explain_close(*arrivals.close)
    if arrivals.is_foreign:
        return BrokerRefused(_describe_foreign(arrivals.first_bytes, address))
    if isinstance(error, BrokerRefused):
        return error
    causes = list(_list_causes(error))
    if not arrivals.has_socket:
        return _explain_no_socket(causes, address)
    silent = any(isinstance(cause, TimeoutError) for cause in causes)
    if not arrivals.first_bytes:
        how = "takes connections and says nothing" if silent else "closes each connection at once"
        return BrokerUnavailable(f"the server at {address} {how}: is it RabbitMQ? {_PORTS}")
    if silent:
        return BrokerUnavailable(f"RabbitMQ at {address} does not answer in time")
    return BrokerUnavailable(
        f"RabbitMQ at {address} ends the connection while it opens the virtual host {vhost!r}; "
        f"see RabbitMQ's log, and check {_URL}"
    )


def _explain_no_socket(
    causes: list[BaseException], address: str
) -> BrokerRefused | BrokerUnavailable:
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerRefused(
                f"the certificate of {address} is not trusted: {cause.verify_message}; correct "
                f"the host or cafile in {_URL}, or the certificate"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return BrokerRefused(f"the server at {address} does not speak TLS; {_PORTS}")
        if isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError):
            return BrokerRefused(f"a file in {_URL} cannot be read: {cause.strerror}")
    text = str(causes[0]) if causes else ""
    if any(isinstance(c, ConnectionRefusedError) for c in causes) or "Errno 111" in text:
        return BrokerUnavailable(f"nothing listens at {address}; {_CHECK_URL}")
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return BrokerUnavailable(f"{address} does not answer; {_CHECK_URL}")
    why = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), text)
    return BrokerUnavailable(f"no connection to {address}: {why}; {_CHECK_URL}")


def _describe_foreign(first_bytes: bytes, address: str) -> str:
    if first_bytes.startswith(b"\x15\x03"):  # An alert of TLS.
        return f"the server at {address} speaks TLS; use amqps:// in {_URL}"
    quoted = first_bytes[:_MOST_QUOTED].decode("ascii", "backslashreplace")
    said = "".join(c if c.isprintable() else "." for c in quoted)
    return f"the server at {address} does not speak AMQP 0-9-1, it says {said!r}; {_PORTS}"


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield what an error was raised from, the closest first."""
    while error is not None and (error := error.__cause__ or error.__context__) is not None:
        yield error
