"""Who may import whom: storage <- jobs <- app, read from the sources; and a server that never imports torch.

Where the rule allows an import inside a function (a child's torch, a method's PEFT) only module level is looked at.
"""

from __future__ import annotations

import ast
import sys
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.serving import serving

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "tokenizers"}

# The parent side joins jobs to the catalog. Everything else in jobs/ is a declaration or a child, and never sees it.
PARENT = (
    "jobs.service",
    "jobs.worker",
    "jobs.supervise",
    "jobs.tailing",
    "jobs.postmortem",
    "jobs.executors",
    "jobs.prepare",
)
# Packages of the children: torch is their business. What the parent side imports of them is looked at from there.
CHILDREN = ("jobs.training", "jobs.inference", "jobs.modules", "jobs.export", "jobs.starter")
# Not pinned, for PyTorch brings it: Triton with its builds for GPUs, and with no other.
BROUGHT = {"triton": "torch"}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for package in ("app", "jobs", "storage") for path in sorted((ROOT / package).rglob("*.py"))
}


def under(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def nodes(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """The tree's nodes without what only a type checker reads; without the bodies of functions where not asked for."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (node for other in child.orelse for node in nodes(other, functions))
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not functions:
            continue
        yield child
        yield from nodes(child, functions)


@cache
def imports(module: str, functions: bool = True) -> frozenset[str]:
    """The modules that `module` imports: "torch", "jobs.shape" (`from jobs import shape` too)."""
    found: set[str] = set()
    for node in nodes(ast.parse(SOURCES[module].read_text(encoding="utf-8")), functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            found.add(str(node.module))
            found.update(name for alias in node.names if (name := f"{node.module}.{alias.name}") in SOURCES)
    return frozenset(found)


def packages(module: str, functions: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(module, functions)}


def reached(module: str, functions: bool) -> dict[str, tuple[str, ...]]:
    """Every module that importing `module` imports, ours followed, each with the way there."""
    ways: dict[str, tuple[str, ...]] = {module: (module,)}
    left = [module]
    while left:
        current = left.pop()
        found = set(imports(current, functions))
        for name in [*list(found), current]:  # importing a.b.c runs a and a.b first
            parts = name.split(".")
            found.update(".".join(parts[:n]) for n in range(1, len(parts)))
        for name in found - ways.keys():
            ways[name] = (*ways[current], name)
            if name in SOURCES:
                left.append(name)
    return ways


@pytest.mark.parametrize("module", [name for name in SOURCES if name.split(".")[0] == "storage"])
def test_storage_imports_sqlalchemy_alembic_and_the_standard_library(module: str) -> None:
    assert packages(module) <= {"storage", "sqlalchemy", "alembic"} | sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in SOURCES if name.split(".")[0] == "jobs"])
def test_jobs_know_no_page(module: str) -> None:
    assert not packages(module) & {"app", "gradio", "fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if name.split(".")[0] == "jobs" and not under(name, PARENT)]
)
def test_declarations_and_children_never_reach_the_catalog(module: str) -> None:
    ways = reached(module, functions=True)
    for forbidden in ("storage", "sqlalchemy"):
        assert forbidden not in ways, " -> ".join(ways[forbidden])


@pytest.mark.parametrize("module", [name for name in SOURCES if not under(name, CHILDREN)])
def test_outside_the_children_no_module_needs_torch_to_be_imported(module: str) -> None:
    ways = reached(module, functions=False)
    for heavy in HEAVY & ways.keys():
        raise AssertionError(" -> ".join(ways[heavy]))


@pytest.mark.parametrize("module", [name for name in SOURCES if "triton" not in packages(name, functions=False)])
def test_without_a_gpu_nothing_needs_triton_to_be_imported(module: str) -> None:
    assert "triton" not in (ways := reached(module, functions=False)), " -> ".join(ways["triton"])


@pytest.mark.parametrize("module", [name for name in SOURCES if under(name, (*PARENT, "app"))])
def test_the_server_and_the_worker_use_torch_nowhere(module: str) -> None:
    assert not packages(module) & HEAVY


@pytest.mark.parametrize("module", [name for name in SOURCES if name.split(".")[0] == "app"])
def test_pages_ask_the_service_and_never_the_catalog(module: str) -> None:
    assert not packages(module) & {"storage", "sqlalchemy", "alembic"}


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("app.pages.")])
def test_pages_never_import_each_other(module: str) -> None:
    others = {name for name in imports(module) if name.startswith("app.pages.")}
    assert not others


def test_opening_every_page_never_imports_torch(tmp_path: Path) -> None:
    from app.ui import pages

    with serving(tmp_path / "home") as server:
        for page in pages():
            with urllib.request.urlopen(f"{server.url}/{page.SLUG}?id=1", timeout=60) as answer:
                assert answer.status == 200
        mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "libpython" in mapped or "python" in mapped  # the file says something
    assert "libtorch" not in mapped


def test_every_package_that_is_imported_is_pinned() -> None:
    pinned = set()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if requirement := line.split("#")[0].strip():
            name, version = requirement.split("==")
            assert version
            name = name.replace("-", "_")
            pinned.add({"markdown_it_py": "markdown_it", "scikit_learn": "sklearn"}.get(name, name))
    imported = {BROUGHT.get(package, package) for module in SOURCES for package in packages(module)}
    assert imported - sys.stdlib_module_names - {"app", "jobs", "storage"} <= pinned
