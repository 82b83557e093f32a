"""Whether MongoDB is what a worker needs. Nothing is changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from warnings import catch_warnings

from outplan.contract.topology import topology
from outplan.errors import OutplanError, StoreUnsuitable, WrongSetting
from outplan.mongodb.inspection import SECONDS, Survey
from outplan.mongodb.store import brief
from outplan.mongodb.validators import EVENTS, VERSION_INDEX, validators
from outplan.operations.findings import Finding, not_checked, ok, problem
from outplan.settings import Settings

_OLDEST: Final = (5, 0)
_URL: Final = "check OUTPLAN_MONGO_URL, and that MongoDB runs there"
_MANUAL: Final = "see MongoDB's manual on connection strings"
_IGNORED: Final = f"the driver takes no notice of it: mend OUTPLAN_MONGO_URL; {_MANUAL}"
_POINTS: Final = (
    "mongodb version", "mongodb privileges", "mongodb majority", "mongodb validators",
    "mongodb index", "mongodb fences",
)  # fmt: skip


async def store_findings(settings: Settings) -> list[Finding]:
    """Ask one thing after another; one that fails does not hide the others."""
    try:
        with catch_warnings(record=True, action="always") as warned:
            survey = Survey(settings.mongo_url, settings.mongo_database)
    except WrongSetting as error:
        found = problem("mongodb", str(error), _MANUAL)
        return [found, *not_checked(_POINTS, "the URL cannot be used")]
    said = (str(each.message).removesuffix(" Refer to docstring.") for each in warned)
    ignored = [problem("mongodb url", text, _IGNORED) for text in said]
    try:
        reached = await _reached(survey)
        if reached.state != "ok":
            return [*ignored, reached, *not_checked(_POINTS, "no primary answers")]
        return [*ignored, reached, *await _findings(survey, settings)]
    finally:
        await survey.close()


async def _findings(survey: Survey, settings: Settings) -> list[Finding]:
    async def held() -> list[Finding]:
        return await _fences(survey, settings)

    questions: tuple[Callable[[], Awaitable[list[Finding]]], ...] = (
        lambda: _version(survey),
        lambda: _privileges(survey, settings),
        lambda: _majority(survey),
        lambda: _validators(survey, settings),
        lambda: _index(survey, settings),
        held,
    )
    found: list[Finding] = []
    for point, question in zip(_POINTS, questions, strict=True):
        found += await _asked(point, question)
    return found


async def _asked(point: str, question: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        async with asyncio.timeout(2 * SECONDS):
            return await question()
    except StoreUnsuitable as error:
        return [problem(point, brief(error), "grant the user readWrite and dbAdmin")]
    except TimeoutError:
        return [problem(point, f"no answer within {2 * SECONDS} s", _URL)]
    except OutplanError as error:
        return [problem(point, brief(error), "see MongoDB's log")]


async def _reached(survey: Survey) -> Finding:
    try:
        hello = await survey.hello()
    except StoreUnsuitable as error:
        return problem("mongodb", brief(error), "check user, password and authSource in the URL")
    except OutplanError as error:
        return await _unreached(survey, error)
    if hello.get("msg") == "isdbgrid":
        return ok("mongodb", "a mongos answers")
    if "setName" not in hello:
        remedy = "start mongod with --replSet rs0 and run rs.initiate() once; one node will do"
        return problem("mongodb", "it is no replica set, and has no transactions", remedy)
    return ok("mongodb", f"{hello['me']} is primary of {hello['setName']}")


async def _unreached(survey: Survey, error: OutplanError) -> Finding:
    try:
        why = await survey.obstacle()
    except OutplanError as obstacle:
        why = str(obstacle)
    if why:
        return problem("mongodb", why, "a worker needs a replica set with a primary")
    return problem("mongodb", f"no primary within {SECONDS} s: {brief(error)}", _URL)


async def _version(survey: Survey) -> list[Finding]:
    version = await survey.version()
    text = ".".join(map(str, version))
    if version < _OLDEST:
        return [problem("mongodb version", text, "5.0 is the oldest that will do")]
    return [ok("mongodb version", text)]


async def _privileges(survey: Survey, settings: Settings) -> list[Finding]:
    user, missing = await survey.not_granted()
    if missing:
        remedy = f"grant {user} readWrite and dbAdmin on {settings.mongo_database}"
        return [problem("mongodb privileges", f"{user} may not {'; '.join(missing)}", remedy)]
    return [ok("mongodb privileges", f"{user} may do all" if user else "it asks for no login")]


async def _majority(survey: Survey) -> list[Finding]:
    await survey.majority()
    return [ok("mongodb majority", "a majority of the replica set confirms writes")]


async def _validators(survey: Survey, settings: Settings) -> list[Finding]:
    drifts = await survey.collections()
    return [_validator(name, drifts, settings.mongo_database) for name in validators()]


def _validator(name: str, drifts: dict[str, str | None], database: str) -> Finding:
    point = f"collection {name}"
    if name not in drifts:
        return ok(point, "not there yet; a worker makes it")
    drift = drifts[name]
    if drift is None:
        return ok(point, "its validator is as it should be")
    command = f'{{collMod: "{name}", validationLevel: "strict", validationAction: "error"}}'
    remedy = f"db.getSiblingDB({database!r}).runCommand({command})"
    if "another" in drift:
        remedy = "a worker that starts sets it: restart one, of the newest version that runs"
    return problem(point, drift, remedy)


async def _index(survey: Survey, settings: Settings) -> list[Finding]:
    point, drift = f"index {VERSION_INDEX}", await survey.index()
    if drift is None:
        return [ok(point, "not there yet; a worker makes it")]
    if not drift:
        return [ok(point, "unique on outplan_id and version, as it should be")]
    where = f"db.getSiblingDB({settings.mongo_database!r}).{EVENTS}"
    return [problem(point, drift, f"drop it, in {where}: a worker that starts makes the right one")]


async def _fences(survey: Survey, settings: Settings) -> list[Finding]:
    layout = topology(settings.prefix, settings.partitions)
    holders = await survey.holders(queue.name for queue in layout.command_queues)
    if not holders:
        return [ok("mongodb fences", "no worker has held a queue here yet")]
    return [
        ok(f"fence {h.queue}", f"last taken by {h.worker}, session {h.epoch:,}, "
           f"{h.batches:,} batches in all")
        for h in holders
    ]  # fmt: skip
