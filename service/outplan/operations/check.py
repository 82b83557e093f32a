"""All that can be found out before a worker is started, or while one runs."""

import asyncio

from outplan.operations.broker_check import broker_findings
from outplan.operations.findings import Finding, not_checked
from outplan.operations.settings_check import settings_findings
from outplan.operations.store_check import store_findings
from outplan.settings import Settings, usable_settings, variable

_BROKERS = ("amqp_url", "prefix", "partitions")
_STORES = ("mongo_url", "mongo_database", "prefix", "partitions")


async def findings() -> tuple[list[Finding], bool]:
    """Check settings, RabbitMQ and MongoDB; and whether a worker could read its settings.

    What hangs on a setting that is wrong is not checked.
    """
    settings, wrong = usable_settings()
    found = settings_findings(settings, wrong)
    broker, store = await asyncio.gather(
        _unless_wrong("rabbitmq", _BROKERS, settings, wrong),
        _unless_wrong("mongodb", _STORES, settings, wrong),
    )
    return [*found, *broker, *store], not wrong


async def _unless_wrong(
    server: str, fields: tuple[str, ...], settings: Settings, wrong: dict[str, str]
) -> list[Finding]:
    if needed := [variable(field) for field in fields if field in wrong]:
        return not_checked([server], f"it takes {' and '.join(needed)}")
    return await (broker_findings if server == "rabbitmq" else store_findings)(settings)
