"""Print the demo in lines that read well in colour, without colour and in a file."""

import json
from typing import Any

from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console

from outplan.testing.servers import Servers

Document = dict[str, Any]

_COLOURS = {"accepted": "green", "unchanged": "yellow", "rejected": "red"}
_MARGIN = 11


class Output:
    """Print labels on the left, and beside them lines that can be copied whole."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def print_line(self, label: str, text: str, style: str | None = None) -> None:
        """Print lines beside their label, as plain text, without wrapping."""
        first, *rest = text.split("\n")
        self._print(f"  {label:<{_MARGIN - 2}}", "dim", end="")
        for each in (first, *(" " * _MARGIN + line for line in rest)):
            self._print(each, style)

    def print_heading(self, text: str) -> None:
        self._print(f"\n{text}", "bold")

    def print_servers(self, servers: Servers) -> None:
        self.print_line("RabbitMQ", f"{servers.rabbitmq.version}  {servers.rabbitmq.url}")
        self.print_line("MongoDB", f"{servers.mongodb.version}  {servers.mongodb.url}")

    def print_command(self, name: str, message_id: str, body: Document) -> None:
        self.print_line("command", f"{name}  message_id={message_id}", "cyan")
        self.print_line("", _json(body))

    def print_reply(self, reply: Document) -> None:
        said = [reply.get("status", "?")]
        said += [f"version {reply['version']}"] if "version" in reply else []
        said += ["duplicate"] if reply.get("duplicate") else []
        problem = reply.get("problem") or {}
        said += [f"{problem['status']} {problem['title']}"] if problem else []
        reasons = [f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", ())]
        self.print_line("reply", "\n".join([", ".join(said), *reasons]), _COLOURS.get(said[0]))

    def print_event(self, message: AbstractIncomingMessage | None, remark: str) -> None:
        if message is None:
            self.print_line("no event", remark, "red")
            return
        event = json.loads(message.body)
        told = f"version {event['version']}, message_id={message.message_id}"
        if event.get("changed"):
            told += f", changed: {', '.join(event['changed'])}"
        self.print_line("event", f"{message.routing_key}\n{told}", "magenta")
        if remark:
            self.print_line("", remark)

    def print_stored(self, document: Document, history: list[Document]) -> None:
        self.print_heading("Stored in MongoDB")
        self.print_line("document", _json(document))
        rows = (f"{e['version']}  {e['time']}  {e['type']}  by {e['_id']}" for e in history)
        self.print_line("history", "\n".join(rows), "magenta")

    def _print(self, text: str, style: str | None, end: str = "\n") -> None:
        self._console.print(
            text, style=style, end=end, markup=False, highlight=False, emoji=False, soft_wrap=True
        )


def _json(document: Document) -> str:
    """Format as one line if it fits, else with one line for each field."""
    text = json.dumps(document, ensure_ascii=False)
    if len(text) <= 80:  # a line of an old terminal
        return text
    fields = (
        f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in document.items()
    )
    return "{\n" + ",\n".join(fields) + "\n}"
