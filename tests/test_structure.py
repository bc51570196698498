"""The house keeps its shape: imports run one way, and rooms stay small enough to read."""

import ast

import pytest
from conftest import ROOT

MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted((ROOT / "tuner").rglob("*.py"))}
# A module may import from earlier rows, and from its own row.
ROWS = [
    {"tuner", "tuner.errors", "tuner.beat"},
    # Each of these knows one thing and nothing of the house.
    {"tuner.recipe", "tuner.hub_errors", "tuner.tasks", "tuner.losses", "tuner.schedules"},
    {"tuner.scoring", "tuner.clock", "tuner.batches", "tuner.adapter_files"},
    {"tuner.native"},
    # The method table, from what a row is made of to the whole; no model is loaded for it.
    {"tuner.parts"},
    {"tuner.method"},
    {"tuner.more_methods"},
    {"tuner.methods"},
    # Rows and models on the disk.
    {"tuner.runs", "tuner.parse", "tuner.adapters"},
    {"tuner.tables", "tuner.formats", "tuner.models", "tuner.disk", "tuner.checkpoint"},
    {"tuner.data", "tuner.estimate", "tuner.trainer"},
    {"tuner.features", "tuner.forecast"},
    # Before a run, and after it.
    {"tuner.plan", "tuner.predict"},
    {"tuner.survey", "tuner.generate"},
    {"tuner.evaluate", "tuner.export"},
    {"tuner.train"},
    {"tuner.compare", "tuner.card", "tuner.card_use", "tuner.hub", "tuner.terminal"},
    {"tuner.cli", "tuner.gpu"},
    {"tuner.__main__", "tuner.ui"},
]


def imports(file) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def row(name: str) -> int:
    name = "tuner.ui" if name.startswith("tuner.ui") else name
    return next(i for i, names in enumerate(ROWS) if name in names)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    ours = {m for m in imports(MODULES[name]) if m in MODULES and m != "tuner"}
    assert not {m for m in ours if row(m) > row(name)}


def test_no_imports_go_in_a_circle():
    left = {name: {m for m in imports(file) if m in MODULES} - {name} for name, file in MODULES.items()}
    # "from tuner.ui import x" names the package too, which is not what is meant.
    left = {name: {m for m in ours if MODULES[m].name != "__init__.py"} for name, ours in left.items()}
    while free := [name for name, ours in left.items() if not ours & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_every_import_is_by_its_whole_name():
    for file in MODULES.values():
        assert not [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.level]


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
