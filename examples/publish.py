"""Publish one outplan command and print its reply; needs only aio-pika.

python examples/publish.py outplan_update '{"id": "d5fb7357-…", "try_interval": 3600000}'
"""

import argparse
import asyncio
import json
import os
import sys
import uuid

import aio_pika


def build_routing_key(name: str, body: bytes) -> str:
    """Add the outplan's slot to the name: the last two digits of its id, in lower case.

    A create without an id has no slot here. Give it one, to share the load over all partitions and
    to keep its order with the commands that follow.
    """
    outplan_id = json.loads(body).get("id")
    return f"{name}.{outplan_id[-2:].lower()}" if outplan_id else name


async def request(options: argparse.Namespace, body: bytes) -> bytes:
    """Publish the command, wait for the confirm, and return the reply's body.

    Raise TimeoutError if no reply arrives within 30 seconds.
    """
    async with await aio_pika.connect(options.amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)
        command = aio_pika.Message(
            body,
            # The idempotency key: keep it for a resend, and the command takes effect once.
            message_id=options.message_id,
            reply_to=replies.name,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        commands = await channel.get_exchange(f"{options.prefix}.commands")
        await commands.publish(command, routing_key=build_routing_key(options.name, body))
        async with asyncio.timeout(30), replies.iterator(no_ack=True) as incoming:
            return (await anext(incoming)).body


def main() -> None:
    """Read the command line, publish and print the reply."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    amqp_url = os.environ.get("OUTPLAN_AMQP_URL") or "amqp://guest:guest@localhost:5672/"
    parser.add_argument("--amqp-url", default=amqp_url, help="default: OUTPLAN_AMQP_URL")
    parser.add_argument("--prefix", default="outplan", help="the worker's OUTPLAN_PREFIX")
    parser.add_argument("--message-id", default=str(uuid.uuid4()), help="default: a new UUID")
    parser.add_argument("name", help="outplan_create, outplan_update or outplan_delete")
    parser.add_argument("body", help="JSON, or - for standard input")
    options = parser.parse_args()
    body = sys.stdin.buffer.read() if options.body == "-" else options.body.encode()
    try:
        print(asyncio.run(request(options, body)).decode())
    except TimeoutError:
        sys.exit("no reply within 30 s: the command waits in its queue; start a worker")


if __name__ == "__main__":
    main()
