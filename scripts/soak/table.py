"""The README's table of the scorecard, from the kept results: ``python -m soak.table`` writes it into the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, README = Path(__file__).with_name("results.json"), ROOT / "README.md"
BEGIN, END = "<!-- scripts/soak.sh: begin -->", "<!-- scripts/soak.sh: end -->"


def table(results: dict[str, Any]) -> str:
    """Rows in Markdown, with the number of trials and of those that held."""
    lines = ["| row | what | tried | held |", "|---|---|---|---|"]
    for number, row in results.items():
        form = ", quick form" if row["quick"] else "" if row["share"] == 1 else f", {row['share']:.0%} of the long form"
        lines.append(f"| {number} | {row['title']}{form} | {row['tried']:,} | {row['held']:,} |")
    notes = [f"Row {number}: {row['note']}." for number, row in results.items() if row["note"]]
    return "\n".join([*lines, "", *notes] if notes else lines)


def in_readme(readme: str) -> str:
    """The table that stands in the README."""
    return readme.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    readme = README.read_text()
    new = table(json.loads(RESULTS.read_text()))
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}")


if __name__ == "__main__":
    main()
