"""Run ``outplan publish`` with valid and invalid input."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

import pytest
import typer
from yarl import URL

from outplan.cli.options import CreateOptions, PreconditionOptions, UpdateOptions
from outplan.cli.parameters import parse_milliseconds, parse_seconds
from outplan.contract import schemas
from outplan.testing import Deployment
from tests.support.commands import run_command
from tests.support.shell import outplan, terminal
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import CUSTOMER, World

CREATE = (
    "publish", "create", "--customer-id", CUSTOMER, "--name", "evenings",
    "--source", "tel:+15559876543",
)  # fmt: skip
# Wrong usage is found before the command connects.
NOWHERE = Deployment("amqp://guest:guest@127.0.0.1:1/", "")


def test_every_field_of_the_contract_is_an_option() -> None:
    for name, options in (
        ("create", CreateOptions),
        ("update", UpdateOptions),
        ("delete", PreconditionOptions),
    ):
        schema = json.loads(schemas.read_schema_text(f"outplan_{name}"))
        named = {field.name for field in fields(options)} | {"id"}
        assert named == set(schema["properties"])


def test_declaring_the_commands_does_not_load_the_client() -> None:
    script = (
        "import sys, outplan.cli.app; print({'pydantic', 'aio_pika', 'motor'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


async def test_an_outplan_is_created_changed_and_deleted_by_options(
    deployment: Deployment, worker: WorkerProcess, world: World
) -> None:
    id_ = str(uuid4())
    created = await outplan(
        deployment, *CREATE, "--id", id_, "--detail", "weekdays", "--dial-timeout", "20000",
        "--max-try-count-0", "3", "--max-try-count-4", "1", "--message-id", "a-create",
    )  # fmt: skip
    assert (created.code, created.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in created.out.splitlines())
    assert lines["accepted,"] == "version 1"
    assert lines["command"] == "outplan_create a-create"
    assert (lines["id"], lines["source"]) == (id_, "tel:+15559876543")
    assert (lines["dial_timeout"], lines["max_try_count"]) == ("20000 ms", "3  0  0  0  1")

    address = json.dumps({"type": "sip", "target": "desk@example.org", "name": "the desk"})
    updated = await outplan(
        deployment, "publish", "update", id_, "--source", address, "--try-interval", "0",
        "--expected-version", "1",
    )  # fmt: skip
    assert updated.out.startswith("accepted, version 2\n")
    assert "sip:desk@example.org  the desk" in updated.out
    same = await outplan(deployment, "publish", "update", id_, "--try-interval", "0")
    assert (same.code, same.out.partition("\n")[0]) == (0, "unchanged, version 2")
    deleted = await outplan(deployment, "publish", "delete", id_, "--customer-id", CUSTOMER)
    assert deleted.out.startswith("accepted, version 3\n")

    document = await world.find_document(id_)
    assert document is not None
    assert (document["source"]["name"], document["max_try_count_4"]) == ("the desk", 1)
    assert not document["tm_delete"].startswith("9999")


async def test_json_output_has_the_shape_of_a_reply(
    deployment: Deployment, worker: WorkerProcess, world: World
) -> None:
    body = {
        "customer_id": CUSTOMER,
        "name": "x",
        "source": {"type": "tel", "target": "+15559876543"},
    }
    await world.ask("outplan_create", body, message_id="once")
    (reply,) = world.replies.popitem()[1]
    same = await outplan(
        deployment, "publish", "create", "--json", "--json-file", "-", "--message-id", "once",
        stdin=json.dumps(body).encode(),
    )  # fmt: skip
    assert same.code == 0
    assert same.json == {**reply, "duplicate": True}

    refused = await outplan(deployment, "publish", "delete", str(uuid4()), "--json")
    assert (refused.code, refused.err) == (3, "")
    assert refused.json["problem"]["code"] == "not_found"
    assert refused.json.keys() == {"command_id", "status", "duplicate", "problem"}


async def test_every_validation_error_is_listed_before_anything_is_sent() -> None:
    refused = await outplan(
        NOWHERE,
        "publish",
        "create",
        "--name",
        "",
        "--source",
        "tel:5559876543",
        "--dial-timeout",
        "30",
    )
    assert (refused.code, refused.out) == (5, "")
    assert refused.err.startswith("outplan: not sent: The command breaks its schema\n")
    for pointer in ("/customer_id: is required", "/name: ", "/source/target: ", "/dial_timeout: "):
        assert f"\n  {pointer}" in refused.err
    assert "milliseconds" in refused.err


async def test_the_worker_lists_the_errors_of_an_unvalidated_command(
    deployment: Deployment, worker: WorkerProcess, world: World
) -> None:
    refused = await outplan(
        deployment, "publish", "create", "--name", "", "--no-validate", "--message-id", "wrong"
    )
    assert refused.code == 3
    assert "\n  /customer_id: is required\n" in refused.err
    assert (await world.wait_for_rejected("wrong")).message_id == "wrong"


async def test_a_version_conflict_names_the_current_version(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    id_ = (await outplan(deployment, *CREATE, "--json")).json["outplan"]["id"]
    refused = await outplan(deployment, "publish", "delete", id_, "--expected-version", "7")
    assert refused.code == 3
    assert "another version" in refused.err
    assert "1" in refused.err


async def test_options_override_the_json_file(
    deployment: Deployment, worker: WorkerProcess, tmp_path: Path
) -> None:
    id_ = (await outplan(deployment, *CREATE, "--json")).json["outplan"]["id"]
    file = tmp_path / "update.json"
    file.write_text(json.dumps({"id": id_, "name": "from the file", "try_interval": 5_000}))
    updated = await outplan(
        deployment,
        "publish",
        "update",
        "--json-file",
        str(file),
        "--name",
        "from an option",
        "--json",
    )
    assert updated.json["outplan"]["name"] == "from an option"
    assert updated.json["outplan"]["try_interval"] == 5_000


async def test_a_file_about_another_outplan_is_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "update.json"
    file.write_text('{"id": "one", "name": "x"}')
    refused = await outplan(NOWHERE, "publish", "update", "another", "--json-file", str(file))
    assert (refused.code, refused.out) == (2, "")
    assert (
        "update.json names outplan one and the command line names another: remove one"
        in refused.err
    )


async def test_no_wait_ends_with_the_brokers_confirm(deployment: Deployment, world: World) -> None:
    sent = await outplan(deployment, *CREATE, "--no-wait", "--message-id", "sent")
    assert sent.code == 0
    assert sent.out.startswith(
        "sent, and confirmed by the broker\ncommand        outplan_create sent\n"
    )
    assert await world.count_waiting() == 1
    async with run_worker(deployment):
        event = await world.wait_for_event("sent")
    assert event["data"]["id"] in sent.out


@pytest.mark.parametrize("maxima", [(), ("--max-try-count-1", "0")])
async def test_an_outplan_that_dials_nobody_is_pointed_out(
    deployment: Deployment, worker: WorkerProcess, maxima: tuple[str, ...]
) -> None:
    created = await outplan(deployment, *CREATE, *maxima, "--json")
    assert created.json["status"] == "accepted"
    assert created.err.startswith("outplan: warning: all five max_try_count are 0")
    assert "dial nobody" in created.err
    id_ = created.json["outplan"]["id"]
    changed = await outplan(deployment, "publish", "update", id_, "--max-try-count-4", "1")
    assert (changed.code, changed.err) == (0, "")
    again = await outplan(deployment, "publish", "update", id_, "--max-try-count-4", "0")
    assert "dial nobody" in again.err


@pytest.mark.parametrize("given", [(), ("--id", str(uuid4()))])
async def test_json_has_the_outplans_id_also_without_a_reply(
    deployment: Deployment, world: World, given: tuple[str, ...]
) -> None:
    sent = await outplan(deployment, *CREATE, *given, "--no-wait", "--json")
    unknown = await outplan(
        deployment, *CREATE, *given, "--timeout", "500ms", "--json", "--message-id",
        sent.json["command_id"],
    )  # fmt: skip
    assert (sent.json["status"], unknown.json["status"]) == ("sent", "unknown")
    async with run_worker(deployment):
        event = await world.wait_for_event(sent.json["command_id"])
    assert sent.json["outplan_id"] == unknown.json["outplan_id"] == event["data"]["id"]
    invalid = await outplan(
        deployment, "publish", "delete", "9F962A97-99e6-5306-b7e9-d211d662d31", "--json"
    )
    assert (invalid.code, invalid.json["status"]) == (5, "not_sent")
    assert invalid.json["problem"]["code"] == "invalid_command"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("30s", 30_000), ("5m", 300_000), ("1500ms", 1_500), ("1.5s", 1_500), ("1m30s", 90_000),
     ("30000", 30_000)],
)  # fmt: skip
def test_a_duration_is_milliseconds_or_has_units(text: str, milliseconds: int) -> None:
    assert parse_milliseconds(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "s", "30 s", "30S", "1.0005s", "half", "1e3", "30ss", "-1s", "9" * 400 + "w"]
)
def test_another_text_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="30s, 5m or 1h"):
        parse_milliseconds(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), (0.5, 0.5), ("500ms", 0.5), ("5m", 300), ("1h", 3_600)]
)
def test_a_duration_of_seconds_may_have_units(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


async def test_an_unknown_outcome_tells_how_to_send_the_command_again(
    deployment: Deployment, world: World
) -> None:
    asked = await outplan(deployment, *CREATE, "--timeout", "1", "--json")
    assert asked.code == 4
    assert asked.json["status"] == "unknown"
    id_ = asked.json["command_id"]
    assert f"--message-id {id_}\n" in asked.err

    async with run_worker(deployment):
        await world.wait_for_event(id_)
        again = await outplan(deployment, *CREATE, "--message-id", id_)
    assert (again.code, again.out.partition("\n")[0]) == (
        0, "accepted, version 1, a duplicate: it took effect before",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create", "--source", "+15559876543"], "not type:target"),
        (["create", "--source", '{"type": '], "not JSON"),
        (["create", "--dial-timeout", "30 s"], "30s, 5m or 1h"),
        (["create", "--colour", "red"], "No such option"),
        (["create", "--name", "x", "--message-id", "x" * 256], "1 to 255 bytes"),
        # As from an unset shell variable: a new id each time would apply the command twice.
        (["create", "--name", "x", "--message-id", ""], "1 to 255 bytes"),
        (["create", "--name", "x", "--message-id", "\udcff"], "1 to 255 bytes"),
        (["create", "--source", '{"a":' * 20_000], "nested too deeply"),
        (["create", "--name", "x", "--amqp-url", "amqp://u:12#secret@h/"], "percent-encode"),
        (["create", "--name", "x", "--amqp-url", "amqp://u:12/secret@h/"], "percent-encode"),
        (["create", "--name", "x", "--timeout", "0"], "--timeout"),
        (["create", "--name", "x", "--amqp-url", "http://localhost/"], "amqp://"),
        (["create", "--name", "x", "--amqp-url", "amqp://h:99999/"], "a port that is no number"),
        (["create", "--name", "x", "--prefix", "a b"], "letters, digits"),
        (["update", "--name", "x"], "outplan's ID is missing"),
        (["delete", "--expected-version", "1"], "outplan's ID is missing"),
        (["create", "--json-file", "no-such-file.json"], "No such file"),
        (["create", "--json-file", "."], "directory"),
        (["create", "--json-file", "-"], "this is not JSON"),
        (["paint"], "No such command"),
    ],
)
async def test_wrong_usage_is_reported_and_nothing_is_sent(arguments: list[str], told: str) -> None:
    refused = await outplan(NOWHERE, "publish", *arguments, COLUMNS="200")
    assert (refused.code, refused.out) == (2, "")
    assert told in refused.err
    assert "secret" not in refused.err


async def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"name": ""}', encoding="utf-8-sig")
    judged = await outplan(NOWHERE, "publish", "create", "--json-file", str(file))
    assert judged.code == 5
    assert "/name" in judged.err


async def test_an_outcome_that_cannot_be_printed_tells_how_to_get_it_again(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    again = (*CREATE, "--message-id", "unprinted")
    full = os.open("/dev/full", os.O_WRONLY)
    async with run_command(deployment, *again, stdout=full) as publishing:
        os.close(full)
        assert await publishing.wait() == 4

    first, *_, last = publishing.err.decode().splitlines()
    assert first.startswith("outplan: accepted, but standard output cannot be written: No space")
    assert last.strip() == "--message-id unprinted"
    assert "a duplicate" in (await outplan(deployment, *again)).out


@pytest.mark.parametrize("text", ["[]", "7", '{"name": NaN}', "{'name': 1}", "\udcff", '{"a":1} x'])
async def test_a_file_that_is_no_json_object_is_wrong_usage(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    refused = await outplan(NOWHERE, "publish", "create", "--json-file", str(file))
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"outplan: cannot read {file}: this is ")


async def test_an_unreachable_broker_is_reported_in_one_line(
    deployment: Deployment, world: World
) -> None:
    missing = await outplan(NOWHERE, *CREATE, "--timeout", "1")
    assert (missing.code, missing.out, missing.err.count("\n")) == (1, "", 2)
    first, last = missing.err.splitlines()
    assert "nothing listens at 127.0.0.1:1; " in first
    assert last.startswith("outplan: no session within 1 s: nothing listens")

    wrong = str(URL(deployment.amqp_url).with_password("not-it"))
    refused = await outplan(deployment, *CREATE, OUTPLAN_AMQP_URL=wrong)
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "ACCESS_REFUSED" in refused.err
    assert "not-it" not in refused.err

    nobody = await outplan(deployment, *CREATE, "--prefix", "nowhere")
    assert nobody.code == 1
    assert "no exchange 'nowhere.commands'" in nobody.err
    assert "has a worker run" in nobody.err


async def test_ctrl_c_reports_an_unknown_outcome(deployment: Deployment, world: World) -> None:
    async with terminal(deployment, *CREATE, "--message-id", "given-up") as shell:
        await shell.wait_for("Waiting for")
        shell.press(b"\x03")
        assert await shell.wait() == 130
    assert "--message-id given-up" in shell.shown
    assert "interrupted" in shell.shown


async def test_a_terminal_gets_colour_unless_no_color_is_set(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    async with terminal(deployment, *CREATE) as coloured:
        assert await coloured.wait() == 0
    assert "\x1b[32maccepted, version 1" in coloured.shown
    async with terminal(deployment, *CREATE, NO_COLOR="1") as plain:
        assert await plain.wait() == 0
    assert "accepted, version 1" in plain.shown
    assert "\x1b[3" not in plain.shown


async def test_text_from_other_people_is_escaped(
    deployment: Deployment, worker: WorkerProcess
) -> None:
    shown = await outplan(deployment, *CREATE, "--detail", "not \u202ehidden")
    assert r"detail         not \u202ehidden" in shown.out
