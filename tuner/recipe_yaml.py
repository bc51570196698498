"""YAML as a recipe needs it: plain values, by name or in lists. Strangers write recipes, so all is bounded.

Anchors, aliases, merge keys and tags are refused: a few hundred bytes of them stand for any amount of memory.
"""

from typing import Any

import yaml

from tuner.errors import TunerError

MOST_CHARACTERS = 2**19
MOST_VALUES = 5000
MOST_DEPTH = 10  # a recipe needs 3
MOST_DIGITS = 400  # a float has at most 309 in front of its point


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a recipe has no use for; `problem` continues "the recipe has"."""


class _Loader(yaml.SafeLoader):
    """SafeLoader, which stops at what is refused before anything is built from it."""

    values = depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """The next node, with all in it. Raises _Refused."""
        event = self.peek_event()
        self.values, self.depth = self.values + 1, self.depth + 1
        reasons = (
            (isinstance(event, yaml.AliasEvent) or event.anchor, "an anchor (&) or an alias (*)"),
            (getattr(event, "tag", None), "a tag (!)"),
            (isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<", "a merge key (<<)"),
            (self.values > MOST_VALUES, f"more than {MOST_VALUES:,} values"),
            (self.depth > MOST_DEPTH, f"more than {MOST_DEPTH} levels of nesting"),
        )
        if what := next((what for applies, what in reasons if applies), None):
            raise _Refused(problem=what, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, or its text if it has far too many digits, or none (0x_)."""
        construct = yaml.SafeLoader.yaml_constructors[node.tag]
        try:
            return construct(self, node) if len(node.value) <= MOST_DIGITS else node.value
        except ValueError:
            return node.value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
# No setting is a date, and YAML's dates may have a thirteenth month.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def read_yaml(text: str, name: str) -> Any:
    """What the text of a recipe stands for. Raises TunerError."""
    if len(text) > MOST_CHARACTERS:
        raise TunerError(f"{name} has more than {MOST_CHARACTERS:,} characters. Leave out all but its settings.")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        if isinstance(error, _Refused):
            raise TunerError(f"{name} has {problem}{where}. Write each setting out, as 'name: value'.") from None
        raise TunerError(f"{name} is not valid YAML{where}: {problem}. Fix it there.") from None
