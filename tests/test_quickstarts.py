"""The three quickstarts of docs/index.md, word by word, in empty folders, with the real small model.

Put in are only what a reader puts in, too: the pool's address, the tokens, and the path that was printed.
"""

import contextlib
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fixtures_pool import COMMAND, UNCONDITIONALLY, Process, free_port

pytestmark = [pytest.mark.processes, pytest.mark.engine]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "index.md"
WAIT_S = 150.0
# What is printed once the program that goes on is there.
STARTS = {"potluck coordinator start": r"^  potluck login ", "potluck worker start": "models_chosen"}


def lines(heading: str) -> list[str]:
    """The commands below a heading."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"(?m)^ {4}(potluck .+)$", text)


@dataclass
class Reader:
    """Somebody who follows the page on a machine of their own."""

    home: Path
    variables: dict[str, str]
    stack: contextlib.ExitStack
    printed: list[str] = field(default_factory=list)

    def follow(self, heading: str, **puts: str) -> None:
        """`puts`: what is put in for a word of the page; `url` for the pool's address."""
        puts = {"https://pool.example.org": puts.pop("url", ""), **puts}
        for line in lines(heading):
            typed = line
            if line == "potluck login http://127.0.0.1:8420 --key file:PATH":
                said = self.printed[0]
                puts |= {"http://127.0.0.1:8420": said.split()[2], "PATH": said.split("file:")[1].strip()}
            for word, put in puts.items():
                typed = typed.replace(word, put)
            self._run(line, shlex.split(typed)[1:])

    def _run(self, line: str, words: list[str]) -> None:
        if line in STARTS:
            process = Process.start(line, words, self.home, **self.variables)
            self.stack.callback(process.stop)
            self.printed.append(process.wait_for(STARTS[line], WAIT_S))
            return
        variables = {**os.environ, **self.variables, "POTLUCK_HOME": str(self.home)}
        done = subprocess.run(
            [*COMMAND, *words],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        self.printed.append(done.stdout)


def test_whoever_runs_a_pool_shares_a_machine_and_asks_by_the_page_alone(
    tmp_path: Path, smollm2_path: Path
) -> None:
    """Three people, three homes; at the end a real answer has been charged."""
    http = f"127.0.0.1:{free_port()}"  # the page's own may be taken on the machine that runs the test
    variables = {
        **UNCONDITIONALLY,
        "POTLUCK_HTTP": http,
        "POTLUCK_GRPC": f"127.0.0.1:{free_port()}",
        "POTLUCK_DEFAULT_MAX_TOKENS": "16",  # a long answer takes minutes on two busy cores
        "POTLUCK_MODEL_CACHE": str(smollm2_path.parent),
        "POTLUCK_MACHINE_DIR": str(tmp_path / "machine"),
    }
    with contextlib.ExitStack() as stack:
        operator, owner, asker = (
            Reader(tmp_path / name, variables, stack) for name in ("operator", "owner", "asker")
        )
        operator.follow("Run a pool")
        _, _, invitation, joining = (text.strip() for text in operator.printed)
        owner.follow("Bring a machine", url=f"http://{http}", TOKEN=joining)
        asker.follow("Ask", url=f"http://{http}", TOKEN=invitation)
        _, answer, balance = asker.printed
        assert answer.strip()
        charged = re.search(r"(?m)^balance +-(\S+) credits", balance)
        assert charged is not None, balance
        assert float(charged[1]) > 0
