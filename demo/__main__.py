"""A page to play with a trained run, in a browser on this machine.

    bash scripts/demo.sh RUN [--port 7860]

RUN is a run's folder, runs/digits say. What it holds is on the page: generators draw classes with the guidance, sampler and seed that you
choose; the autoencoder rebuilds an image of yours, with noise on its latents if you like, and walks between two images; the flow prior's
samples lie beside the target's features.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo.trained_run import open_run
from flowprior.errors import UserError, entry_point
from flowprior.run.presets import Parser


@entry_point
def main() -> None:
    folder, port = parse(sys.argv[1:])
    try:
        import gradio  # noqa: F401  before the run is read, which takes a while
    except ModuleNotFoundError:
        raise UserError("the page needs gradio: pip install -r requirements-demo.txt") from None
    from demo.page import build_page, serve

    serve(build_page(open_run(folder)), port)


def parse(words: list[str]) -> tuple[Path, int]:
    """The run's folder and the port."""
    parser = Parser(prog="demo", description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    parser.add_argument("--port", type=int, default=7860, help="where the page is, http://127.0.0.1:PORT [7860]")
    arguments = parser.parse_args(words)
    if arguments.run is None:
        raise UserError("name a run: bash scripts/demo.sh runs/digits")
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port lies between 1 and 65535, not at {arguments.port}")
    return Path(arguments.run), arguments.port


if __name__ == "__main__":
    main()
