"""Print outplan events until Ctrl-C; needs only aio-pika.

python examples/subscribe.py '*.5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11.*'
"""

import argparse
import asyncio
import contextlib
import os

import aio_pika


async def print_events(options: argparse.Namespace) -> None:
    """Print each event's routing key and body."""
    async with await aio_pika.connect(options.amqp_url) as connection:
        channel = await connection.channel()
        # If you must not miss an event, name the queue and declare it durable.
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{options.prefix}.events", options.pattern)
        async with queue.iterator() as events:
            async for event in events:
                print(event.routing_key, event.body.decode(), sep="\n", flush=True)
                await event.ack()


def main() -> None:
    """Read the command line and print events."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    amqp_url = os.environ.get("OUTPLAN_AMQP_URL") or "amqp://guest:guest@localhost:5672/"
    parser.add_argument("--amqp-url", default=amqp_url, help="default: OUTPLAN_AMQP_URL")
    parser.add_argument("--prefix", default="outplan", help="the worker's OUTPLAN_PREFIX")
    parser.add_argument("pattern", nargs="?", default="#", help="a binding key; default: all")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(print_events(parser.parse_args()))


if __name__ == "__main__":
    main()
