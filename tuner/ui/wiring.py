"""What the tabs' event handlers share: who may call them, and how many run at once."""

from tuner.models.device import ZERO

# For the page only; programs use the named endpoints.
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
CHECKS = {"concurrency_limit": 4, "concurrency_id": "check"}
# Base and adapter share one model that switches adapters row by row, so it gives one answer at a time. On ZeroGPU each
# job has a worker of its own.
MODELS = {"concurrency_limit": 8 if ZERO else 1, "concurrency_id": "models"}
# What a new visitor's browser remembers: the visitor's runs, and the one last shown.
NOBODY = {"runs": [], "shown": ""}
