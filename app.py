"""The Space, and the page on your own machine: `python app.py`, then http://127.0.0.1:7860."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Progress bars of libraries have no place in a server's log.
for bars in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
    os.environ.setdefault(bars, "1")

from tuner import gpu  # noqa: E402, F401  first: on ZeroGPU `spaces` has to be imported before torch
from tuner.data.parse import MAX_FILE_BYTES  # noqa: E402
from tuner.ui import page  # noqa: E402

WAITING = 100  # requests that may wait in line


def main() -> None:
    """Serve the page until it is stopped."""
    page.build().queue(max_size=WAITING, default_concurrency_limit=8).launch(
        server_name="0.0.0.0" if "SPACE_ID" in os.environ else None,
        theme=page.theme(),
        css_paths=page.CSS,
        footer_links=["api"],
        run_history=False,
        mcp_server=False,
        max_file_size=MAX_FILE_BYTES + 2**20,  # what is larger than the limit by little gets its own sentence
        show_error=True,
        max_threads=2 * WAITING,  # who looks on at a run holds one
    )


if __name__ == "__main__":
    main()
