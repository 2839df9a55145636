"""A case of row 18: what is done, and what must come of it."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.notes import forget_notes


@dataclass(frozen=True)
class Case:
    """Unusual input.

    Args:
        label: what is unusual.
        act: makes it in an empty folder and does with it what the project does.
        used: what ``act`` must return, unless it is refused.
        said: words of the one line that it must print; without them it must print nothing.
        refused: words of the one line in which it must be refused.
        error: as what.
    """

    label: str
    act: Callable[[Path], Any]
    used: Any = None
    said: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    error: type[Exception] = UserError

    def problem(self, folder: Path) -> str | None:
        """What is wrong with what comes of it."""
        printed = io.StringIO()
        forget_notes()
        try:
            with contextlib.redirect_stderr(printed):
                value = self.act(folder)
        except Exception as error:
            line = str(error)
            if not self.refused or not isinstance(error, self.error) or "\n" in line:
                return f"{type(error).__name__}: {line}"
            missing = [word for word in self.refused if word not in line]
            return f"{missing} not named: {line}" if missing else None
        # How many images there are and where labels come from, or that there are none, is always said, and is no remark on unusual input.
        origin = re.compile(
            r"note: (.* has \d+ images?.* of \d+ class(es)?, whose labels come from .*|.* says no labels: its .* one class.*)$"
        )
        said = printed.getvalue().splitlines()
        wanted = [line for line in said if self.said and all(word in line for word in self.said)]
        lines = [line for line in said if line in wanted or not origin.match(line)]
        if self.refused:
            return f"taken for {value!r}"[:300]
        if value != self.used:
            return f"{value!r} in place of {self.used!r}"[:300]
        if len(lines) != bool(self.said) or not all(word in line for line in lines for word in self.said):
            return f"it says {lines}"
        return None
