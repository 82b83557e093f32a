"""Check that MongoDB is as a worker needs it, without changing anything."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from warnings import catch_warnings

from outplan.domain.layout import Layout
from outplan.errors import OutplanError, StoreUnsuitable, WrongSetting
from outplan.mongodb.driver import describe_driver, find_untested_pair
from outplan.mongodb.inspection import OTHER_VALIDATOR, SECONDS, MongoInspector
from outplan.mongodb.validators import (
    EVENTS,
    FORGET_SECONDS,
    SEEN_INDEX,
    VALIDATION_LEVEL,
    VERSION_INDEX,
    WORKERS,
    build_validators,
)
from outplan.operations.findings import Finding, not_checked, ok, problem, warning
from outplan.operations.layout_check import check_layout
from outplan.settings import Settings

T = TypeVar("T")

_MIN_VERSION: Final = (5, 0)
_CHECK_URL: Final = "check OUTPLAN_MONGO_URL, and that MongoDB runs there"
_MANUAL: Final = "see MongoDB's manual on connection strings"
_IGNORED: Final = f"the driver ignores it: correct OUTPLAN_MONGO_URL; {_MANUAL}"
_POINTS: Final = (
    "mongodb version", "mongodb privileges", "mongodb majority", "mongodb validators",
    "mongodb indexes",
)  # fmt: skip
_LAYOUT_POINTS: Final = ("layout", "mongodb fences")


async def check_store(settings: Settings) -> tuple[list[Finding], Layout | None]:
    """Check every point in turn; a problem does not hide the others.

    Also return the layout in force, on an empty system the one that a worker would write, or None
    if MongoDB does not tell.
    """
    try:
        with catch_warnings(record=True, action="always") as caught:
            inspector = MongoInspector(settings.mongo_url, settings.mongo_database)
    except WrongSetting as error:
        unusable = problem("mongodb", str(error), _MANUAL)
        return [unusable, *not_checked((*_POINTS, *_LAYOUT_POINTS), "the URL cannot be used")], None
    driver = _report_driver(settings.mongo_driver)
    warnings = (str(each.message).removesuffix(" Refer to docstring.") for each in caught)
    ignored = [problem("mongodb url", text, _IGNORED) for text in warnings]
    try:
        reached = await _check_primary(inspector)
        if reached.state != "ok":
            rest = not_checked((*_POINTS, *_LAYOUT_POINTS), "no primary answers")
            return [*ignored, driver, reached, *rest], None
        found = await _check_points(inspector, settings)
        about_layout, layout = await _check_layout(inspector, settings)
        return [*ignored, driver, reached, *found, *about_layout], layout
    finally:
        await inspector.close()


def _report_driver(driver: str) -> Finding:
    point, text = "mongodb driver", describe_driver(driver)
    if untested := find_untested_pair(driver):
        remedy = "install pymongo<4.18, or set OUTPLAN_MONGO_DRIVER=pymongo"
        return warning(point, f"{text}: {untested}", remedy)
    return ok(point, text)


async def _check_points(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    checks: tuple[Callable[[], Awaitable[list[Finding]]], ...] = (
        lambda: _check_version(inspector),
        lambda: _check_privileges(inspector, settings),
        lambda: _check_majority(inspector),
        lambda: _check_validators(inspector, settings),
        lambda: _check_indexes(inspector, settings),
    )
    found: list[Finding] = []
    for point, check in zip(_POINTS, checks, strict=True):
        result = await _attempt(point, check())
        found += [result] if isinstance(result, Finding) else result
    return found


async def _check_layout(
    inspector: MongoInspector, settings: Settings
) -> tuple[list[Finding], Layout | None]:
    """Check the layout, and the fences of its queues."""
    point, fences = _LAYOUT_POINTS
    result = await _attempt(point, check_layout(inspector, settings))
    if isinstance(result, Finding):
        return [result, *not_checked([fences], "the layout is unknown")], None
    found, layout = result
    holders = await _attempt(fences, _check_fences(inspector, settings, layout))
    return [*found, *([holders] if isinstance(holders, Finding) else holders)], layout


async def _attempt(point: str, check: Awaitable[T]) -> T | Finding:
    """Return the check's result, or a problem if MongoDB does not let it run."""
    try:
        async with asyncio.timeout(2 * SECONDS):
            return await check
    except StoreUnsuitable as error:
        return problem(point, str(error), "grant the user readWrite and dbAdmin")
    except TimeoutError:
        return problem(point, f"no answer within {2 * SECONDS} s", _CHECK_URL)
    except OutplanError as error:
        return problem(point, str(error), "see MongoDB's log")


async def _check_primary(inspector: MongoInspector) -> Finding:
    try:
        hello = await inspector.ask_hello()
    except StoreUnsuitable as error:
        return problem("mongodb", str(error), "check user, password and authSource in the URL")
    except OutplanError as error:
        return await _report_unreachable(inspector, error)
    if hello.get("msg") == "isdbgrid":
        return ok("mongodb", "a mongos answers")
    if "setName" not in hello:
        remedy = "start mongod with --replSet rs0 and run rs.initiate() once; one node is enough"
        return problem("mongodb", "it is no replica set, so it has no transactions", remedy)
    return ok("mongodb", f"{hello['me']} is primary of {hello['setName']}")


async def _report_unreachable(inspector: MongoInspector, error: OutplanError) -> Finding:
    try:
        why = await inspector.find_obstacle()
    except OutplanError as obstacle:
        why = str(obstacle)
    if why:
        return problem("mongodb", why, "a worker needs a replica set with a primary")
    reason = str(error).removeprefix("no primary answers: ")
    return problem("mongodb", f"no primary within {SECONDS} s: {reason}", _CHECK_URL)


async def _check_version(inspector: MongoInspector) -> list[Finding]:
    version = await inspector.read_version()
    text = ".".join(map(str, version))
    if version < _MIN_VERSION:
        return [problem("mongodb version", text, "upgrade to MongoDB 5.0 or later")]
    return [ok("mongodb version", text)]


async def _check_privileges(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    user, missing = await inspector.find_missing_privileges()
    if missing:
        remedy = f"grant {user} readWrite and dbAdmin on {settings.mongo_database}"
        return [problem("mongodb privileges", f"{user} may not {'; '.join(missing)}", remedy)]
    return [
        ok(
            "mongodb privileges",
            f"{user} has every privilege needed" if user else "MongoDB asks for no login",
        )
    ]


async def _check_majority(inspector: MongoInspector) -> list[Finding]:
    await inspector.await_majority()
    return [ok("mongodb majority", "a majority of the replica set confirms writes")]


async def _check_validators(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    drifts = await inspector.compare_validators()
    return [_report_validator(name, drifts, settings.mongo_database) for name in build_validators()]


def _report_validator(name: str, drifts: dict[str, str | None], database: str) -> Finding:
    point = f"collection {name}"
    if name not in drifts:
        return ok(point, "does not exist yet; a worker creates it")
    drift = drifts[name]
    if drift is None:
        return ok(point, "its validator is the worker's")
    options = f'validationLevel: "{VALIDATION_LEVEL}", validationAction: "error"'
    command = f'{{collMod: "{name}", {options}}}'
    remedy = f"db.getSiblingDB({database!r}).runCommand({command})"
    if drift == OTHER_VALIDATOR:
        remedy = (
            "restart a worker of the newest version in use: it sets the validator when it starts"
        )
    return problem(point, drift, remedy)


async def _check_indexes(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    version, seen = await inspector.compare_version_index(), await inspector.compare_seen_index()
    return [
        _report_index(VERSION_INDEX, version, "unique on outplan_id and version", settings, EVENTS),
        _report_index(
            f"{SEEN_INDEX} of {WORKERS}", seen, f"workers are forgotten after {FORGET_SECONDS:,} s",
            settings, WORKERS,
        ),
    ]  # fmt: skip


def _report_index(
    name: str, drift: str | None, purpose: str, settings: Settings, collection: str
) -> Finding:
    point = f"index {name}"
    if drift is None:
        return ok(point, "does not exist yet; a worker creates it")
    if not drift:
        return ok(point, purpose)
    where = f"db.getSiblingDB({settings.mongo_database!r}).{collection}"
    return problem(
        point, drift, f"drop it in {where}; a worker creates the right one when it starts"
    )


async def _check_fences(
    inspector: MongoInspector, settings: Settings, layout: Layout
) -> list[Finding]:
    topology = layout.build_topology(settings.prefix)
    queues = {q.name for q in (*topology.command_queues, *layout.list_consumed(settings.prefix))}
    holders = await inspector.list_holders(queues)
    if not holders:
        return [ok("mongodb fences", "no worker has claimed a queue here yet")]
    return [
        ok(f"fence {h.queue}", f"claimed by {h.worker}, session {h.epoch:,}, "
           f"{h.batches:,} batches in all")
        for h in sorted(holders, key=lambda holder: holder.queue)
    ]  # fmt: skip
