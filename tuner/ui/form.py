"""The three cards in which a visitor says what to train, and the recipe read from them."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner import recipe
from tuner.data.formats import FORMATS
from tuner.data.parse import NAMED, SUFFIXES
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.recipe import Recipe
from tuner.ui import actions, chooser, elements, fields, mapping
from tuner.ui.actions import Entered
from tuner.ui.visitor import ANYBODY, Visitor

BASES = [
    ("tiny-office · included, writes text", "tiny-office"),
    ("tiny-summarizer · included, rewrites text", "tiny-summarizer"),
    ("tiny-reader · included, labels text", "tiny-reader"),
    ("Qwen/Qwen3-0.6B · from the Hub", "Qwen/Qwen3-0.6B"),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0 · from the Hub", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ("google/flan-t5-base · from the Hub", "google/flan-t5-base"),
    ("distilbert/distilbert-base-uncased · from the Hub", "distilbert/distilbert-base-uncased"),
]
# What the included rows are, and the included base model that suits them.
EXAMPLES = {
    "corporate.jsonl": ("casual messages and how a manager would write them", "tiny-office"),
    "support.jsonl": ("customer-support dialogues and their summaries", "tiny-summarizer"),
    "reviews.jsonl": ("product reviews and their sentiment", "tiny-reader"),
    "entities.jsonl": ("sentences and the people, places, companies and dates in them", "tiny-reader"),
}
SOURCES = [("Included example", "example"), ("Upload a file", "file"), ("Paste rows", "paste"), ("Hub dataset", "hub")]
IN_PARTS = ("file", "hub")  # sources that may have sheets, configurations and splits
PASTED = "pasted rows"
BUDGETS = ("auto", "steps", "epochs", "seconds")


def build(start: Recipe) -> SimpleNamespace:
    """The cards, filled in from `start`; `.settings` are inputs by the setting's path, `.inputs` all inputs."""
    form = SimpleNamespace(settings={})
    _base_card(form, start)
    _rows_card(form, start)
    _method_card(form, start)
    source = [form.where, form.example, form.file, form.pasted, form.hub]
    form.inputs = [*form.settings.values(), *form.roles, *source, form.kind, form.amount, form.parts]
    return form


def _base_card(form: SimpleNamespace, start: Recipe) -> None:
    with gr.Column(elem_classes="t-group"):
        gr.HTML("<h2><b>1</b> Base model</h2>")
        form.settings["model.name"] = gr.Dropdown(
            BASES,
            value=start.model.name,
            allow_custom_value=True,
            label="Base model",
            info="choose one of these, or type the name of any model on the Hub",
            elem_id="base",
        )
        form.settings["model.quantization"] = gr.Radio(
            [(PRECISIONS[v], v) for v in fields.schema("model.quantization")["enum"]],
            value=start.model.quantization,
            label="Precision",
            info="of the frozen base model: 4-bit saves memory, 16-bit is exact",
        )


def _rows_card(form: SimpleNamespace, start: Recipe) -> None:
    shipped = sorted(f.name for f in recipe.EXAMPLES.glob("*") if f.suffix in SUFFIXES)
    with gr.Column(elem_classes="t-group"):
        gr.HTML("<h2><b>2</b> Your rows</h2>")
        form.where = gr.Radio(SOURCES, value="example", label="Source of the rows", show_label=False, elem_id="where")
        form.example = gr.Dropdown(
            shipped,
            value=start.data.source,
            label="Example",
            info=EXAMPLES[start.data.source][0],
        )
        form.file = gr.File(
            label=f"Files of rows ({NAMED})", file_count="multiple", visible=False, height=130, elem_id="file"
        )
        form.pasted = gr.Textbox(
            label="Rows as CSV, JSON Lines, or two columns copied from a spreadsheet",
            placeholder="prompt,completion\nhi there,Good day.",
            lines=6,
            max_lines=14,
            visible=False,
            elem_id="pasted",
        )
        with gr.Row(visible=False) as form.hub_row:
            form.hub = gr.Textbox(label="Dataset", placeholder="owner/name", scale=2, elem_id="hub")
        with gr.Row(visible=False) as form.parts_row:
            for path in ("data.config", "data.split"):
                form.settings[path] = fields.component(path, start, min_width=120)
        with gr.Accordion("How the rows are read", open=False):
            with gr.Row():
                for path in ("data.format", "data.system"):
                    form.settings[path] = fields.component(path, start, min_width=180)
            with gr.Row(elem_classes="t-roles"):
                form.roles, form.parts = mapping.build(start)
            with gr.Row():
                for path in fields.paths("data"):
                    if path not in fields.OWN and path not in form.settings:
                        form.settings[path] = fields.component(path, start, min_width=180)
        with gr.Accordion("What the model will see", open=False) as form.preview_fold:
            form.preview = gr.HTML(elements.note("Reading the rows …"), elem_id="preview")
            form.is_previewed = gr.State(False)


def _method_card(form: SimpleNamespace, start: Recipe) -> None:
    kind = budget_kind(start)
    with gr.Column(elem_classes="t-group"):
        gr.HTML("<h2><b>3</b> Method and budget</h2>")
        form.settings["method.name"] = gr.Dropdown(
            chooser.choices(), value=start.method.name, label="Method", elem_id="method"
        )
        form.explained = gr.HTML(chooser.explanation(start.method.name))
        with gr.Accordion("Compare all methods", open=False) as form.methods_fold:
            form.methods = gr.HTML(chooser.html({}, start.method.name), js_on_load=chooser.CLICKED, elem_id="methods")
            form.is_surveyed = gr.State(False)
        with gr.Row():
            form.kind = gr.Radio(
                [(k.capitalize(), k) for k in BUDGETS],
                value=kind,
                label="Budget",
                scale=3,
                min_width=260,
                elem_id="kind",
            )
            form.amount = gr.Number(
                getattr(start.budget, kind, None),
                **amount_looks(kind),
                scale=2,
                min_width=140,
                elem_id="amount",
            )
        with gr.Accordion("More settings", open=False):
            form.settings["name"] = fields.component("name", start)
            for part in ("method", "training", "evaluation", "model"):
                left = [p for p in fields.paths(part) if p not in fields.OWN and p not in form.settings]
                gr.HTML(f'<h3 class="t-part">{part.capitalize()}</h3>')
                with gr.Row():
                    for path in left:
                        hidden = {} if applies(path, start.method.name) else {"visible": False}
                        form.settings[path] = fields.component(path, start, min_width=180, **hidden)
            with gr.Row():
                for path in ("task", "seed"):
                    form.settings[path] = fields.component(path, start, min_width=180)


def applies(path: str, method: str) -> bool:
    """Whether the method uses a setting; settings outside of `method` apply to all."""
    part, _, leaf = path.rpartition(".")
    if part != "method" or leaf == "name" or method not in METHODS:
        return True
    return METHODS[method].continues if leaf == "start_from" else leaf in METHODS[method].settings


def show_method(form: SimpleNamespace, method: str) -> list:
    """Updates for another method: its explanation, and which of its settings are shown."""
    own = [path for path in form.settings if path.startswith("method.") and path != "method.name"]
    return [chooser.explanation(method), *(gr.update(visible=applies(path, method)) for path in own)]


def method_outputs(form: SimpleNamespace) -> list:
    """The outputs of `show_method`."""
    own = [form.settings[path] for path in form.settings if path.startswith("method.") and path != "method.name"]
    return [form.explained, *own]


def show_example(name: str) -> list:
    """Updates for other included rows: what they are, the base model that suits them, and its precision."""
    description, base = EXAMPLES.get(name, ("", None))
    if base is None:
        return [gr.update(info=description), gr.skip(), gr.skip()]
    return [gr.update(info=description), base, "nf4" if base == "tiny-office" else "none"]


def budget_kind(source: Recipe) -> str:
    """Which of BUDGETS the recipe has."""
    return next((kind for kind in BUDGETS[1:] if getattr(source.budget, kind)), "auto")


def amount_looks(kind: str) -> dict:
    """How the amount of this kind of budget is labeled and explained; there is none of one that Tuner chooses."""
    info = "" if kind == "auto" else fields.schema(f"budget.{kind}")["description"]
    return {"label": kind.capitalize(), "info": info, "visible": kind != "auto"}


def show_source(where: str) -> list:
    """Updates of example, file, pasted, hub_row and parts_row: only the chosen source is shown."""
    return [*(gr.update(visible=where == kind) for _, kind in SOURCES), gr.update(visible=where in IN_PARTS)]


def suit_budget(where: str) -> list:
    """Updates of kind and amount: an example's budget says nothing about other rows."""
    if where == "example":
        return [gr.skip(), gr.skip()]
    return [gr.update(value="auto"), gr.update(**amount_looks("auto"))]


def read(form: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> tuple[Recipe, Entered | None]:
    """The recipe, and the uploaded or pasted rows. Raises TunerError with all problems of both."""
    problems, requested, rows = [], None, None
    try:
        requested = Recipe.parse(fields.to_settings(_values(form, data)))
    except TunerError as error:
        problems += error.problems
    try:
        rows = entered_rows(form, data)
        if problems and rows:
            actions.columns(rows, visitor=visitor)
    except TunerError as error:
        problems += error.problems
    if problems:
        raise TunerError(*problems)
    return requested, rows


def _values(form: SimpleNamespace, data: dict) -> dict:
    method = data[form.settings["method.name"]]
    values = {path: data[component] for path, component in form.settings.items() if applies(path, method)}
    where, files = data[form.where], [Path(file).name for file in _files(data[form.file])]
    named = files if len(files) > 1 else "".join(files)
    sources = {"example": data[form.example], "file": named, "paste": PASTED, "hub": data[form.hub]}
    values["data.source"] = sources[where] or "rows"
    if where not in IN_PARTS:
        values["data.config"] = None
    values["data.columns"] = mapping.read(form, data)
    if data[form.kind] != "auto":
        values[f"budget.{data[form.kind]}"] = data[form.amount]
    return values


def entered_rows(form: SimpleNamespace, data: dict) -> Entered | None:
    """The uploaded or pasted rows; None if the recipe names their source. Raises TunerError if there are none."""
    where = data[form.where]
    if where == "paste":
        return Entered(pasted=data[form.pasted] or "")
    if where == "file":
        if not data[form.file]:
            raise TunerError(f"There is no file of rows yet. Upload one ({NAMED}), or choose the included example.")
        return Entered(_files(data[form.file]))
    if where == "hub" and not (data[form.hub] or "").strip():
        raise TunerError(
            "No dataset is named. Enter its name on the Hub (owner/name), or choose the included example."
        )
    return None


def _files(uploaded: str | list[str] | None) -> list[str]:
    """The paths of what was uploaded."""
    return [uploaded] if isinstance(uploaded, str) else list(uploaded or [])


def show_columns(form: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> list:
    """Updates of the inputs for the mapping: one for each part of the format, offering the columns of the rows."""
    columns = []
    if data[form.settings["data.format"]] in list(FORMATS):  # a program may send what has no hash
        with suppress(TunerError):  # shown in the plan's card
            rows = entered_rows(form, data)
            if rows or data[form.where] == "example":
                given = {leaf: data[form.settings[f"data.{leaf}"]] for leaf in ("encoding", "header", "config")}
                reading = {leaf: value for leaf, value in given.items() if value}
                columns = actions.columns(rows, data[form.example], reading, visitor)
    return mapping.show(form, data, columns)


def fill_outputs(form: SimpleNamespace) -> list:
    """The outputs of `fill`."""
    inputs = [form.where, form.example, form.hub, form.kind, form.amount]
    return [*form.settings.values(), *inputs, *mapping.mapped(form)]


def fill(form: SimpleNamespace, source: Recipe) -> list:
    """Updates that show a recipe in the form. Rows that were uploaded or pasted must be entered again."""
    named = source.data.title
    is_shipped = (recipe.EXAMPLES / Path(named).name).is_file()
    where = "example" if is_shipped else "hub" if "/" in named else gr.skip()
    kind = budget_kind(source)
    return [
        *(gr.update(value=fields.to_input(path, source)) for path in form.settings),
        gr.update(value=where) if isinstance(where, str) else where,
        gr.update(value=named) if is_shipped else gr.skip(),
        gr.update(value=named) if where == "hub" else gr.skip(),
        gr.update(value=kind),
        gr.update(value=getattr(source.budget, kind, None), **amount_looks(kind)),
        *mapping.fill(source),
    ]
