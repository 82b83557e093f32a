"""A project that knows nothing of this one: it installs the wheel and runs its three-line test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.brokers import skip_without_docker

# One environment for all of them, and containers that take their time.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]

TEST = """\
def test_dialers_hear_of_a_new_outplan(outplan_service_sync):
    created = outplan_service_sync.create(customer_id="5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11", name="evenings", source={"type": "tel", "target": "+15559876543"})
    assert outplan_service_sync.next_event("outplan_created").data == created.outplan
"""  # noqa: E501 - three lines is what they are


def install(project: Path) -> None:
    """Build the wheel, and install it as they would."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # The build backend stands in this environment, pinned like the rest.
    run(project, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", str(ROOT))
    (wheel,) = (project / "dist").glob("*.whl")
    run(project, sys.executable, "-m", "venv", "--without-pip", "venv")
    wanted = f"outplan-service[testing] @ {wheel.as_uri()}"
    into = ["--python", "venv/bin/python", "install", "-c", str(ROOT / "constraints.txt")]
    run(project, *pip, *into, wanted, "pytest")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    install(folder)
    (folder / "test_dialer.py").write_text(TEST)
    return folder


def run(project: Path, *command: str, **environment: str) -> str:
    """Run it there, with no trace of this checkout in its environment: what it prints."""
    ours = ("OUTPLAN_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")
    clean = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    path = [it for it in clean["PATH"].split(os.pathsep) if not Path(it).is_relative_to(ROOT)]
    told = subprocess.run(
        command,
        cwd=project,
        env={**clean, "PATH": os.pathsep.join(path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout
    return told.stdout


def test_what_they_have_installed_is_the_wheel(project: Path) -> None:
    program = "import outplan.testing.live as it, sys; print(it.__file__, *sys.path)"
    told = run(project, "venv/bin/python", "-I", "-c", program)
    assert told.startswith(str(project / "venv"))
    assert str(ROOT) not in told


@pytest.mark.parametrize("mode", ["processes", "docker"])
def test_their_three_lines_pass_on_servers(project: Path, mode: str) -> None:
    if mode == "docker":
        skip_without_docker()
    assert "1 passed" in run(project, "venv/bin/pytest", OUTPLAN_TEST_SERVERS=mode)


def test_their_three_lines_pass_in_memory(project: Path) -> None:
    told = run(
        project, "venv/bin/pytest", "--outplan-mode=memory", OUTPLAN_TEST_SERVERS="none of them"
    )
    assert "1 passed" in told
