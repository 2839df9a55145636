"""The result of a check as text: lines for the terminal, and docs/speed.md's tables between two marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.run.files import write_json

RESULTS = Path("scripts/benchmarks/results/gpu_check")
PAGE = Path("docs/speed.md")
CELLS = Path("docs/results/study")  # one folder for each study
START, END = "<!-- GPU tables: bash scripts/gpu_check.sh --keep DIR -->", "<!-- end of GPU tables -->"

Row = tuple[str, ...]


def agreement_rows(result: dict[str, Any]) -> list[Row]:
    """What was compared with what, the relative difference, and the tensor where it is largest."""
    rows = []
    for part, name, value in _results(result):
        if "gradient" in value:
            largest = value["largest"]
            summary = (
                f"{value['gradient']:.1e} (loss {value['loss']:.0e}, {largest['tensor']} {largest['difference']:.0e})"
            )
        elif "difference" in value:
            summary = f"{value['difference']:.1e}"
        elif "skipped" in value:
            summary = f"{value['skipped']} skipped, loss {value['first loss']:.3g} to {value['last loss']:.3g}"
        elif "resumed" in value:
            summary = f"resumed {value['resumed']:.1e}, made twice {value['made twice']:.1e}"
        else:
            continue
        rows.append((part, name, summary))
    return rows


def speed_rows(result: dict[str, Any]) -> list[Row]:
    """Everything that has a rate."""
    rows = []
    for part, name, value in _results(result):
        if "samples_per_second" not in value:
            continue
        rate, flop = result["parts"][part]["results"].get("matmul_tflop_per_second"), value.get("tflop_per_second")
        rows.append(
            (
                f"{part}: {name}",
                f"{value['samples']}",
                f"{value['seconds']:.3g}",
                f"{value['samples_per_second']:,.4g}"
                if value["samples_per_second"] < 1e4
                else f"{value['samples_per_second']:,.0f}",
                f"{flop:.0f}" if flop else "",
                f"{100 * value['mfu']:.0f} %" if value.get("mfu") else "",
                f"{100 * flop / rate:.0f} %" if flop and rate else "",
                f"{value['peak_memory_gb']:.1f}" if "peak_memory_gb" in value else "",
            )
        )
    return rows


def kernel_rows(result: dict[str, Any]) -> list[Row]:
    """How busy the GPU is, and which kernels take its time."""
    rows = []
    for part, name, value in _results(result):
        if value.get("largest_kernels"):
            cells = [value.get("by_kind", {}), {short(k): share for k, share in value["largest_kernels"].items()}]
            busy = f"{100 * value['gpu_busy']:.0f} %" if "gpu_busy" in value else ""
            rows.append((f"{part}: {name}", busy, *map(_shares, cells)))
    return rows


def _shares(of: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in of.items() if share >= 0.01)


def other_rows(result: dict[str, Any]) -> list[Row]:
    """The rest: seconds and metrics of whole stages, graphs of a compiled step, shares."""
    rows = []
    shown = {"seconds", "samples", "samples_per_second", "tflop", "tflop_per_second", "mfu", "peak_memory_gb", "agree"}
    shown |= {"largest_kernels", "by_kind", "gpu_busy", "warm_up_seconds"}
    for part, name, value in _results(result):
        if "samples_per_second" in value:
            more = {k: v for k, v in value.items() if k not in shown}
        elif {"gradient", "difference", "skipped", "resumed"} & value.keys():
            continue
        else:
            more = value
        summary = ", ".join(f"{key.replace('_', ' ')} {_number(v)}" for key, v in more.items())
        if summary:
            rows.append((f"{part}: {name}", summary))
    return rows


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{_number(v)} ({k})" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _results(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """``(part, name, values)`` of every result that has values, but for the study's cells."""
    return [
        (part, name, value)
        for part, entry in result["parts"].items()
        for name, value in entry.get("results", {}).items()
        if isinstance(value, dict) and "cell" not in value
    ]


def short(kernel: str) -> str:
    """A kernel's name without its template's arguments and hashes."""
    return re.sub(r"<.*|\(.*", "", kernel.replace("(anonymous namespace)::", "")).replace("void ", "")[:60]


TABLES = {
    "The same numbers": (("part", "compared", "relative difference"), agreement_rows),
    "Speed": (
        ("what", "samples", "seconds", "samples a second", "TFLOP/s", "MFU", "of the matmul rate", "peak GB"),
        speed_rows,
    ),
    "Where the GPU's time goes": (("what", "GPU busy", "by kind of kernel", "largest kernels"), kernel_rows),
    "And": (("what", "found"), other_rows),
}


def about(result: dict[str, Any]) -> str:
    """The machine in a sentence."""
    machine, versions = result["machine"], result["versions"]
    rates = [
        e["results"]["matmul_tflop_per_second"]
        for e in result["parts"].values()
        if "matmul_tflop_per_second" in e.get("results", {})
    ]
    rate = f"; matmul rate measured beside the steps {min(rates):.0f} to {max(rates):.0f} TFLOP/s" if rates else ""
    where = f", {machine['cores']} CPU cores" if machine.get("cores") else ""
    return f"{machine['device']}{where}, PyTorch {versions['torch']}, timm {versions.get('timm', 'none')}, Python {versions['python']}{rate}"


def troubles(result: dict[str, Any]) -> list[str]:
    """A line for every part that is not done."""
    return [
        f"{name}: {entry['status']}: {entry.get('why', '')}"
        for name, entry in result["parts"].items()
        if entry["status"] != "done"
    ]


def summary(result: dict[str, Any]) -> str:
    """Everything for the terminal, the shortest last."""
    lines = [about(result)]
    for title, (head, make) in TABLES.items():
        if rows := make(result):
            widths = [min(70, max(len(row[i]) for row in (head, *rows))) for i in range(len(head))]
            lines += [f"--- {title}"]
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)
            ]
    noted = result.get("cuda_only_lines")
    if isinstance(noted, dict):
        lines += [
            f"--- {len(noted['not_executed'])} CUDA-only lines that no finished part has executed in its own process",
            *noted["not_executed"],
        ]
    elif noted:
        lines += [f"--- CUDA-only lines: {noted}"]
    if problems := troubles(result):
        lines += ["--- not done", *problems]
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The page's tables of one device."""
    lines = [f"### {result['machine']['device']}", "", about(result) + "."]
    for title, (head, make) in TABLES.items():
        if rows := make(result):
            cells = [head, ("---",) * len(head), *rows]
            lines += ["", f"**{title}**", "", *("| " + " | ".join(row) + " |" for row in cells)]
    if problems := troubles(result):
        lines += ["", "Not done: " + "; ".join(problems) + "."]
    noted = result.get("cuda_only_lines")
    if isinstance(noted, dict) and noted["not_executed"]:
        lines += [
            "",
            "CUDA-only lines that no finished part has executed in its own process:",
            "",
            *(f"- `{line}`" for line in noted["not_executed"]),
        ]
    return "\n".join(lines)


def page_tables(root: Path) -> str:
    """The tables of all devices whose results are kept, with the marks around them."""
    kept = [json.loads(file.read_text()) for file in sorted((root / RESULTS).glob("*.json"))]
    return "\n\n".join([START, *map(markdown, kept), END])


def keep(result: dict[str, Any], root: Path) -> str:
    """Keep ``result`` as its device's and renew the page's tables; the study's cells go to those that are finished. Says where it is.

    Raises:
        UserError: the result is of toy sizes.
    """
    if result["tiny"]:
        raise UserError("a rehearsal at toy sizes is not kept: run the check without --tiny")
    cells = {
        name: value["cell"]
        for part in result["parts"].values()
        for name, value in part.get("results", {}).items()
        if isinstance(value, dict) and "cell" in value
    }
    for part in result["parts"].values():
        part["results"] = {name: value for name, value in part.get("results", {}).items() if name not in cells}
    for name, cell in cells.items():
        write_json(root / CELLS / cell["study"] / f"{name}.json", cell)
    name = re.sub(r"[^a-z0-9]+", "_", result["machine"]["device"].lower()).strip("_")
    write_json(root / RESULTS / f"{name}.json", result)
    page = root / PAGE
    text = page.read_text()
    before, rest = text.split(START)
    page.write_text(before + page_tables(root) + rest.split(END)[1])
    told = f"{RESULTS / f'{name}.json'}, {PAGE}"
    return f"{told}, {len(cells)} cells in {CELLS} (`bash scripts/study.sh --docs` shows them)" if cells else told
