"""The project keeps its structure: imports run one way, and modules stay small enough to read."""

import ast
from collections.abc import Iterator

import pytest
from conftest import ROOT

MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted((ROOT / "tuner").rglob("*.py"))}
# The rooms in the order in which a run passes through them: each may import from earlier ones only.
ROOMS = [
    {"tuner", "errors", "words"},
    {
        "environment",
        "events",
        "heartbeat",
        "hub_errors",
        "hub_retry",
        "limited",
        "limited_process",
        "names",
        "places",
        "recipe",
        "recipe_names",
        "recipe_problems",
        "recipe_yaml",
        "tasks",
    },
    {"metrics", "ngrams", "rouge"},
    {"runs", "runs_cleanup", "models_cleanup", "run_files", "run_lock", "run_shapes"},
    {"data"},
    {"models"},
    {"methods"},
    {"planning"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"experiments"},
    {"hub"},
    {"gpu", "gpu_refusals", "terminal"},
    {"cli", "cli_compare", "cli_home"},
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
    assert len(tabs) >= 3
    for name in tabs:
        assert not (imports(MODULES[name]) & tabs) - {name}


def test_a_module_fits_in_one_reading_and_a_function_on_one_screen():
    too_long = []
    for file in [ROOT / "app.py", *MODULES.values()]:
        text = file.read_text()
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        too_long += [f"{file.name}: {text.count(chr(10))} lines"] * (text.count("\n") > 350)
        too_long += [f"{file.name}: {f.name}" for f in functions if f.end_lineno - f.lineno >= 60]
    assert not too_long


def public(body: list) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, bool]]:
    """The public definitions, methods included, and whether each is a method."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node, False
            yield from ((method, True) for method, _ in public(node.body))
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            yield node, False


@pytest.mark.parametrize("name", MODULES)
def test_every_public_definition_has_annotations_and_a_docstring(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree)
    for node, is_method in public(tree.body):
        is_init = node.name == "__init__"
        assert is_init or ast.get_docstring(node), node.name
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][int(is_method) :]
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            assert all(argument.annotation for argument in given[int(static and is_method) :]), node.name
            assert is_init or node.returns, node.name
