"""Test that the servers of all other tests are real, obey, and leave nothing behind."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from outplan.testing import (
    NotControllable,
    Server,
    ServerFailed,
    Servers,
    ServersUnavailable,
    start_servers,
)
from outplan.testing.servers import ports
from outplan.testing.servers import processes as child_processes
from tests.support.brokers import is_listening, list_containers, port_of, skip_without_docker
from tests.support.leak_check import (
    LOOPBACK,
    SERVER_PROGRAMS,
    Process,
    any_alive,
    find_descendants,
    find_listening_addresses,
    wait_until,
)

ROOT = Path(__file__).parents[2]
AMQP_VARIABLE = "OUTPLAN_TEST_AMQP_URL"
MONGO_VARIABLE = "OUTPLAN_TEST_MONGO_URL"

PARENT = """
import sys
from outplan.testing import start_servers
with start_servers(sys.argv[1]) as servers:
    print(servers.rabbitmq.url, servers.mongodb.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (AMQP_VARIABLE, MONGO_VARIABLE, "OUTPLAN_TEST_SERVERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def processes() -> Iterator[Servers]:
    with start_servers("processes") as servers:
        yield servers


@pytest.fixture(scope="module")
def docker() -> Iterator[Servers]:
    skip_without_docker()
    with start_servers("docker") as servers:
        yield servers


@pytest.fixture(scope="module", params=["processes", "docker"])
def own(request: pytest.FixtureRequest) -> Servers:
    servers: Servers = request.getfixturevalue(request.param)
    return servers


async def test_servers_report_their_versions(own: Servers) -> None:
    assert int(own.rabbitmq.version.split(".")[0]) >= 3
    assert own.rabbitmq.version in own.rabbitmq.ctl("version")
    assert int(own.mongodb.version.split(".")[0]) >= 6


def test_mongodb_supports_transactions(own: Servers) -> None:
    with mongo(own) as client, client.start_session() as session:
        with session.start_transaction():
            client.kept.pairs.insert_many([{"of": "pair"}, {"of": "pair"}], session=session)
        assert client.kept.pairs.delete_many({"of": "pair"}).deleted_count == 2


@pytest.mark.parametrize("ending", ["kill", "stop"])
async def test_messages_and_documents_survive_a_restart(own: Servers, ending: str) -> None:
    urls, key = (own.rabbitmq.url, own.mongodb.url), f"{ending}-{uuid4()}"
    await leave_message(own, key)
    with mongo(own) as client:
        client.kept.documents.insert_one({"_id": key})
    for server in (own.rabbitmq, own.mongodb):
        getattr(server, ending)()
        assert not is_listening(server)
        server.start()
    assert (own.rabbitmq.url, own.mongodb.url) == urls
    assert await take_message(own, key) == key.encode()
    with mongo(own) as client:
        assert client.kept.documents.find_one({"_id": key})


def test_restart_returns_when_the_server_takes_work(own: Servers) -> None:
    own.mongodb.restart()
    with mongo(own, patience=1.0) as client:
        assert client.kept.documents.insert_one({}).acknowledged


def test_a_paused_server_accepts_connections_and_answers_nothing(own: Servers) -> None:
    own.rabbitmq.pause()
    own.mongodb.pause()
    try:
        assert greeting(own.rabbitmq) == b""
        with mongo(own, patience=1.0) as client, pytest.raises(PyMongoError):
            client.admin.command("ping")
    finally:
        own.rabbitmq.resume()
        own.mongodb.resume()
    assert greeting(own.rabbitmq) != b""
    with mongo(own) as client:
        client.admin.command("ping")


def test_every_call_may_be_repeated(own: Servers) -> None:
    for call in ("pause", "pause", "start", "start", "resume", "kill", "kill", "stop", "start"):
        getattr(own.mongodb, call)()
    assert is_listening(own.mongodb)


def test_a_stopped_server_cannot_be_paused(own: Servers) -> None:
    own.mongodb.kill()
    with pytest.raises(ServerFailed, match="mongodb is not running"):
        own.mongodb.pause()
    own.mongodb.start()


def test_ctl_returns_output_or_raises_the_error(own: Servers) -> None:
    assert "guest" in own.rabbitmq.ctl("list_users", "--no-table-headers")
    with pytest.raises(ServerFailed, match="does not exist"):
        own.rabbitmq.ctl("change_password", "nobody", "secret")


def test_servers_given_by_url_are_used_and_not_controlled(
    processes: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AMQP_VARIABLE, processes.rabbitmq.url)
    monkeypatch.setenv(MONGO_VARIABLE, processes.mongodb.url)
    with start_servers() as servers:
        assert servers.mode == "urls"
        assert [server.url for server in (servers.rabbitmq, servers.mongodb)] == [
            server.url for server in (processes.rabbitmq, processes.mongodb)
        ]
        assert servers.mongodb.version == processes.mongodb.version
        for call in ("start", "stop", "kill", "restart", "pause", "resume"):
            with pytest.raises(NotControllable, match="mongodb was given by its URL"):
                getattr(servers.mongodb, call)()
        with pytest.raises(NotControllable, match="rabbitmq was given by its URL"):
            servers.rabbitmq.ctl("status")
    assert is_listening(processes.rabbitmq)
    assert is_listening(processes.mongodb)


@pytest.mark.parametrize(
    ("given", "missing"), [(AMQP_VARIABLE, MONGO_VARIABLE), (MONGO_VARIABLE, AMQP_VARIABLE)]
)
def test_one_url_without_the_other_is_an_error(
    monkeypatch: pytest.MonkeyPatch, given: str, missing: str
) -> None:
    monkeypatch.setenv(given, "amqp://127.0.0.1:1/")
    with pytest.raises(ServersUnavailable, match=f"^{missing} must be set"), start_servers():
        pass


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:1/", "127.0.0.1:1"])
def test_a_url_without_a_server_is_an_error(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(AMQP_VARIABLE, url)
    monkeypatch.setenv(MONGO_VARIABLE, "mongodb://127.0.0.1:1/")
    with pytest.raises(ServersUnavailable, match="rabbitmq does not answer"), start_servers():
        pass


def test_an_unknown_mode_is_an_error_that_lists_the_modes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTPLAN_TEST_SERVERS", "magic")
    with pytest.raises(ServersUnavailable, match="'magic', not auto, urls, docker, processes"):
        start_servers().__enter__()


def test_without_any_servers_the_error_says_what_to_set_or_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(child_processes, "RABBITMQ_FOLDER", tmp_path)
    monkeypatch.setattr(child_processes, "find_spec", lambda _: None)
    with pytest.raises(ServersUnavailable) as caught, start_servers():
        pass
    for remedy in (
        AMQP_VARIABLE,
        MONGO_VARIABLE,
        "docker command",
        "apt-get install rabbitmq-server",
        "Linux on x86-64 pip install 'outplan-service[testing]'",
    ):
        assert remedy in str(caught.value)


def test_docker_without_a_daemon_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///var/empty/no-daemon.sock")
    with pytest.raises(ServersUnavailable, match=r"(?i)no docker"), start_servers("docker"):
        pass


def test_a_server_that_exits_at_once_is_an_error_with_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mongod = tmp_path / "mongod"
    mongod.write_text("#!/bin/sh\necho error while loading libcurl.so.4\nexit 127\n")
    mongod.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(ServerFailed, match=r"mongodb exited .*\s.*libcurl\.so\.4"),
        start_servers("processes"),
    ):
        pass


def test_an_unavailable_image_is_logged_and_processes_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without_docker()
    monkeypatch.setenv("OUTPLAN_TEST_RABBITMQ_IMAGE", "127.0.0.1:1/nobody/has:this")
    with caplog.at_level(logging.WARNING), start_servers() as servers:
        assert servers.mode == "processes"
    assert "no servers by docker: 127.0.0.1:1/nobody/has:this" in caplog.text


def test_two_sessions_never_reserve_the_same_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports, "_PORTS", range(31_000, 31_100))
    with ports.reserve_ports(50) as ours, ports.reserve_ports(40) as theirs:
        assert not set(ours) & set(theirs)


def test_child_processes_listen_on_loopback_in_a_session_of_their_own(
    processes: Servers,
) -> None:
    members = {member for member in find_descendants(os.getpid()) if member.name in SERVER_PROGRAMS}
    assert {member.name for member in members} == SERVER_PROGRAMS
    assert find_listening_addresses(members) <= LOOPBACK
    assert os.getsid(0) not in {os.getsid(member.pid) for member in members}


def test_processes_and_their_folder_are_gone_when_the_context_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = find_descendants(os.getpid())
    with start_servers("processes"):
        members = find_descendants(os.getpid()) - before
        assert any(tmp_path.iterdir())
    assert {member.name for member in members} >= SERVER_PROGRAMS
    assert not any(tmp_path.iterdir())
    wait_until(lambda: not any_alive(members))


def test_processes_and_their_folder_are_gone_after_their_parent_was_killed(tmp_path: Path) -> None:
    with run_parent("processes", tmp_path) as (parent, _):
        members = find_descendants(parent.pid)
        assert {member.name for member in members} >= SERVER_PROGRAMS
        assert any(tmp_path.iterdir())
        parent.kill()
        wait_until(lambda: not any_alive(members))
        wait_until(lambda: not any(tmp_path.iterdir()))


def test_a_server_dies_with_its_supervisor_and_can_be_started_again(
    processes: Servers,
) -> None:
    (supervisor,) = [
        it for it in find_descendants(os.getpid()) if is_supervisor_of(processes.rabbitmq, it)
    ]
    members = find_descendants(supervisor.pid)
    assert {member.name for member in members} >= SERVER_PROGRAMS - {"mongod"}
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not any_alive(members))
    processes.rabbitmq.start()
    assert is_listening(processes.rabbitmq)


def test_containers_are_published_on_loopback_only(docker: Servers) -> None:
    for server in (docker.rabbitmq, docker.mongodb):
        published = [
            port for port in containers(server.url, "{{.Ports}}").split(", ") if "->" in port
        ]
        assert published == [f"127.0.0.1:{port_of(server.url)}->{published[0].split('->')[1]}"]


def test_containers_are_gone_when_the_context_ends() -> None:
    skip_without_docker()
    with start_servers("docker") as servers:
        names = [containers(server.url) for server in (servers.rabbitmq, servers.mongodb)]
        assert all(names)
    assert not [name for name in names if exists(name)]


def test_containers_are_gone_after_their_parent_was_killed(tmp_path: Path) -> None:
    skip_without_docker()
    with run_parent("docker", tmp_path) as (parent, urls):
        names = [containers(url) for url in urls]
        assert all(names)
        parent.kill()
        wait_until(lambda: not [name for name in names if exists(name)])


# Helpers: use the servers as a client, and inspect their processes.


async def leave_message(servers: Servers, body: str) -> None:
    async with await aio_pika.connect(servers.rabbitmq.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(body, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(body.encode()), body)
    # RabbitMQ writes a new queue to disk only after a moment: see RabbitServer.
    servers.rabbitmq.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")


async def take_message(servers: Servers, queue_name: str) -> bytes:
    async with await aio_pika.connect(servers.rabbitmq.url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(queue_name)
        message = await queue.get(no_ack=True)
        await queue.delete(if_unused=False, if_empty=False)
        return message.body


@contextmanager
def mongo(servers: Servers, patience: float = 10.0) -> Iterator[MongoClient[dict[str, Any]]]:
    milliseconds = int(patience * 1_000)
    with MongoClient[dict[str, Any]](
        servers.mongodb.url,
        serverSelectionTimeoutMS=milliseconds,
        socketTimeoutMS=milliseconds,
    ) as client:
        yield client


def greeting(server: Server) -> bytes:
    """Send the protocol header and return the answer of one second."""
    with socket.create_connection(("127.0.0.1", port_of(server.url)), timeout=1) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        try:
            return connection.recv(8)
        except TimeoutError:
            return b""


@contextmanager
def run_parent(mode: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], tuple[str, ...]]]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, mode],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        yield parent, tuple(parent.stdout.readline().split())


def is_supervisor_of(rabbitmq: Server, process: Process) -> bool:
    place = Path(f"/proc/{process.pid}")
    try:
        configuration = (place / "cwd" / "rabbitmq.conf").read_text()
        command = (place / "cmdline").read_text()
    except FileNotFoundError:
        return False
    return "supervisor.py\0guard" in command and f":{port_of(rabbitmq.url)}\n" in configuration


def containers(url: str, form: str = "{{.Names}}") -> str:
    """Return what `docker ps` tells of the container that publishes the URL's port."""
    return list_containers("--filter", f"publish={port_of(url)}", "--format", form)


def exists(container: str) -> bool:
    return list_containers("--all", "--filter", f"name={container}", "--quiet") != ""
