"""The commands of a generator's room: ``python -m <generator> COMMAND [--preset NAME] [option=value ...]``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping

from flowprior.errors import UserError, entry_point
from generation.config import GenerationConfig

Command = Callable[[type[GenerationConfig]], None]

# Each is a module beside this one, imported when it is asked for: some bring libraries that the others do without.
COMMANDS = {
    "cache_latents": "encode every image once",
    "estimate_scale": "measure the cached latents, and keep their scale with them",
    "train": "train the generator on cached latents",
    "generate": "sample images from the trained generator",
    "evaluate": "measure the sampled images",
}


def run(stage: type[GenerationConfig], own: Mapping[str, Command] | None = None) -> None:
    """What a room's ``__main__.py`` does: the command that the first word on the command line names, with the rest of the words.

    Args:
        stage: the room's config.
        own: commands of the room by name, beside those of :data:`COMMANDS` or in their place; the first line of the docstring says what each does.
    """

    def main() -> None:
        meanings = COMMANDS | {name: (body.__doc__ or "").split("\n")[0] for name, body in (own or {}).items()}
        word = sys.argv[1] if len(sys.argv) > 1 else ""
        if word in ("-h", "--help"):
            print(f"usage: python -m {stage.NAME} COMMAND [--preset NAME] [option=value ...]\n")
            width = max(map(len, meanings))
            print("\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in meanings.items()))
            print(f"\n{stage.command('COMMAND')} --help lists the options.")
            return
        if word not in meanings:
            raise UserError(f"'{word}' is no command of {stage.NAME}: write one of {', '.join(meanings)} (--help)")
        body = (own or {}).get(word) or importlib.import_module(f"generation.{word}").main
        sys.argv = [stage.command(word), *sys.argv[2:]]
        body(stage)

    entry_point(main)()
