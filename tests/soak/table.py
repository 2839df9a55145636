"""The scorecard's table in docs/reliability.md, from the kept results: ``bash scripts/soak.sh --docs`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soak.kept import RESULTS, read, stages_of
from soak.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scripts/soak.sh: begin -->", "<!-- scripts/soak.sh: end -->"


def table(results: dict[str, Any]) -> str:
    """Rows in Markdown, with the stages that a row went through one by one, the number of trials and of those that held."""
    lines = ["| row | what | stages | tried | held |", "|---|---|---|---|---|"]
    for number, row in results.items():
        tried, held = (sum(part[key] for part in row["parts"]) for key in ("tried", "held"))
        what = f"{row['title']}{', '.join(['', *sorted({_form(part) for part in row['parts']} - {''})])}"
        lines.append(f"| {number} | {what} | {_stages(int(number), row)} | {tried:,} | {held:,} |")
    notes = [
        f"Row {number}: {part['note']}." for number, row in results.items() for part in row["parts"] if part["note"]
    ]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _form(part: dict[str, Any]) -> str:
    return "quick form" if part["quick"] else "" if part["share"] == 1 else f"{part['share']:.0%} of the long form"


def _stages(number: int, row: dict[str, Any]) -> str:
    """How many, and which are not among them."""
    each, tried = ROWS[number].each, stages_of(row)
    if not each:
        return ""
    without = [f"`{name}`" for name in each if name not in tried]
    return f"{len(tried)} of {len(each)}: not {', '.join(without)}" if without else f"all {len(each)}"


def in_page(page: str) -> str:
    """The table that stands between the marks of ``page``."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def put_into(page: Path) -> None:
    """Replace what stands between the marks."""
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(read(RESULTS))}\n{END}{after}")
