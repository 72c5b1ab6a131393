"""The site is built, its links lead somewhere, nothing in it comes from other hosts; its commands exist, and its
reference is what the sources say."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from potluck.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)[^>]* (?:src|href)=\"?https?:")


def test_the_site_is_built_and_no_link_leads_nowhere() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = ROOT / "build" / "docs" / "site"
    pages = list(built.rglob("*.html"))
    assert {f"{path.stem}.html" for path in DOCS} <= {page.name for page in pages}
    for page in pages:
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page.name


def test_every_page_is_found_in_the_sites_navigation() -> None:
    nav = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = set(re.findall(r"'(?:docs/)?([\w./-]+\.md)'", str(nav)))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in DOCS} <= named


@pytest.mark.parametrize("script", ["reference", "measure"])
def test_a_page_that_a_script_writes_is_what_its_sources_say(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def commands(path: Path) -> list[list[str]]:
    """The words behind `potluck` in each line of code and between backticks; of `a|b` the first."""
    found = []
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^ {4,}((?:[A-Z_]+=\S+ )*potluck .*)$", text) + re.findall(
        r"`(potluck [^`\n]+)`", text
    )
    for line in lines:
        words = shlex.split(line.split("  ")[0].split(" #")[0].replace("'", ""), comments=True)
        words = [word.split("|")[0] or word for word in words]
        words = words[next(number for number, word in enumerate(words) if word == "potluck") + 1 :]
        ends = [number for number, word in enumerate(words) if word in {"|", ">", "&&", "&", ";"}]
        found.append(words[: min(ends, default=len(words))])
    return found


@pytest.mark.parametrize("path", [*DOCS, ROOT / "README.md"], ids=lambda path: path.name)
def test_a_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    for words in commands(path):
        command: Any = get_command(app)
        names = []
        for word in words:
            inner = (
                command.get_command(typer.Context(command), word) if isinstance(command, TyperGroup) else None
            )
            if inner is None:
                break
            command = inner
            names.append(word)
        assert names, f"potluck {' '.join(words)}"
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        asked = {word.split("=")[0] for word in words if re.match(r"-[-a-z]", word)}
        assert asked <= known | {"--help"}, f"potluck {' '.join(words)}"
