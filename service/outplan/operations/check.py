"""Check settings, RabbitMQ and MongoDB, before a worker starts or while one runs."""

import asyncio

from outplan.operations.broker_check import check_broker
from outplan.operations.findings import Finding, not_checked
from outplan.operations.settings_check import check_settings
from outplan.operations.store_check import check_store
from outplan.settings import Settings, load_usable_settings, variable

_BROKER_SETTINGS = ("amqp_url", "prefix", "partitions")
_STORE_SETTINGS = ("mongo_url", "mongo_database", "prefix", "partitions")


async def run_checks() -> tuple[list[Finding], bool]:
    """Check everything; return the findings, and whether a worker would accept its settings.

    A server whose settings are wrong is not checked.
    """
    settings, wrong = load_usable_settings()
    found = check_settings(settings, wrong)
    broker, store = await asyncio.gather(
        _check_server("rabbitmq", _BROKER_SETTINGS, settings, wrong),
        _check_server("mongodb", _STORE_SETTINGS, settings, wrong),
    )
    return [*found, *broker, *store], not wrong


async def _check_server(
    server: str, fields: tuple[str, ...], settings: Settings, wrong: dict[str, str]
) -> list[Finding]:
    if needed := [variable(field) for field in fields if field in wrong]:
        return not_checked([server], f"correct {' and '.join(needed)} first")
    return await (check_broker if server == "rabbitmq" else check_store)(settings)
