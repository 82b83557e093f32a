"""Run ``outplan import``: interrupted, killed, and on broken files."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from outplan.cli.lines import MAX_LINE_BYTES
from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers
from tests.support.shell import finish, outplan, start, terminal
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import EVENT_QUEUE, World, create_body, open_world

NOWHERE = Deployment("amqp://guest:guest@127.0.0.1:1/", "")


@pytest.fixture
async def elsewhere(servers: Servers) -> AsyncIterator[Deployment]:
    """Open another deployment with a worker of its own."""
    async with open_deployment(servers, further_queues=[EVENT_QUEUE]) as found, run_worker(found):
        yield found


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def creates(number: int) -> list[dict[str, Any]]:
    return [create_body(name=f"plan {n}") for n in range(number)]


def read_rejections(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def names_and_events(world: World) -> tuple[Counter[str], Counter[str]]:
    """Count how often each name is stored, and the events of each outplan."""
    outplans, events = await world.read_documents()
    return Counter(o["name"] for o in outplans), Counter(e["outplan_id"] for e in events)


async def test_outplans_and_commands_are_sent_and_counted(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    id_ = str(uuid4())
    file = write_lines(
        tmp_path / "plans.jsonl",
        create_body(id=id_),
        {"command": "outplan_update", "body": {"id": id_, "name": "a"}, "message_id": "mine"},
        {"command": "update", "body": {"id": id_, "name": "b"}},
        {"command": "update", "body": {"id": id_, "name": "b"}},
        {"command": "delete", "body": {"id": str(uuid4())}},
        create_body(name=""),
    )
    done = await outplan(deployment, "import", file, "--json")
    assert (done.code, done.err) == (3, "")
    expected = {"lines": 6, "accepted": 3, "unchanged": 1, "duplicates": 0, "rejected": 2}
    assert done.json.items() >= expected.items()
    assert done.json["rejected_file"] == f"{file}.rejected.jsonl"

    events = await world.read_history(id_)
    assert [e["type"] for e in events] == ["outplan_created", "outplan_updated", "outplan_updated"]
    assert events[1]["_id"] == "mine"


async def test_exported_documents_and_events_can_be_imported_elsewhere(
    deployment: Deployment,
    worker: WorkerProcess,
    world: World,
    elsewhere: Deployment,
    tmp_path: Path,
) -> None:
    kept, gone = str(uuid4()), str(uuid4())
    ids = {kept: str(uuid4()), gone: str(uuid4())}
    for id_ in (kept, gone):
        await world.ask("outplan_create", create_body(id=id_))
    await world.ask("outplan_update", {"id": kept, "name": "later", "try_interval": 0})
    await world.ask("outplan_delete", {"id": gone})
    outplans, events = await world.read_documents()

    again = await outplan(
        elsewhere, "import", write_lines(tmp_path / "o.jsonl", *outplans), "--json"
    )
    assert again.code == 0
    assert again.json.items() >= {"accepted": 1, "skipped": 1, "rejected": 0}.items()

    # An id cannot be used twice, so the history is repeated with other ids.
    text = "\n".join(map(json.dumps, events))
    repeated = text.replace(kept, ids[kept]).replace(gone, ids[gone])
    again = await outplan(elsewhere, "import", "-", "--json", stdin=repeated.encode())
    assert (again.code, again.json["accepted"]) == (0, 4)
    async with open_world(elsewhere) as there:
        later = await there.find_document(ids[kept])
        assert later is not None
        assert (later["name"], later["try_interval"], later["version"]) == ("later", 0, 2)
        history = await there.read_history(ids[gone])
        assert [e["type"] for e in history] == ["outplan_created", "outplan_deleted"]


async def test_a_second_import_applies_nothing_twice_except_under_another_label(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    same = create_body(name="twice in the file, and meant so")
    file = write_lines(tmp_path / "plans.jsonl", *creates(20), same, same)
    assert (await outplan(deployment, "import", file, "--json")).json["accepted"] == 22
    again = (await outplan(deployment, "import", file, "--json")).json
    assert (again["accepted"], again["duplicates"]) == (0, 22)
    assert (await names_and_events(world))[0].total() == 22
    anew = (await outplan(deployment, "import", file, "--json", "--label", "second")).json
    assert anew["accepted"] == 22


async def test_an_import_that_is_killed_and_run_again_creates_every_outplan_once(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(1_500))
    async with start(deployment, "import", file, "--in-flight", "50") as first:
        await world.wait_for(lambda: len(world.events) >= 200)
        first.send_signal(signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
    assert len(world.events) < 1_500

    again = await outplan(deployment, "import", file, "--json")
    assert again.code == 0
    assert again.json["duplicates"] >= 200
    assert again.json["accepted"] + again.json["duplicates"] == 1_500
    names, events = await names_and_events(world)
    assert names == Counter(f"plan {n}" for n in range(1_500))
    assert set(events.values()) == {1}
    assert len(events) == 1_500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_import_reports_its_position_and_can_continue_from_there(
    deployment: Deployment,
    worker: WorkerProcess,
    world: World,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(800))
    async with start(deployment, "import", file, "--in-flight", "20", "--json") as process:
        await world.wait_for(lambda: len(world.events) >= 100)
        process.send_signal(number)
        stopped = await finish(process)
    assert stopped.code == 130
    assert (stopped.json["finished"], stopped.json["rejected"]) == (False, 0)
    judged = stopped.json["accepted"]
    assert f"All lines up to {judged} are done" in stopped.err
    assert f"continue with --from-line {judged + 1}: a command that took effect" in stopped.err

    rest = await outplan(deployment, "import", file, "--json", "--from-line", str(judged + 1))
    assert (rest.code, rest.json["lines"]) == (0, 800 - judged)
    names, events = await names_and_events(world)
    assert names == Counter(f"plan {n}" for n in range(800))
    assert set(events.values()) == {1}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"not json", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"\xff\xfe{\x00}\x00", "invalid_json"),
        (b'{"name": "\\ud800"}', "invalid_json"),
        (b"[" * 5_000, "invalid_json"),
        (b"x" * (MAX_LINE_BYTES + 1), "too_large"),
        (json.dumps(create_body(detail="\N{BELL}" * 65_536)).encode(), "invalid_command"),
        (b'{"command": "paint", "body": {}}', "unknown_command"),
        (b'{"command": ["update"], "body": {}}', "unknown_command"),
        (b'{"command": "delete"}', "invalid_command"),
        (b'{"command": "delete", "body": {}, "colour": 1}', "invalid_command"),
        (b'{"command": "delete", "body": {}, "message_id": ""}', "missing_message_id"),
        (b'{"command": "delete", "body": {}, "message_id": 7}', "missing_message_id"),
        (b'{"type": "outplan_updated", "data": {}, "changed": [["name"]]}', "invalid_command"),
        (json.dumps(create_body(tm_create="soon")).encode(), "invalid_command"),
        (json.dumps(create_body(tm_delete=7)).encode(), "invalid_command"),
        (json.dumps(create_body(version="3")).encode(), "invalid_command"),
    ],
)
async def test_a_broken_line_is_rejected_and_the_import_continues(
    line: bytes, code: str, tmp_path: Path
) -> None:
    good = json.dumps(create_body()).encode()
    file = tmp_path / "plans.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n" + line + b"\n" + good)
    checked = await outplan(NOWHERE, "import", str(file), "--dry-run", "--json")
    assert checked.code == 3
    assert checked.json.items() >= {"valid": 2, "rejected": 1}.items()
    (rejection,) = read_rejections(tmp_path / "plans.jsonl.rejected.jsonl")
    assert (rejection["line"], rejection["problem"]["code"]) == (3, code)


async def test_rejected_lines_can_be_corrected_and_imported(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    wrong, aside = create_body(name="late", dial_timeout=30), tmp_path / "aside.jsonl"
    file = write_lines(tmp_path / "plans.jsonl", create_body(), wrong)
    done = await outplan(deployment, "import", file, "--rejected", str(aside))
    assert done.code == 3
    assert f"The rejected lines are in {aside}\n" in done.out

    (rejection,) = read_rejections(aside)
    assert rejection["content"] == wrong
    assert [e["pointer"] for e in rejection["problem"]["errors"]] == ["/dial_timeout"]
    mended = write_lines(
        tmp_path / "mended.jsonl", {**rejection["content"], "dial_timeout": 30_000}
    )
    assert (await outplan(deployment, "import", mended)).code == 0
    assert (await names_and_events(world))[0]["late"] == 1


async def test_a_continued_import_keeps_earlier_rejections_each_once(
    tmp_path: Path,
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", {"early": 1}, create_body(), {"late": 1})
    for first in ("1", "2"):
        await outplan(NOWHERE, "import", file, "--dry-run", "--from-line", first)
    found = read_rejections(tmp_path / "plans.jsonl.rejected.jsonl")
    assert [rejection["line"] for rejection in found] == [1, 3]


async def test_an_import_stops_when_it_cannot_write_a_rejection(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "plans.jsonl", {"wrong": 1})
    full = await outplan(NOWHERE, "import", file, "--dry-run", "--rejected", "/dev/full")
    assert full.code == 1
    assert "No space left" in full.err
    assert "--from-line" not in full.err


async def test_without_rejections_no_file_is_written_and_a_pipe_gets_no_progress(
    deployment: Deployment, worker: WorkerProcess, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(3))
    done = await outplan(deployment, "import", file)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 lines in ")
    assert done.out.endswith("\n  accepted    3\n")
    assert os.listdir(tmp_path) == ["plans.jsonl"]


async def test_standard_input_is_imported_line_by_line(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    aside = ("--rejected", str(tmp_path / "aside.jsonl"))
    async with start(deployment, "import", "-", "--json", *aside) as process:
        assert process.stdin is not None
        for n in range(3):
            process.stdin.write(json.dumps(create_body(name=f"plan {n}")).encode() + b"\n")
            await process.stdin.drain()
            # Write the next line only when this one has taken effect.
            await world.wait_for(lambda n=n: len(world.events) == n + 1)  # type: ignore[misc]
        done = await finish(process)
    assert (done.code, done.json["accepted"]) == (0, 3)


async def test_ctrl_c_ends_an_import_that_waits_for_its_input(
    deployment: Deployment, worker: WorkerProcess, world: World, tmp_path: Path
) -> None:
    aside = ("--rejected", str(tmp_path / "aside.jsonl"))
    async with start(deployment, "import", "-", *aside) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(create_body()).encode() + b"\n")
        await world.wait_for(lambda: len(world.events) == 1)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_commands_without_a_reply_are_counted_and_can_be_imported_again(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(5))
    asked = await outplan(deployment, "import", file, "--timeout", "1", "--json")
    assert (asked.code, asked.json["unknown"]) == (4, 5)
    assert "Run the same import again" in asked.err

    async with run_worker(deployment):
        assert (await outplan(deployment, "import", file)).code == 0
    names, events = await names_and_events(world)
    assert (names.total(), set(events.values())) == (5, {1})


async def test_an_import_stops_when_nothing_answers(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(100))
    asked = await outplan(
        deployment, "import", file, "--timeout", "1", "--in-flight", "10", "--json"
    )
    assert (asked.code, asked.json["unknown"], asked.json["finished"]) == (4, 10, False)
    assert "nothing answers" in asked.err
    assert "--from-line" not in asked.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-file.jsonl"], "no-such-file.jsonl: No such file"),
        (["."], "irectory"),
        (["-", "--rejected", "no-such-folder/x"], "cannot be written"),
        (["-", "--rejected", "."], "cannot be written"),
        (["plans.jsonl", "--rejected", "plans.jsonl"], "is the file to be imported"),
        (["plans.jsonl", "--in-flight", "0"], "--in-flight"),
        (["plans.jsonl", "--amqp-url", "nonsense"], "amqp://"),
        (["plans.jsonl", "--label", "a\nb"], "printable"),
        ([], "Missing argument 'FILE'"),
    ],
)
async def test_wrong_usage_is_reported_and_nothing_is_sent(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "plans.jsonl", *creates(1))
    refused = await outplan(NOWHERE, "import", *arguments, COLUMNS="200")
    assert (refused.code, refused.out) == (2, "")
    assert told in refused.err


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[{"name": "x"}, {"name": "y"}]', "a JSON array, and not JSON Lines"),
        ('\n\n[\n  {"name": "x"}\n]\n', "jq -c '.[]' plans.jsonl | outplan import -"),
        ('{\n  "name": "x"\n}\n', "jq -c . plans.jsonl | outplan import -"),
    ],
)
@pytest.mark.parametrize("source", ["plans.jsonl", "-"])
def test_a_file_that_is_no_json_lines_is_told_with_what_makes_it_so(
    text: str, hint: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    Path("plans.jsonl").write_text(text)
    told = asyncio.run(outplan(NOWHERE, "import", source, "--dry-run", stdin=text.encode()))
    assert (told.code, told.out) == (2, "")
    assert hint.replace("plans.jsonl", "FILE" if source == "-" else source) in told.err
    assert not Path("plans.jsonl.rejected.jsonl").exists()


@pytest.mark.parametrize(("line", "code"), [("3", 0), ("4", 2), ("99", 2)])
async def test_a_line_past_the_end_is_wrong_usage(line: str, code: int, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(3))
    done = await outplan(NOWHERE, "import", file, "--dry-run", "--from-line", line)
    assert done.code == code
    if code:
        assert f"--from-line {line} is past the end: {file} has 3 lines" in done.err
        assert done.out == ""


async def test_an_unreachable_broker_is_reported_in_one_line(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(1))
    missing = await outplan(NOWHERE, "import", file, "--timeout", "1")
    assert (missing.code, missing.out, missing.err.count("\n")) == (1, "", 2)
    assert "nothing listens at 127.0.0.1:1" in missing.err
    assert "no session within 1 s" in missing.err


async def test_a_terminal_shows_the_progress(
    deployment: Deployment, worker: WorkerProcess, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / "plans.jsonl", *creates(500), create_body(name=""))
    async with terminal(deployment, "import", file, "--in-flight", "20") as shell:
        await shell.wait_for("%  ")
        await shell.wait_for("lines  ")
        assert await shell.wait() == 3
    assert "100%  501 lines" in shell.shown
    assert "1 rejected" in shell.shown
    assert "accepted    500" in shell.shown


def most_memory(deployment: Deployment, *arguments: str) -> int:
    """Run ``outplan``, and return the maximum of its memory in bytes."""
    program = [sys.executable, "-m", "outplan", *arguments]
    process = subprocess.Popen(program, env=deployment.environment(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1_024


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_number_of_lines(
    deployment: Deployment, worker: WorkerProcess, tmp_path: Path
) -> None:
    # Each line that stayed in memory would cost 20 kB.
    plan = create_body(detail="x" * 20_000)
    few = write_lines(tmp_path / "few.jsonl", *[plan] * 300)
    many = write_lines(tmp_path / "many.jsonl", *[plan] * 3_000)
    how = ("--in-flight", "50")
    least = await asyncio.to_thread(most_memory, deployment, "import", few, *how)
    most = await asyncio.to_thread(most_memory, deployment, "import", many, *how)
    assert most - least < 2_700 * 20_000 / 4
