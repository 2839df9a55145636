"""The kept results: of every row one part for each time that some of the stages were tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")


def read(file: Path) -> dict[str, Any]:
    """Rows by their number, with ``title`` and ``parts``; none where there is no file yet."""
    return json.loads(file.read_text()) if file.is_file() else {}


def add(file: Path, number: int, title: str, part: dict[str, Any]) -> None:
    """Keep a part in place of those whose stages it has tried again.

    Raises:
        ValueError: a part that is kept has some of its stages and others besides, so that one would count twice.
    """
    results = read(file)
    stages, kept = set(part["stages"]), []
    for other in results.get(str(number), {"parts": []})["parts"]:
        if stages.isdisjoint(other["stages"]) and other["stages"]:
            kept.append(other)
        elif not stages >= set(other["stages"]):
            raise ValueError(f"row {number} was tried with {', '.join(other['stages'])} together: try all of them")
    results[str(number)] = {"title": title, "parts": [*kept, part]}
    ordered = {key: results[key] for key in sorted(results, key=int)}
    file.write_text(json.dumps(ordered, indent=2, allow_nan=False) + "\n")


def stages_of(row: dict[str, Any]) -> set[str]:
    """All stages that the row has tried."""
    return {stage for part in row["parts"] for stage in part["stages"]}
