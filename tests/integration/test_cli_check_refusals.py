"""Run ``outplan check`` on servers of its own that refuse permissions or do not answer."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, NotPrimaryError
from yarl import URL

from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers, reserve_ports, start_servers
from outplan.testing.servers.processes import find_programs
from tests.integration.test_cli_check import check, problems
from tests.support.worker_process import run_worker, start_worker
from tests.support.world import EVENT_QUEUE


@pytest.fixture(scope="module")
def own() -> Iterator[Servers]:
    """Start servers whose users and alarms these tests change."""
    with start_servers("processes") as found:
        yield found


@pytest.fixture
async def deployment(own: Servers) -> AsyncIterator[Deployment]:
    async with open_deployment(own, further_queues=[EVENT_QUEUE]) as found:
        yield found


ALL = {"configure": "^{p}\\.", "write": "^{p}\\.|^amq\\.default$", "read": "^{p}\\."}


def add_user(own: Servers, deployment: Deployment, **permissions: str) -> str:
    """Add a user with these permissions, by default the documented ones; return its URL."""
    user = deployment.prefix
    own.rabbitmq.ctl("add_user", user, "secret")
    granted = [rule.format(p=deployment.prefix) for rule in {**ALL, **permissions}.values()]
    own.rabbitmq.ctl("set_permissions", "-p", "/", user, *granted)
    return str(URL(deployment.amqp_url).with_user(user).with_password("secret"))


@pytest.mark.parametrize("with_worker", [True, False])
@pytest.mark.parametrize("partitions", ["1", "2"])
async def test_the_documented_permissions_are_enough(
    own: Servers, deployment: Deployment, with_worker: bool, partitions: str
) -> None:
    url = add_user(own, deployment)
    settings = {"OUTPLAN_AMQP_URL": url, "OUTPLAN_PARTITIONS": partitions}
    if with_worker:
        async with run_worker(deployment, **settings):
            code, found = await check(deployment, **settings)
    else:
        code, found = await check(deployment, **settings)
    assert (code, problems(found)) == (0, [])


@pytest.mark.parametrize(
    ("with_worker", "permissions", "points", "names"),
    [
        (True, {"configure": ""}, ["permission to configure"], ["commands", "events", "rejected"]),
        (False, {"configure": "\\.(commands|events)$"}, ["permission to configure"], ["rejected"]),
        (True, {"read": ""}, ["permission to bind", "permission to read"], ["commands"]),
        (
            False,
            {"write": ""},
            ["permission to bind", "permission to write"],
            ["commands", "events"],
        ),
        (True, {"write": "^{p}\\."}, ["permission to write"], ["the default exchange"]),
        (False, {"write": "^{p}\\.commands|^amq\\.default$"}, ["permission to write"], ["events"]),
    ],
)
async def test_a_missing_permission_is_reported_with_the_command_that_grants_it(
    own: Servers,
    deployment: Deployment,
    with_worker: bool,
    permissions: dict[str, str],
    points: list[str],
    names: list[str],
) -> None:
    if with_worker:
        async with run_worker(deployment):
            pass
    url = add_user(own, deployment, **permissions)
    code, found = await check(deployment, OUTPLAN_AMQP_URL=url)

    assert (code, problems(found)) == (1, points)
    assert all(any(name in found[point][1] for point in points) for name in names)
    grant = found[points[0]][2]
    assert "secret" not in str(found)
    words = [word.strip("'") for word in grant.split()]
    own.rabbitmq.ctl(*words[1:])
    code, found = await check(deployment, OUTPLAN_AMQP_URL=url)
    assert (code, problems(found)) == (0, [])


@pytest.mark.parametrize(
    ("permissions", "point", "name"),
    [
        ({"write": "^(?!.*alternate)"}, "permission to write", "commands.alternate"),
        ({"write": "^(?!.*slots)"}, "permission to bind", "commands.slots"),
        ({"read": "^(?!.*slots)"}, "permission to bind", "commands.slots"),
        ({"read": "^(?!.*alternate)"}, "permission to bind", "commands.alternate"),
        ({"configure": "^(?!.*lock)"}, "permission to configure", "commands.lock"),
        ({"configure": "^(?!.*partitions)"}, "permission to configure", "commands.partitions"),
    ],
)
async def test_a_permission_whose_lack_stops_a_worker_is_reported_before_it_starts(
    own: Servers, deployment: Deployment, permissions: dict[str, str], point: str, name: str
) -> None:
    url = add_user(own, deployment, **permissions)
    settings: dict[str, Any] = {"OUTPLAN_AMQP_URL": url, "OUTPLAN_PARTITIONS": "2"}
    code, found = await check(deployment, **settings)
    assert (code, problems(found)) == (1, [point])
    assert name in found[point][1]
    worker = await start_worker(deployment, **settings)
    try:
        assert await worker.wait() == 1
        assert name in worker.errors
    finally:
        await worker.kill()


async def test_a_virtual_host_without_permission_is_reported(
    own: Servers, deployment: Deployment
) -> None:
    url = URL(deployment.amqp_url).with_user(deployment.prefix).with_password("secret")
    own.rabbitmq.ctl("add_user", deployment.prefix, "secret")
    code, found = await check(deployment, OUTPLAN_AMQP_URL=str(url))
    assert (code, problems(found)) == (1, ["rabbitmq virtual host"])
    assert "refused for user" in found["rabbitmq virtual host"][1]


async def test_an_alarm_is_reported_and_blocks_no_other_check(
    own: Servers, deployment: Deployment
) -> None:
    own.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    try:
        code, found = await check(deployment)
    finally:
        own.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "2GB")
    assert (code, problems(found)) == (1, ["rabbitmq alarms"])
    assert found["permission to write"][0] == "not checked"
    assert found["mongodb majority"][0] == "ok"


@pytest.mark.parametrize("name", ["rabbitmq", "mongodb"])
async def test_a_server_that_hangs_is_reported_after_seconds(
    own: Servers, deployment: Deployment, name: str
) -> None:
    server = getattr(own, name)
    other = {"rabbitmq": "mongodb", "mongodb": "rabbitmq"}[name]
    server.pause()
    try:
        code, found = await check(deployment)
    finally:
        server.resume()
    assert (code, problems(found)) == (1, [name])
    assert found[f"{other} version"][0] == "ok"


@pytest.fixture(scope="module")
def login_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a MongoDB that requires a login; return its URL, a format for user and password."""
    with reserve_ports(1) as (port,):
        process = _start_mongod_with_logins(tmp_path_factory.mktemp("guarded"), port)
        try:
            _users(port)
            yield f"mongodb://{{}}@127.0.0.1:{port}/?replicaSet=rs0&authSource=admin"
        finally:
            process.kill()
            process.wait()


def _start_mongod_with_logins(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    key = folder / "key"
    key.write_text("a" * 40)
    key.chmod(0o400)
    command: list[str] = [
        find_programs().mongod, "--dbpath", str(folder), "--port", str(port),
        "--replSet", "rs0", "--keyFile", str(key), "--bind_ip", "127.0.0.1",
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _users(port: int) -> None:
    url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    roles = {
        "reader": ["read"],
        "writer": ["readWrite"],
        "worker": ["readWrite", "dbAdmin"],
        "keeper": ["keeper", "dbAdmin"],
    }
    everything = {"db": "guarded", "collection": ""}
    kept = {"resource": everything, "actions": ["find", "insert", "update"]}
    with MongoClient[dict[str, Any]](url) as mongo:
        members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
        mongo.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        while True:
            try:
                # MongoDB allows this from localhost while there is no user.
                mongo.admin.command("createUser", "root", pwd="pw", roles=["root"])
                break
            except (NotPrimaryError, AutoReconnect):
                continue
    with MongoClient[dict[str, Any]](url, username="root", password="pw") as mongo:
        mongo["guarded"].command("createRole", "keeper", privileges=[kept], roles=[])
        for user, names in roles.items():
            granted = [{"role": name, "db": "guarded"} for name in names]
            mongo.admin.command("createUser", user, pwd="pw", roles=granted)


@pytest.mark.parametrize(
    ("login", "expected", "words"),
    [
        ("worker:pw", [], "worker@admin has every privilege needed"),
        ("writer:pw", ["mongodb privileges"], "collMod on outplans"),
        ("keeper:pw", ["mongodb privileges"], "may not remove on outplan_workers"),
        ("reader:pw", ["mongodb privileges", "mongodb majority"], "insert on outplans"),
        ("worker:wrong", ["mongodb"], ""),
    ],
)
async def test_missing_privileges_in_mongodb_are_reported(
    deployment: Deployment, login_url: str, login: str, expected: list[str], words: str
) -> None:
    settings = {"OUTPLAN_MONGO_URL": login_url.format(login), "OUTPLAN_MONGO_DATABASE": "guarded"}
    code, found = await check(deployment, **settings)
    assert (code, problems(found)) == (1 if expected else 0, expected)
    assert words in found["mongodb privileges"][1]
    assert "pw" not in str(found)


async def test_a_missing_login_for_mongodb_is_reported(
    deployment: Deployment, login_url: str
) -> None:
    url = login_url.replace("{}@", "").replace("&authSource=admin", "")
    code, found = await check(deployment, OUTPLAN_MONGO_URL=url, OUTPLAN_MONGO_DATABASE="guarded")
    assert code == 1
    assert "mongodb majority" in problems(found)
    assert "requires authentication" in found["mongodb majority"][1]


@pytest.mark.parametrize(
    ("login", "words"),
    [("reader:pw", "grant the user readWrite and dbAdmin"), ("worker:wrong", "check user")],
)
async def test_a_worker_that_mongodb_refuses_stops_with_one_line(
    deployment: Deployment, login_url: str, login: str, words: str
) -> None:
    settings: dict[str, Any] = {
        "OUTPLAN_MONGO_URL": login_url.format(login), "OUTPLAN_MONGO_DATABASE": "guarded",
    }  # fmt: skip
    worker = await start_worker(deployment, **settings)
    assert await worker.wait() == 1
    assert worker.errors.count("\n") == 1, worker.errors
    assert words in worker.errors
