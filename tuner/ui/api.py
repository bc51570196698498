"""The named endpoints: all that the page can do, for gradio_client and other programs.

    client = Client(URL)
    run = client.predict(recipe="budget: {steps: 40}", rows="prompt,completion\\n...", api_name="/start")["run"]
"""

from collections.abc import Iterator

import gradio as gr

from tuner.errors import TunerError
from tuner.recipe import Recipe
from tuner.ui import actions, progress
from tuner.ui.actions import VARIANTS
