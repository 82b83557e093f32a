"""Serve on a port what is not RabbitMQ or MongoDB."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path


@asynccontextmanager
async def serve(
    greeting: bytes | None, *, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Greet every connection and close it, or, for None, say nothing; return the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if greeting is None:
                while await reader.read(1 << 16):
                    pass
            else:
                # The client speaks first; what is unread at the close would reset the connection.
                await reader.read(1 << 16)
                writer.write(greeting)
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


def make_untrusted_context(folder: Path) -> ssl.SSLContext:
    """Return a TLS context with a certificate that nobody has signed."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
