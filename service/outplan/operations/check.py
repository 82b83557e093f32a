"""Check settings, RabbitMQ and MongoDB, before a worker starts or while one runs."""

from outplan.operations.broker_check import check_broker
from outplan.operations.findings import Finding, not_checked
from outplan.operations.liveness_check import check_liveness
from outplan.operations.settings_check import check_settings
from outplan.operations.store_check import check_store
from outplan.settings import load_usable_settings, variable

_BROKER_SETTINGS = ("amqp_url", "prefix", "partitions")
_LIVENESS_SETTINGS = ("amqp_url", "management_url", "mongo_url", "mongo_database", "prefix")
_STORE_SETTINGS = ("mongo_url", "mongo_database", "prefix", "partitions")


async def run_checks() -> tuple[list[Finding], bool]:
    """Check everything; return the findings, and whether a worker would accept its settings.

    A server whose settings are wrong is not checked. RabbitMQ is checked against the layout that
    MongoDB keeps, so MongoDB comes first.
    """
    settings, wrong = load_usable_settings()
    found, layout = check_settings(settings, wrong), None
    if blocked := _block("mongodb", _STORE_SETTINGS, wrong):
        found += blocked
    else:
        findings, layout = await check_store(settings)
        found += findings
    found += _block("rabbitmq", _BROKER_SETTINGS, wrong) or await check_broker(settings, layout)
    if layout is not None and not _block("liveness", _LIVENESS_SETTINGS, wrong):
        found += await check_liveness(settings)
    return found, not wrong


def _block(server: str, fields: tuple[str, ...], wrong: dict[str, str]) -> list[Finding]:
    """Report a server that cannot be checked because of its settings; nothing if it can."""
    if needed := [variable(field) for field in fields if field in wrong]:
        return not_checked([server], f"correct {' and '.join(needed)} first")
    return []
