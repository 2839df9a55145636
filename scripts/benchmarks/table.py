"""Results as text: a table for the terminal, and those of docs/speed.md, between marks that a test reads them back from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "speed.md"
START, END = "<!-- benchmark tables: bash scripts/benchmark.sh --docs -->", "<!-- end of benchmark tables -->"
COLUMNS = (
    "case",
    "of",
    "seconds",
    "per second",
    "GFLOP",
    "of the matmul rate",
    "arithmetic to plain",
    "seconds to plain",
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row of cells for every variant of every case."""
    made = []
    for name, case in result["cases"].items():
        for number, (variant, metrics) in enumerate(case["variants"].items()):
            gflop, counted = metrics["gflop"], metrics["share_of_matmul_rate"] >= 0.005
            made.append(
                (
                    f"{name}: {variant}",
                    case["size"] if number == 0 else "the same",
                    f"{metrics['seconds']:.3g}",
                    f"{metrics['samples_per_second']:,.3g} {case['unit']}"
                    if metrics["samples_per_second"] < 1000
                    else f"{metrics['samples_per_second']:,.0f} {case['unit']}",
                    "" if not gflop else f"{gflop:,.4g}" if gflop < 1000 else f"{gflop:,.0f}",
                    f"{100 * metrics['share_of_matmul_rate']:.0f} %" if counted else "",
                    of_plain(metrics["times_less_flop"]) if counted and "times_less_flop" in metrics else "",
                    of_plain(metrics["times_faster"]) if "times_faster" in metrics else "",
                )
            )
    return made


def of_plain(times_less: float) -> str:
    """What is left of the plain way's seconds or arithmetic: 1 / 2.35, or 1.13 where it is more."""
    return f"1 / {times_less:.2f}" if round(times_less, 2) >= 1 else f"{1 / times_less:.2f}"


def about(result: dict[str, Any]) -> str:
    """The machine in a sentence."""
    machine, versions = result["machine"], result["versions"]
    rates = [case["matmul_gflop_per_second"] for case in result["cases"].values()]
    peak = max(case["peak_memory_gb"] for case in result["cases"].values())
    return (
        f"{machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}, {machine['precision']}, PyTorch {versions['torch']}, "
        f"{'short' if result['quick'] else 'full'} run; matmul rate {min(rates):,.0f} to {max(rates):,.0f} GFLOP per second; "
        f"peak memory of a case, with all its rows, {peak:.1f} GB" + (f"; {result['note']}" if "note" in result else "")
    )


def markdown(result: dict[str, Any]) -> str:
    """The table of one machine, for a page."""
    cells = [COLUMNS, ("---",) * len(COLUMNS), *rows(result)]
    return f"{about(result)}:\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in cells)


def terminal(result: dict[str, Any]) -> str:
    """The same in columns of equal width."""
    cells = [COLUMNS, *rows(result)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join([about(result), *lines, *left_out(result), *costs(result)])


def left_out(result: dict[str, Any]) -> list[str]:
    """A line for every variant that the machine could not run."""
    return [
        f"{name}: {variant}: left out: {reason}"
        for name, case in result["cases"].items()
        for variant, reason in case.get("left_out", {}).items()
    ]


def costs(result: dict[str, Any]) -> list[str]:
    """A line for every variant that was profiled: the operators that take most of its time."""
    return [
        f"{name}: {variant}: "
        + ", ".join(f"{key} {100 * share:.0f} %" for key, share in metrics["largest_costs"].items())
        for name, case in result["cases"].items()
        for variant, metrics in case["variants"].items()
        if "largest_costs" in metrics
    ]


def page_tables(folder: Path = RESULTS) -> str:
    """The tables of all machines whose results are kept in ``folder``, a JSON file for each, with the marks around them."""
    kept = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return "\n\n".join([START, *map(markdown, kept), END])


def put_into(page: Path, folder: Path = RESULTS) -> None:
    """Replace what stands between the marks."""
    text = page.read_text()
    before, rest = text.split(START)
    page.write_text(before + page_tables(folder) + rest.split(END)[1])
