"""The exceptions that the client raises, as one tree.

ClientError
├── Refused             RabbitMQ refuses the credentials, the permission or a declaration
├── Unreachable         no session with the broker in time
│   └── NoExchange      RabbitMQ runs, but no worker has declared the commands' exchange
├── OutcomeUnknown      no outcome in time: ask again under the same message_id
└── CommandRejected     the worker rejected the command; ``problem`` says why
    ├── InvalidJson, MissingMessageId, UnknownCommand, InvalidCommand, TooLarge
    ├── InvalidProperties
    ├── NotFound, AlreadyExists, MessageIdReused, VersionConflict
    └── GivenUp         the code ``delivery_limit``
"""

from typing import Final

from outplan.contract.messages import Problem, ProblemError


class ClientError(Exception):
    """The root: ``except ClientError`` catches whatever the client raises."""


class Refused(ClientError):
    """Raised when RabbitMQ refuses something for good. The text says what."""


class Unreachable(ClientError):
    """Raised when there is no session with the broker by the deadline. The text says why."""


class NoExchange(Unreachable):
    """Raised at once when no worker with this prefix has ever declared the commands' exchange."""


class OutcomeUnknown(ClientError):
    """Raised when there is no outcome by the deadline, or when the client closes.

    The command may or may not take effect. Ask again under the same ``message_id``: it is not
    applied twice. ``trouble`` says what went wrong last.
    """

    def __init__(self, message_id: str, trouble: str) -> None:
        super().__init__(message_id, trouble)
        self.message_id = message_id
        self.trouble = trouble

    def __str__(self) -> str:
        return (
            f"no outcome of {self.message_id}: {self.trouble}; ask again under the same message_id"
        )


class CommandRejected(ClientError):
    """Raised when the command was rejected: nothing was stored. ``problem`` is the reason."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        errors = "".join(f"\n  {e.pointer or '/'}: {e.detail}" for e in self.errors)
        return f"{self.problem.title}: {self.problem.detail}{errors}"

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def errors(self) -> tuple[ProblemError, ...]:
        """The validation errors, each with its JSON Pointer; none for most codes."""
        return self.problem.errors or ()


class InvalidJson(CommandRejected):
    """Raised when the body is not a JSON object in UTF-8."""


class MissingMessageId(CommandRejected):
    """Raised when the message_id did not arrive as text."""


class UnknownCommand(CommandRejected):
    """Raised when the worker knows no such command."""


class InvalidCommand(CommandRejected):
    """Raised when the command breaks its schema; ``errors`` says where."""


class TooLarge(CommandRejected):
    """Raised when the body has more bytes than the contract allows."""


class InvalidProperties(CommandRejected):
    """Raised when the correlation_id or the reply_to did not arrive as UTF-8."""


class NotFound(CommandRejected):
    """Raised when there is no such outplan, it is deleted, or it is another customer's."""


class AlreadyExists(CommandRejected):
    """Raised when the id of a create is or was in use."""


class MessageIdReused(CommandRejected):
    """Raised when the message_id was accepted before with other content."""


class VersionConflict(CommandRejected):
    """Raised when ``expected_version`` is not the current version."""

    @property
    def current_version(self) -> int | None:
        return self.problem.current_version


class GivenUp(CommandRejected):
    """Raised when the command was rejected as a poison message, after repeated crashes."""


REJECTIONS: Final[dict[str, type[CommandRejected]]] = {
    "invalid_json": InvalidJson,
    "missing_message_id": MissingMessageId,
    "unknown_command": UnknownCommand,
    "invalid_command": InvalidCommand,
    "too_large": TooLarge,
    "invalid_properties": InvalidProperties,
    "not_found": NotFound,
    "already_exists": AlreadyExists,
    "message_id_reused": MessageIdReused,
    "version_conflict": VersionConflict,
    "delivery_limit": GivenUp,
}


def rejection(problem: Problem) -> CommandRejected:
    """Make the typed error for a problem."""
    return REJECTIONS[problem.code](problem)
