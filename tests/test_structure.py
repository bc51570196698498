"""The project keeps its structure: imports run one way, and modules stay small enough to read."""

import ast

import pytest
from conftest import ROOT

MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted((ROOT / "tuner").rglob("*.py"))}
# The rooms in the order in which a run passes through them: each may import from earlier ones only.
ROOMS = [
    {"tuner", "errors"},
    {"events", "heartbeat", "hub_errors", "recipe", "tasks"},
    {"metrics"},
    {"runs", "runs_cleanup"},
    {"data"},
    {"models"},
    {"methods"},
    {"planning"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"experiments"},
    {"hub"},
    {"gpu", "terminal"},
    {"cli"},
    {"__init__", "__main__", "ui"},
]


def imports(file) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def room(name: str) -> int:
    place = name.split(".")[1] if "." in name else name
    return next(i for i, names in enumerate(ROOMS) if place in names)


def ours(name: str) -> set[str]:
    return {m for m in imports(MODULES[name]) if m in MODULES and m != "tuner"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    assert not {m for m in ours(name) if room(m) > room(name)}


def test_no_modules_import_each_other():
    left = {name: ours(name) for name in MODULES}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("name", [m for m in MODULES if not m.startswith("tuner.ui") and m != "tuner.gpu"])
def test_the_core_knows_neither_gradio_nor_spaces(name):
    assert not {m.split(".")[0] for m in imports(MODULES[name])} & {"gradio", "spaces"}


def test_tabs_do_not_import_each_other():
    tabs = {m for m in MODULES if m.startswith("tuner.ui.") and m.endswith("_tab")}
    assert len(tabs) == 3
    for name in tabs:
        assert not (imports(MODULES[name]) & tabs) - {name}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_fits_in_one_reading(name):
    assert len(MODULES[name].read_text().splitlines()) <= 400
