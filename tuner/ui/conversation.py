"""A conversation with one model: what was asked and answered, as the plain text that it is.

gr.Chatbot turns tags into elements even where it renders no Markdown, and loads the images that they name.
"""

import gradio as gr

from tuner.run_shapes import Turn

# Each turn in an element of its own. Names in double braces would not do, because Gradio evaluates `${...}` in them.
TURNS = """<div class="t-turns">${(value || []).map((turn) => `<div class="t-turn">
<div class="${turn.role === 'user' ? 'user' : 'bot'} message">${new Option(turn.content).innerHTML}</div>
<button class="t-copy" aria-label="Copy" title="Copy">⧉</button></div>`).join('')}</div>"""
COPY = """element.addEventListener('click', (event) => {
    const button = event.target.closest('.t-copy');
    if (button) navigator.clipboard?.writeText(button.previousElementSibling.textContent);
});"""


def build(title: str, name: str) -> gr.HTML:
    """The component; its value is a list of turns."""
    return gr.HTML(
        [],
        label=title,
        show_label=True,
        html_template=TURNS,
        js_on_load=COPY,
        visible=bool(title),
        elem_id=name,
        elem_classes="t-conversation",
        min_width=240,
        min_height=200,
        max_height=460,
        container=True,
        autoscroll=True,
    )


def until_answered(column: list[Turn] | None) -> list[Turn]:
    """A column's turns up to the last answer: it may have been stopped before the next one began."""
    turns = list(column or [])
    while turns and turns[-1]["role"] == "user":
        turns.pop()
    return turns
