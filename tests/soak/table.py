"""The scorecard's table in docs/reliability.md, from the kept results: ``bash scripts/soak.sh --docs`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = Path(__file__).with_name("results.json"), ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scripts/soak.sh: begin -->", "<!-- scripts/soak.sh: end -->"


def table(results: dict[str, Any]) -> str:
    """Rows in Markdown, with the number of trials and of those that held."""
    lines = ["| row | what | tried | held |", "|---|---|---|---|"]
    for number, row in results.items():
        form = ", quick form" if row["quick"] else "" if row["share"] == 1 else f", {row['share']:.0%} of the long form"
        lines.append(f"| {number} | {row['title']}{form} | {row['tried']:,} | {row['held']:,} |")
    notes = [f"Row {number}: {row['note']}." for number, row in results.items() if row["note"]]
    return "\n".join([*lines, "", *notes] if notes else lines)


def in_page(page: str) -> str:
    """The table that stands between the marks of ``page``."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def put_into(page: Path) -> None:
    """Replace what stands between the marks."""
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(json.loads(RESULTS.read_text()))}\n{END}{after}")
