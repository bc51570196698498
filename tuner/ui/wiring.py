"""What the tabs' event handlers have in common: who may call them, and how many of them run at once."""

# Of the page's own; programs use the named endpoints.
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
CHECKS = {"concurrency_limit": 4, "concurrency_id": "check"}
# Base and adapter share one model, whose adapter is switched by row while it answers: one answer at a time.
MODELS = {"concurrency_limit": 1, "concurrency_id": "models"}
NOBODY = {
    "runs": [],
    "shown": "",
}  # what a new visitor's browser keeps: the visitor's runs, and the one last looked at
