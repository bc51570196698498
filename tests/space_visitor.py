"""A visitor of the page without a browser: values of its controls, and the handlers that a click or a change runs.

visitor = Visitor(url)
visitor.fire(visitor.find(elem_id="apply"), "click")
visitor.values[visitor.find(elem_id="card")]
"""

from gradio_client import Client


class Visitor:
    """What a browser does with the page's own handlers, which are kept from programs: `values` are by control."""

    def __init__(self, url: str):
        # Browsers send a place for each input, hidden state too.
        self.client = Client(url, verbose=False, _skip_components=False)
        self.controls = {c["id"]: c["props"] for c in self.client.config["components"]}
        self.handlers = self.client.config["dependencies"]
        self.values = {control: settings.get("value") for control, settings in self.controls.items()}
        self.visible: dict[int, bool] = {}  # where a handler has changed it

    def find(self, **settings: str) -> int:
        """The one control with these settings."""
        (found,) = (control for control, known in self.controls.items() if settings.items() <= {**known}.items())
        return found

    def fire(self, control: int | None, event: str) -> None:
        """Run what this event of the control runs (None: of the page itself), and what follows from it."""
        for handler in self.handlers:
            if any(name == event and control in (None, source) for source, name in handler["targets"]):
                self._run(handler)

    def _run(self, handler: dict) -> None:
        if handler["backend_fn"]:
            self.client.endpoints[handler["id"]].is_valid = True
            given = [self.values[control] for control in handler["inputs"]]
            answer = self.client.submit(*given, fn_index=handler["id"]).result()
            answers = [answer] if len(handler["outputs"]) == 1 else answer
            for control, value in zip(handler["outputs"], answers or []):
                self._show(control, value)
        for later in self.handlers:
            if later.get("trigger_after") == handler["id"]:
                self._run(later)

    def _show(self, control: int, value: object) -> None:
        if isinstance(value, dict) and value.get("__type__") == "update":
            self.visible[control] = value.get("visible", self.visible.get(control, True))
            value = value.get("value", self.values.get(control))
        self.values[control] = value
