"""Publish one outplan command and print its reply; needs nothing but aio-pika.

python examples/publish.py outplan_update '{"id": "d5fb7357-…", "try_interval": 3600000}'
"""

import argparse
import asyncio
import sys
import uuid

import aio_pika


async def ask(options: argparse.Namespace, body: bytes) -> bytes:
    """Publish the command, confirmed, and await its reply."""
    async with await aio_pika.connect(options.amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)
        command = aio_pika.Message(
            body,
            # Keep it when you send again what you are not sure of: then nothing happens twice.
            message_id=options.message_id,
            reply_to=replies.name,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        commands = await channel.get_exchange(f"{options.prefix}.commands")
        await commands.publish(command, routing_key=options.name)
        async with asyncio.timeout(30), replies.iterator(no_ack=True) as arriving:
            return (await anext(arriving)).body


def main() -> None:
    """Read the command line, publish, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("--amqp-url", default="amqp://guest:guest@localhost:5672/")
    parser.add_argument("--prefix", default="outplan", help="the worker's OUTPLAN_PREFIX")
    parser.add_argument("--message-id", default=str(uuid.uuid4()), help="default: a new UUID")
    parser.add_argument("name", help="outplan_create, outplan_update or outplan_delete")
    parser.add_argument("body", help="JSON, or - for standard input")
    options = parser.parse_args()
    body = sys.stdin.buffer.read() if options.body == "-" else options.body.encode()
    try:
        print(asyncio.run(ask(options, body)).decode())
    except TimeoutError:
        sys.exit("no reply for 30 s: the command waits in its queue; is a worker running?")


if __name__ == "__main__":
    main()
