"""Run the suite of a project that only installs the wheel and has common package names itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.brokers import skip_without_docker

# Installing the wheel and starting containers both take long.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "service/__init__.py": "",
    "service/numbers.py": 'EVENING_LINE = "+15559876543"\n',
    "schemas/__init__.py": "",
    "schemas/outplan.py": 'CUSTOMER = "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11"\n',
    "client/__init__.py": "",
    "client/dialer.py": """\
from outplan.client import OutplanClient, Unreachable
from schemas.outplan import CUSTOMER
from service.numbers import EVENING_LINE

SOURCE = {"type": "tel", "target": EVENING_LINE}


async def create(url):
    try:
        async with OutplanClient(url, timeout=1) as client:
            await client.create(customer_id=CUSTOMER, name="evenings", source=SOURCE)
    except Unreachable:
        return "unreachable"
""",
    "tests/__init__.py": "",
    "tests/names.py": 'NAME = "evenings"\n',
    "tests/test_packages.py": """\
import asyncio
from pathlib import Path

import client.dialer
import outplan
import schemas.outplan
import service.numbers
import tests.names

HERE = Path(__file__).parent.parent


def test_each_name_is_this_projects_package():
    for module in (client, schemas, service, tests):
        assert Path(module.__file__).parent.parent == HERE
    assert Path(outplan.__file__).is_relative_to(HERE / "venv")


def test_the_client_works_from_a_package_called_client():
    assert asyncio.run(client.dialer.create("amqp://127.0.0.1:1/")) == "unreachable"
""",
    "tests/test_dialer.py": """\
def test_dialers_hear_of_a_new_outplan(outplan_service_sync):
    created = outplan_service_sync.create(customer_id="5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11", name="evenings", source={"type": "tel", "target": "+15559876543"})
    assert outplan_service_sync.next_event("outplan_created").data == created.outplan
""",  # noqa: E501 - the fixture takes three lines to use
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    install_wheel(folder)
    return folder


def install_wheel(project: Path) -> None:
    """Build the wheel and install it with the extra ``testing``."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without build isolation, because constraints.txt pins the build backend installed here.
    run(project, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", str(ROOT))
    (wheel,) = (project / "dist").glob("*.whl")
    run(project, sys.executable, "-m", "venv", "--without-pip", "venv")
    requirement = f"outplan-service[testing] @ {wheel.as_uri()}"
    install = ["--python", "venv/bin/python", "install", "-c", str(ROOT / "constraints.txt")]
    run(project, *pip, *install, requirement)


def run(project: Path, *command: str, **environment: str) -> str:
    """Run the command in the project, without this checkout in its environment."""
    ours = ("OUTPLAN_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")
    clean = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    path = [it for it in clean["PATH"].split(os.pathsep) if not Path(it).is_relative_to(ROOT)]
    finished = subprocess.run(
        command,
        cwd=project,
        env={**clean, "PATH": os.pathsep.join(path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_the_project_imports_the_wheel_not_this_checkout(project: Path) -> None:
    program = "import outplan.testing.live as it, sys; print(it.__file__, *sys.path)"
    output = run(project, "venv/bin/python", "-I", "-c", program)
    assert output.startswith(str(project / "venv"))
    assert str(ROOT) not in output


@pytest.mark.parametrize(
    "command", [["venv/bin/pytest"], ["venv/bin/python", "-m", "pytest"]], ids=" ".join
)
def test_the_suite_passes_in_memory(project: Path, command: list[str]) -> None:
    memory = {"OUTPLAN_TEST_SERVERS": "none of them"}
    assert "3 passed" in run(project, *command, "--outplan-mode=memory", **memory)


@pytest.mark.parametrize("mode", ["processes", "docker"])
def test_the_suite_passes_on_servers(project: Path, mode: str) -> None:
    if mode == "docker":
        skip_without_docker()
    assert "3 passed" in run(project, "venv/bin/pytest", OUTPLAN_TEST_SERVERS=mode)
