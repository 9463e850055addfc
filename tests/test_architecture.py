"""The house rules: direction of imports, who prints, sizes, public names, README's file tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streammerge

ROOT = Path(streammerge.__file__).parent
REPOSITORY = Path(__file__).parent.parent
MODULES = sorted(p for p in ROOT.rglob("*.py"))
IDS = [str(p.relative_to(ROOT)) for p in MODULES]
EACH = pytest.mark.parametrize("path", MODULES, ids=IDS)

# Who may import whom, by file or folder below streammerge/; what follows from it is allowed too.
LEAVES = {"errors", "tensors", "plugins", "version"}
ARROWS: dict[str, set[str]] = {
    "__main__": {"cli"},
    "options": {"downloads", "outputs"},
    "cli": {"api", "report", "forecast", "verifying", "pushing"},
    "modules": {"api", "inmemory"},
    "inmemory": {"execute", "planning", "outputs"},
    "api": {
        "execute",
        "options",
        "extensions",
        "inputs",
        "outputs",
        "forecast",
        "downloads",
        "relatives",
    },
    "relatives": {"plan", "checkpoint"},
    "verifying": {"checks"},
    "pushing": {"checks"},
    "checks": {"execute", "inputs"},
    "inputs": {"slices", "planning", "chains", "tokenizers"},
    "slices": {"recipe", "views"},
    "execute": {"batches", "report", "budget", "merging", "reading", "finishing"},
    "batches": {"needs", "windows"},
    "chains": {"needs", "equality", "measuring", "openfiles", "buffers"},
    "report": {"outputs"},
    "reading": {"buffers", "openfiles"},
    "finishing": {"buffers", "outputs"},
    "merging": {"equality", "lanes", "measuring", "wholes"},
    "equality": {"plan"},
    "measuring": {"windows"},
    "wholes": {"buffers", "measuring", "needs", "openfiles"},
    "lanes": {"methods"},
    "buffers": {"windows"},
    "windows": {"chunks", "checkpoint"},
    "chunks": {"plan"},
    "budget": {"needs", "windows"},
    "needs": {"chunks"},
    "downloads": {"plan", "checkpoint"},
    "wording": {"plan"},
    "outputs": {"wording", "plan", "checkpoint", "configs", "hub", "references"},
    "forecast": {"plan", "downloads"},
    "openfiles": {"checkpoint"},
    "tokenizers": {"views"},
    "extensions": {"methods"},
    "planning": {"extensions", "sharding", "configs", "checkpoint"},
    "sharding": {"plan"},
    "plan": {"recipe", "coverage", "formats", "methods"},
    "coverage": {"recipe", "views"},
    "configs": {"storage"},
    "recipe": {"schedules", "methods", "tokenizers"},
    "checkpoint": {"views", "formats", "references"},
    "views": {"formats"},
    "formats": {"storage"},
    "schedules": set(),
    "storage": {"hub", "references"},
    "references": set(),
    "hub": set(),
    "methods": {"native"},
    "native": {"stretch"},
    "stretch": {"tensors"},
    "tensors": {"errors"},
    "plugins": set(),
    "errors": set(),
    "version": set(),
}
WITH_TORCH = {
    "inmemory",
    "methods",
}
LIBRARIES: dict[str, set[str]] = {
    "methods": {"torch", "numpy"},
    "native": {"numpy"},
    "tensors": {"torch"},
    "errors": set(),
    "plugins": set(),
}


def unit(path: Path) -> str:
    """The file or folder below streammerge/ that a module belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            submodules = [f"{module}.{a.name}" for a in node.names]
            found = [m for m in submodules if (ROOT.parent / m.replace(".", "/")).exists()]
            files = [m for m in submodules if _is_file(m)]
            yield from found or files or [module]


def _is_file(module: str) -> bool:
    return (ROOT.parent / (module.replace(".", "/") + ".py")).exists()


def own_units(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    return {n[1] for n in names if n[0] == "streammerge" and len(n) > 1} - {"__init__"}


def reachable(start: str) -> set[str]:
    seen, todo = {start} | LEAVES, [start]
    while todo:
        for following in ARROWS[todo.pop()] - seen:
            seen.add(following)
            todo.append(following)
    return seen


def test_every_module_has_its_place_in_the_design() -> None:
    units = {unit(p) for p in MODULES} - {"__init__"}
    assert units <= set(ARROWS), f"no place for {units - set(ARROWS)}: ask docs/design.md"


@EACH
def test_imports_follow_the_arrows(path: Path) -> None:
    own = unit(path)
    if own == "__init__":
        return
    wrong = own_units(path) - (reachable(own) if own not in LEAVES else {own} | ARROWS[own])
    assert not wrong, f"{own} must not import {wrong}"


@pytest.mark.parametrize("folder", LIBRARIES)
def test_the_lowest_modules_import_no_library_but_theirs(folder: str) -> None:
    for path in (p for p in MODULES if unit(p) == folder):
        roots = {name.split(".")[0] for name in imports(path)}
        foreign = roots - set(sys.stdlib_module_names) - {"streammerge"} - LIBRARIES[folder]
        assert not foreign, f"{path.name} imports {foreign}"


def test_arrows_have_no_circle() -> None:
    for start in ARROWS:
        for following in ARROWS[start]:
            assert start not in reachable(following) - LEAVES, f"{start} and {following}"


@EACH
def test_only_execution_and_methods_import_torch_when_loaded(path: Path) -> None:
    if unit(path) in WITH_TORCH:
        return
    tree = ast.parse(path.read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [a.name for n in top for a in n.names] + [getattr(n, "module", "") or "" for n in top]
    heavy = {n for n in names if n.split(".")[0] in {"torch", "transformers", "accelerate"}}
    assert not heavy, f"{path.name} imports {heavy} at its top"


def test_planning_loads_no_torch() -> None:
    modules = ", ".join(f"streammerge.{unit}" for unit in ("planning", "budget", "forecast"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=False).returncode == 0
    )


@EACH
def test_only_the_command_line_prints(path: Path) -> None:
    if unit(path) in {"cli", "__main__"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        named = isinstance(node, ast.Name) and node.id == "print"
        stream = isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"}
        prints = named or stream
        assert not prints, f"{path.name}:{getattr(node, 'lineno', 0)} prints"
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"rich", "tqdm", "typer", "click"}, path.name


@EACH
def test_every_module_says_what_it_is_and_is_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"
    length = len(text.splitlines())
    assert length <= 260, f"{path.name} has {length} lines"


def test_public_names() -> None:
    assert set(streammerge.__all__) == {
        "Finding",
        "Plan",
        "Pushed",
        "Result",
        "Verification",
        "WrittenShard",
        "StreammergeError",
        "__version__",
        "average",
        "Recipe",
        "load_recipe",
        "merge",
        "merge_method",
        "merge_modules",
        "plan_average",
        "plan_merge",
        "push",
        "verify",
        "weighted_average",
    }
    assert all(hasattr(streammerge, name) for name in streammerge.__all__)
    assert set(streammerge.__all__) <= set(dir(streammerge))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = streammerge.no_such_name  # type: ignore[attr-defined]


def test_public_names_come_from_where_type_checkers_look_for_them() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (checking,) = (n for n in tree.body if ast.unparse(n).startswith("if TYPE_CHECKING:"))
    assert isinstance(checking, ast.If)
    imports_ = [node for node in checking.body if isinstance(node, ast.ImportFrom)]
    said = {alias.name: node.module for node in imports_ for alias in node.names}
    assert said.keys() == set(streammerge.__all__)
    code = f"""
import importlib, sys, streammerge
assert not [m for m in sys.modules if m.startswith("streammerge.")], "loaded too early"
for _ in range(2):
    for name, module in {said}.items():
        assert getattr(streammerge, name) is getattr(importlib.import_module(module), name), name
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=True)


def test_no_module_hides_a_public_name() -> None:
    assert not set(streammerge.__all__) & {unit(path) for path in MODULES}, "import one, get both"


def readme_tree() -> dict[str, str]:
    """Path below streammerge/ → comment, from the fenced tree in README."""
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)
    trees = [b for b in blocks if re.search(r"^streammerge/(\s|$)", b, re.M)]
    assert len(trees) == 1, "README has no fenced tree with a line `streammerge/`, or several"
    lines = trees[0].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("streammerge/"))
    tree: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in lines[begin + 1 :]:
        found = re.match(r"^([\s│├└─|`-]+)([\w.-]+(?:/[\w.-]+)*/?)\s*(.*)$", line)
        if not found:
            if line.strip(" │|"):
                break
            continue
        depth, name, comment = len(found[1]), found[2], found[3]
        while folders and folders[-1][0] >= depth:
            folders.pop()
        full = (folders[-1][1] if folders else "") + name
        if name.endswith("/"):
            folders.append((depth, full))
        assert full not in tree, f"README names {full} twice"
        tree[full] = comment.lstrip("# —–-")
    return tree


def test_the_file_tree_in_the_readme_is_true() -> None:
    tree = readme_tree()
    files = {str(p.relative_to(ROOT)) for p in (*MODULES, *ROOT.rglob("*.c"))}
    folders = {f"{p.relative_to(ROOT)}/" for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    hidden = {f for f in files if f.endswith("/__init__.py")}
    assert {n for n in tree if not n.endswith("/")} - hidden == files - hidden
    assert {n for n in tree if n.endswith("/")} == folders
    assert [n for n, comment in tree.items() if len(comment) < 5] == [], "lines without a comment"
