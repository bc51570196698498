"""The page with its controls by name, and what each control does, one line for each handler."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import gradio as gr
import pytest

from tuner.ui import actions, compare_tab, form, page, playground_tab, runs_tab, train_tab

TABS = {"train": train_tab, "play": playground_tab, "compare": compare_tab, "mine": runs_tab}


def changed(component: gr.components.Component) -> str:
    """The event that says that an input has another value; for text, that its writer has left it."""
    return "blur" if isinstance(component, gr.Textbox) else "change"


class BuiltPage:
    """The whole page: `blocks`, the tabs as `train`, `play` and `mine`, and `names` of components by their id."""

    def __init__(self, *, has_oauth: bool):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "has_oauth", lambda: has_oauth)
            patch.setattr("gradio.routes.attach_oauth", lambda app: None)  # it works on a Space alone
            self.installed: list[str] = []  # what building the page puts into the folder of runs
            patch.setattr(actions, "install_example", lambda: self.installed.append(actions.EXAMPLE))
            for name, module in TABS.items():
                patch.setattr(module, "build", self._kept(name, module.build))
            self.blocks = page.build()
        self.names = {self.blocks._id: "page"}
        for name in TABS:
            self._name(getattr(self, name), f"{name}.")
        tabs = [block for block in self.blocks.blocks.values() if isinstance(block, gr.Tabs | gr.Tab)]
        self.names |= {block._id: getattr(block, "label", None) or "tabs" for block in tabs}
        self.groups = {
            "form.fill": form.fill_outputs(self.train.form),
            "train.panel": self.train.panel,
            "play.columns": self.play.columns,
            "form.roles": [*self.train.form.roles, self.train.form.parts],
            "mine.list": self.mine.outputs,
            "compare.panel": self.compare.panel,
        }

    def _kept(self, name: str, build: Callable) -> Callable:
        def kept(*given, **settings) -> SimpleNamespace:
            setattr(self, name, build(*given, **settings))
            return getattr(self, name)

        return kept

    def _name(self, controls: SimpleNamespace, prefix: str) -> None:
        for name, value in vars(controls).items():
            if isinstance(value, SimpleNamespace):
                self._name(value, f"{name}.")
            elif name == "settings":
                self.names |= {component._id: path for path, component in value.items()}
            elif name in ("roles", "columns"):
                self.names = {c._id: f"{prefix}{name}{i}" for i, c in enumerate(value)} | self.names
            elif isinstance(value, gr.blocks.Block):
                self.names.setdefault(value._id, f"{prefix}{name}")

    def function(self, trigger: str, name: str = "") -> Callable:
        """The function, of this name if one is given, that a trigger such as "play.send.click" calls."""
        called = [f for f in self._handlers() if trigger in self._triggers(f).split(" or ")]
        return next(f.fn for f in called if name in ("", f.name))

    def wires(self) -> Iterator[str]:
        """A line for each of the page's own handlers: trigger: function(inputs) -> outputs [how it is run]."""
        for handler in self._handlers():
            inputs = self._all_of_the_form(handler) if handler.inputs_as_dict else self._list(handler.inputs)
            line = f"{self._triggers(handler)}: {handler.name}({inputs}) -> {self._list(handler.outputs)}"
            yield f"{line} [{self.limits(handler)}]"

    def _handlers(self) -> list:
        return [f for f in self.blocks.fns.values() if f.api_visibility == "private"]

    def _triggers(self, handler) -> str:
        if handler.trigger_after is not None:
            return f"after {self._triggers(self.blocks.fns[handler.trigger_after])}"
        shown = [c for c in self.train.form.inputs if not isinstance(c, gr.State)]
        if sorted(handler.targets) == sorted((c._id, changed(c)) for c in shown):
            return "any input"
        return " or ".join(f"{self.names[id]}.{event}" for id, event in handler.targets)

    def _all_of_the_form(self, handler) -> str:
        others = {c._id for c in handler.inputs} - {c._id for c in self.train.form.inputs}
        assert len(handler.inputs) == len(self.train.form.inputs) + len(others)
        return " ".join(["form", *sorted(self.names[id] for id in others)])

    def _list(self, components: list) -> str:
        names = " ".join(self.names[c._id] for c in components)
        for group, members in self.groups.items():
            names = names.replace(" ".join(self.names[c._id] for c in members), group)
        return names

    def limits(self, handler) -> str:
        """How many calls of the handler run at once, and with which others they share this number."""
        if handler.cancels:
            return "cancels " + ", ".join(self._triggers(self.blocks.fns[id]) for id in handler.cancels)
        if not handler.queue:
            return "at once"
        shared = "" if handler.concurrency_id.isdigit() else f" {handler.concurrency_id}"
        newest = ", newest" if handler.trigger_mode == "always_last" else ""
        return f"{handler.concurrency_limit}{shared}{newest}"
