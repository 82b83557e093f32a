"""Check the stored layout against the setting."""

from outplan.domain.layout import Layout, describe_partitions
from outplan.mongodb.inspection import MongoInspector
from outplan.operations.findings import Finding, ok, problem, warning
from outplan.settings import Settings


def assume_layout(settings: Settings) -> Layout:
    """Return the layout that the first worker with these settings writes."""
    partitions = settings.partitions or 1
    return Layout(0, "steady", partitions, partitions)


async def check_layout(
    inspector: MongoInspector, settings: Settings
) -> tuple[list[Finding], Layout]:
    """Return findings, and the layout in force; on an empty system, the assumed one."""
    registry = inspector.open_registry(settings.prefix)
    layout = await registry.read_layout()
    if layout is None:
        assumed = assume_layout(settings)
        text = f"no worker has started here yet; the first one lays out {_count(assumed)}"
        return [ok("layout", text)], assumed
    found = [_report_layout(layout), *_check_setting(layout, settings)]
    if layout.partitions > 1:
        found.append(_report_unordered(await inspector.count_unordered(settings.prefix)))
    return found, layout


def _count(layout: Layout) -> str:
    return describe_partitions(layout.partitions)


def _report_layout(layout: Layout) -> Finding:
    where = f"phase {layout.phase}, generation {layout.generation:,}"
    if layout.is_steady:
        return ok("layout", f"{_count(layout)}, {where}")
    if layout.phase == "retire":
        text = f"{_count(layout)}, {where}: queues that no partition uses are not deleted yet"
    else:
        text = f"the change from {layout.former} to {_count(layout)} is not finished: {where}"
    remedy = f"if nobody runs it already, continue with outplan partitions {layout.partitions}"
    return warning("layout", text, remedy)


def _check_setting(layout: Layout, settings: Settings) -> list[Finding]:
    number = settings.partitions
    if number is None or number in layout.numbers:
        return []
    text = f"it is {number}, but the system has {_count(layout)}: a worker refuses to start"
    remedy = (
        f"set {layout.partitions} or unset it, or change the system with outplan partitions "
        f"{number}"
    )
    return [problem("setting OUTPLAN_PARTITIONS", text, remedy)]


def _report_unordered(count: int) -> Finding:
    if not count:
        return ok("slots", "all commands came with their outplan's slot")
    text = (
        f"{count:,} commands came with a bare routing key or a wrong slot: they have no order "
        "with the others of their outplan"
    )
    remedy = (
        "publish each command with its slot (docs/clients.md); see the metric "
        "outplan_unordered_commands_total"
    )
    return warning("slots", text, remedy)
