"""Check that MongoDB is as a worker needs it, without changing anything."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from warnings import catch_warnings

from outplan.contract.topology import build_topology
from outplan.errors import OutplanError, StoreUnsuitable, WrongSetting
from outplan.mongodb.inspection import OTHER_VALIDATOR, SECONDS, MongoInspector
from outplan.mongodb.translation import shorten
from outplan.mongodb.validators import EVENTS, VERSION_INDEX, build_validators
from outplan.operations.findings import Finding, not_checked, ok, problem
from outplan.settings import Settings

_MIN_VERSION: Final = (5, 0)
_CHECK_URL: Final = "check OUTPLAN_MONGO_URL, and that MongoDB runs there"
_MANUAL: Final = "see MongoDB's manual on connection strings"
_IGNORED: Final = f"the driver ignores it: correct OUTPLAN_MONGO_URL; {_MANUAL}"
_POINTS: Final = (
    "mongodb version", "mongodb privileges", "mongodb majority", "mongodb validators",
    "mongodb index", "mongodb fences",
)  # fmt: skip


async def check_store(settings: Settings) -> list[Finding]:
    """Check every point in turn; a problem does not hide the others."""
    try:
        with catch_warnings(record=True, action="always") as caught:
            inspector = MongoInspector(settings.mongo_url, settings.mongo_database)
    except WrongSetting as error:
        found = problem("mongodb", str(error), _MANUAL)
        return [found, *not_checked(_POINTS, "the URL cannot be used")]
    warnings = (str(each.message).removesuffix(" Refer to docstring.") for each in caught)
    ignored = [problem("mongodb url", text, _IGNORED) for text in warnings]
    try:
        reached = await _check_primary(inspector)
        if reached.state != "ok":
            return [*ignored, reached, *not_checked(_POINTS, "no primary answers")]
        return [*ignored, reached, *await _check_points(inspector, settings)]
    finally:
        await inspector.close()


async def _check_points(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    checks: tuple[Callable[[], Awaitable[list[Finding]]], ...] = (
        lambda: _check_version(inspector),
        lambda: _check_privileges(inspector, settings),
        lambda: _check_majority(inspector),
        lambda: _check_validators(inspector, settings),
        lambda: _check_index(inspector, settings),
        lambda: _check_fences(inspector, settings),
    )
    found: list[Finding] = []
    for point, check in zip(_POINTS, checks, strict=True):
        found += await _run_check(point, check)
    return found


async def _run_check(point: str, check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        async with asyncio.timeout(2 * SECONDS):
            return await check()
    except StoreUnsuitable as error:
        return [problem(point, shorten(error), "grant the user readWrite and dbAdmin")]
    except TimeoutError:
        return [problem(point, f"no answer within {2 * SECONDS} s", _CHECK_URL)]
    except OutplanError as error:
        return [problem(point, shorten(error), "see MongoDB's log")]


async def _check_primary(inspector: MongoInspector) -> Finding:
    try:
        hello = await inspector.ask_hello()
    except StoreUnsuitable as error:
        return problem("mongodb", shorten(error), "check user, password and authSource in the URL")
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
    return problem("mongodb", f"no primary within {SECONDS} s: {shorten(error)}", _CHECK_URL)


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
    command = f'{{collMod: "{name}", validationLevel: "strict", validationAction: "error"}}'
    remedy = f"db.getSiblingDB({database!r}).runCommand({command})"
    if drift == OTHER_VALIDATOR:
        remedy = (
            "restart a worker of the newest version in use: it sets the validator when it starts"
        )
    return problem(point, drift, remedy)


async def _check_index(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    point, drift = f"index {VERSION_INDEX}", await inspector.compare_index()
    if drift is None:
        return [ok(point, "does not exist yet; a worker creates it")]
    if not drift:
        return [ok(point, "unique on outplan_id and version")]
    where = f"db.getSiblingDB({settings.mongo_database!r}).{EVENTS}"
    return [
        problem(point, drift, f"drop it in {where}; a worker creates the right one when it starts")
    ]


async def _check_fences(inspector: MongoInspector, settings: Settings) -> list[Finding]:
    layout = build_topology(settings.prefix, settings.partitions or 1)
    holders = await inspector.list_holders(queue.name for queue in layout.command_queues)
    if not holders:
        return [ok("mongodb fences", "no worker has claimed a queue here yet")]
    return [
        ok(f"fence {h.queue}", f"claimed by {h.worker}, session {h.epoch:,}, "
           f"{h.batches:,} batches in all")
        for h in holders
    ]  # fmt: skip
