"""The house keeps itself: what the style guide and the architecture can decide, a test decides."""

import ast
import gc
import importlib.util
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ("potluck", "coordinator", "worker", "tests", "benchmarks", "examples")
SHARED_BY_CORE = ("potluck.chain", "potluck.pricing", "potluck.shuffle")  # as pure as the core itself
PURE_OF_WORKER = (
    *("core", "limits", "attempt", "attempts", "liveness", "farewell", "offers", "outstanding", "messages"),
    *("policy", "hours", "budget"),
)
PURE = [
    *sorted((ROOT / "coordinator" / "core").glob("*.py")),
    *(ROOT / "worker" / f"{name}.py" for name in PURE_OF_WORKER),
    *(ROOT / (module.replace(".", "/") + ".py") for module in SHARED_BY_CORE),
]
PURE_MAY_IMPORT = {
    *("abc", "collections", "dataclasses", "enum", "functools", "hashlib", "heapq", "json", "math", "re"),
    *("statistics", "typing"),
}
PURE_MAY_IMPORT_ALSO = {"worker/hours.py": {"datetime"}}  # calendars, without their clock
CLOCKS = {"now", "today", "utcnow"}
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400
HEAVY = {"torch", "ray", "transformers", "xllamacpp", "peft"}
ENGINE_HOMES = ("worker/engines/", "worker/hosts/", "worker/training/")
COMMANDS_OF_OTHERS = ("potluck/cli/", "potluck/demo.py")


def python_files(*folders: str) -> list[Path]:
    found = (path for folder in folders or SOURCE for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "potluck/v1" not in path.as_posix())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    """Parsed while nothing is collected: a finaliser that logs a traceback parses too, and CPython 3.11 counts the
    depth of both as one (cpython#106905)."""
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def imported(node: ast.AST) -> set[str]:
    """The modules that an import statement names; nothing for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


def imports_of(path: Path, *, lazy: bool = True) -> Iterator[tuple[int, set[str]]]:
    """(line, modules) of each import; `lazy`: also of those inside functions."""
    tree = tree_of(path)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        modules = imported(node)
        if modules and (lazy or id(node) not in inside):
            yield node.lineno, modules  # type: ignore[attr-defined]  # imports have lines; ast.AST does not say so


def tops(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def script(name: str) -> ModuleType:
    """A script without the ending .py, as a module."""
    loader = SourceFileLoader(name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


# -- purity and arrows


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_the_core_knows_no_clock_no_chance_and_no_io(path: Path) -> None:
    own = "coordinator.core" if "coordinator" in path.parts else "worker"
    for line, modules in imports_of(path):
        for module in modules:
            inside = module == "worker" or module.startswith(own) or module == "coordinator.core"
            shared = SHARED_BY_CORE if own == "coordinator.core" else ("potluck.receipts",)
            pure_neighbour = module.startswith(shared)
            top = module.partition(".")[0]
            also = PURE_MAY_IMPORT_ALSO.get(name_of(path), set())
            assert inside or pure_neighbour or top in PURE_MAY_IMPORT | also, (
                f"{name_of(path)}:{line} imports {module}"
            )
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, waits), f"{name_of(path)} waits"
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") not in {"open", "print", "input"}
            assert getattr(node.func, "attr", "") not in CLOCKS, f"{name_of(path)} looks at a clock"


def test_the_workers_core_loads_only_pure_modules_of_the_worker() -> None:
    """What worker/core.py imports of its own package is as pure as itself."""
    seen, open_ends = set(), [ROOT / "worker" / "core.py"]
    while open_ends:
        path = open_ends.pop()
        seen.add(path)
        for line, modules in imports_of(path):
            for module in modules:
                inner = ROOT / (module.replace(".", "/") + ".py")
                if module.startswith("worker.") and inner.exists() and inner not in seen:
                    open_ends.append(inner)
                elif not module.startswith(("worker", "potluck.receipts")):
                    also = PURE_MAY_IMPORT_ALSO.get(name_of(path), set())
                    allowed = module.partition(".")[0] in PURE_MAY_IMPORT | also
                    assert allowed, f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize(
    ("folder", "never"),
    [("coordinator", {"worker", *HEAVY}), ("worker", {"coordinator"}), ("potluck", HEAVY)],
)
def test_arrows_point_to_the_shared_package(folder: str, never: set[str]) -> None:
    for path in python_files(folder):
        for line, modules in imports_of(path):
            assert not tops(modules) & never, f"{name_of(path)}:{line} imports {sorted(modules)}"


def test_the_shared_package_reaches_the_others_only_from_within_its_commands() -> None:
    """`potluck coordinator start` must load the coordinator, but only when it runs."""
    for path in python_files("potluck"):
        commands = name_of(path).startswith(COMMANDS_OF_OTHERS)
        for line, modules in imports_of(path, lazy=not commands):
            wrong = tops(modules) & {"coordinator", "worker"}
            assert not wrong, f"{name_of(path)}:{line} imports {sorted(modules)}"


def test_model_libraries_stay_with_the_engines() -> None:
    """The daemon itself is small and starts fast; models live in processes of their own."""
    for path in python_files("worker"):
        if name_of(path).startswith(ENGINE_HOMES):
            continue
        for line, modules in imports_of(path, lazy=False):
            assert not tops(modules) & HEAVY, f"{name_of(path)}:{line} imports {sorted(modules)}"


def test_importing_potluck_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, "grpc", "fastapi", "sqlalchemy", "numpy", "pydantic", "rich", "typer"}
    code = "import sys, potluck; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & heavy


def test_the_command_line_starts_without_servers_and_models() -> None:
    heavy = {*HEAVY, "grpc", "fastapi", "sqlalchemy", "numpy", "coordinator", "worker"}
    code = "import sys, potluck.cli.main; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & heavy


# -- size and manners


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"


def test_modules_are_one_noun_long() -> None:
    """Tests may be longer: they are lists."""
    for path in python_files("potluck", "coordinator", "worker", "benchmarks", "examples"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= MODULE_LINES_MAX, f"{name_of(path)} has {lines} lines"


@pytest.mark.parametrize("path", python_files("tests"), ids=name_of)
def test_tests_neither_sleep_nor_skip(path: Path) -> None:
    """`sleep(0)` lets others run and is no sleep; what a platform lacks may be left out on that platform."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{name_of(path)}:{node.lineno}"
        arguments = [ast.unparse(argument) for argument in node.args]
        assert called not in {"time.sleep", "asyncio.sleep", "anyio.sleep"} or arguments == ["0"], (
            f"{where} sleeps"
        )
        platform = called == "pytest.mark.skipif" and arguments[0].startswith("sys.platform")
        skips = called.rpartition(".")[2] in {"skip", "skipif", "skipTest", "xfail", "importorskip"}
        assert platform or not skips, f"{where} skips"


def test_what_is_switched_off_has_a_reason() -> None:
    """`# noqa: X -- reason`, `# type: ignore[x]  # reason`; a bare one says nothing."""
    silent = re.compile(
        r"#\s*(noqa(?!:\s*[A-Z0-9, ]+--\s*\S)|type:\s*ignore(?!\[[a-z-, ]+\]\s+(#|--)\s*\S)|pragma)"
    )
    for path in [*python_files(), *(ROOT / "scripts" / name for name in ("mutants", "pin"))]:
        with tokenize.open(path) as text:
            comments = [t for t in tokenize.generate_tokens(text.readline) if t.type == tokenize.COMMENT]
        for comment in comments:
            assert not silent.search(comment.string), f"{name_of(path)}:{comment.start[0]} {comment.string}"


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TO" + "DO|FIX" + r"ME|XX" + r"X)\b|raise NotImpl" + "ementedError")
    for path in python_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not later.search(line), f"{name_of(path)}:{number} {line.strip()}"


# -- generated code, scripts, documents, packages


def test_generated_code_is_fresh() -> None:
    run = subprocess.run(
        [ROOT / "scripts" / "generate", "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_scripts_can_be_run() -> None:
    scripts = [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    for path in scripts:
        if path.is_file():
            assert os.access(path, os.X_OK), f"{name_of(path)} has no run bit"
            assert path.read_bytes().startswith(b"#!"), f"{name_of(path)} does not say what runs it"


def test_continuous_integration_runs_what_people_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("scripts/")] == [
        "scripts/check --static",
        "scripts/test",
    ]


@pytest.mark.xdist_group("together")
def test_groups_reach_those_who_share_the_work(request: pytest.FixtureRequest) -> None:
    """A pair of versions that does not know each other forgets the groups and says nothing."""
    grouped: bool = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@together") == grouped


def test_the_readme_names_the_two_commands_and_its_tree_is_the_folders() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "scripts/demo" in readme
    assert "scripts/test" in readme
    tree = re.search(r"```\n(potluck/ .*?)```", readme, re.DOTALL)
    assert tree is not None, "the README shows the tree"
    named = {
        line.split()[0].rstrip("/") for line in tree[1].splitlines() if line and not line.startswith(" ")
    }
    passing = {"build", "dist"}  # what tools leave behind
    folders = {
        path.name for path in ROOT.iterdir() if path.is_dir() and any(p.is_file() for p in path.rglob("*"))
    }
    assert named == {
        f for f in folders - passing if not f.startswith((".", "_")) and not f.endswith(".egg-info")
    }


def test_the_readme_links_to_what_exists() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{name} links to {link}"


def test_constraints_pin_everything_that_the_extras_need() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", pin) for pin in pins.values()), "exact public versions"
    assert pins == script("pin").needed(), "run scripts/pin after installing other versions"


def test_the_mutants_are_those_of_the_code_as_it_is() -> None:
    """Each stands exactly once; scripts/mutants itself shows that the tests notice it."""
    mutants = script("mutants").MUTANTS
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        source = mutant.path(ROOT).read_text(encoding="utf-8")
        assert source.count(mutant.old) == 1, mutant.name
        compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
