"""`scripts/setup` where something is missing: a sentence that says what, and nothing half-made behind it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "cat", "dirname", "grep", "mkdir", "rm", "sed")
LIMIT_S = 120.0
# Debian's python3 without python3-venv: the modules are there, and what they need is not.
WITHOUT_VENV = """#!/bin/sh
exec {python} -c '
import runpy, sys
sys.modules["ensurepip"] = None
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    import ensurepip
elif sys.argv[0] == "-c":
    exec(sys.argv[1])
else:
    print("Python", sys.version.split()[0])
' "$@"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What setup reads, in a folder of its own, and a PATH with its tools: no Python, no git."""
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    return folder


def setup(project: Path, before: str = "", **variables: str) -> tuple[int, str]:
    """Its exit code and all that it said."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", f"{before} exec scripts/setup"],
        cwd=project,
        env={**kept, "PATH": str(project.parent / "bin"), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout


def test_no_python_is_said_with_where_to_get_one(project: Path) -> None:
    code, said = setup(project)
    assert code == 1
    assert "Potluck needs Python 3.11 or newer, and none was found." in said


def test_a_python_without_venv_is_named_with_the_package_to_install(project: Path, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(WITHOUT_VENV.format(python=sys.executable))
    python.chmod(0o755)
    code, said = setup(project, PYTHON=str(python))
    assert code == 1
    assert (
        f"{python} cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" in said
    )
    assert not (project / ".venv").exists()


def test_a_folder_that_takes_no_files_is_not_blamed_on_python(project: Path) -> None:
    """The system refuses every byte, as a disk does that is full or read-only."""
    code, said = setup(project, "ulimit -f 0; ", PYTHON=sys.executable)
    assert code == 1
    assert f"{project}/.venv could not be made; the line above says why." in said
    assert "python3-venv" not in said


def test_a_package_index_that_is_not_there_is_said(project: Path) -> None:
    code, said = setup(
        project, PYTHON=sys.executable, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1"
    )
    assert code == 1
    assert "pip could not install what Potluck needs" in said
    assert "Retrying" in said, "pip's last word alone speaks of versions in conflict"
