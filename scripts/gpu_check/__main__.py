"""Check and measure everything that a GPU changes, part by part, in the order of their worth.

bash scripts/gpu_check.sh                        all parts, within six minutes, into runs/gpu_check/gpu_check.json
bash scripts/gpu_check.sh --done DIR             what DIR's gpu_check.json lacks, beside what it has
bash scripts/gpu_check.sh --keep DIR             measure nothing: make DIR's result the kept one, and docs/speed.md's table from it
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flowprior.distributed import best_device
from flowprior.errors import UserError, entry_point
from flowprior.run.files import read_json, write_json
from flowprior.run.presets import Parser
from scripts.gpu_check.cuda_lines import sort_lines
from scripts.gpu_check.parts import PARTS, REHEARSAL
from scripts.gpu_check.runner import Runner, compile_cache, executed_lines, temporary_folder
from scripts.gpu_check.table import keep, summary

ROOT = Path(__file__).resolve().parents[2]
RESULT = "gpu_check.json"
WHOLE = ("done", "disagrees")
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "triton")
# For the summary and for processes that take a moment to end.
SECONDS_TO_END = 5


@entry_point
def main() -> None:
    start = time.monotonic()
    arguments = parse(sys.argv[1:])
    if arguments.keep:
        print(keep(read_json(arguments.keep / RESULT, "result of the check"), ROOT))
        return
    result: dict[str, Any] = about(arguments.tiny) | {"parts": {}}
    begun: dict[str, Any] = {}
    if arguments.done:
        before = done_before(arguments.done, result)
        result |= {name: before[name] for name in ("seconds", "cuda_only_lines") if name in before}
        begun = {
            name: e["results"] for name, e in before["parts"].items() if e["status"] not in WHOLE and "results" in e
        }
        result["parts"] = dict(before["parts"])  # those that are not whole stand until they have run again
    names = arguments.only or list(PARTS)
    whole = {name for name, entry in result["parts"].items() if entry["status"] in WHOLE}
    parts = {name: (PARTS | REHEARSAL)[name] for name in names if name not in whole}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / RESULT

    def kept(name: str, entry: dict[str, Any]) -> None:
        if name in begun:
            entry["results"] = begun[name] | entry.get("results", {})
        result["parts"][name] = entry
        write_json(file, result)
        print(f"{time.monotonic() - start:5.0f} s  {name}: {entry['status']}  {entry.get('why', '')}", flush=True)

    with temporary_folder() as work:
        os.environ |= compile_cache(Path(work))
        deadline = start + 60 * arguments.minutes - SECONDS_TO_END
        Runner(parts, deadline, arguments.tiny, Path(work), kept, begun).run()
        executed = executed_lines(Path(work), ROOT)
    result["seconds"] = round(result.get("seconds", 0) + time.monotonic() - start, 1)
    if executed is None:
        result["cuda_only_lines"] = "not noted: the package coverage is not installed"
    else:
        result["cuda_only_lines"] = sort_lines(ROOT, executed, result.get("cuda_only_lines"))
    write_json(file, result)
    print(summary(result))
    print(f"{file}: everything that was found")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; what argparse objects to becomes a :class:`UserError`."""
    parser = Parser(prog="bash scripts/gpu_check.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="after which everything has ended [6]")
    parser.add_argument(
        "--only", nargs="+", choices=[*PARTS, *REHEARSAL], metavar="NAME", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_check"), help="folder of the result [runs/gpu_check]"
    )
    parser.add_argument(
        "--done", type=Path, help="folder of an earlier result of this device, whose parts are not run again"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the result in DIR under scripts/benchmarks/results"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to rehearse the check on any machine")

    arguments = parser.parse_args(words)
    if not arguments.minutes > 0:
        raise UserError(f"--minutes is a number above 0, not {arguments.minutes:g}")
    return arguments


def about(tiny: bool) -> dict[str, Any]:
    """The machine and the libraries."""
    device = best_device()
    machine: dict[str, Any] = {"device": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"device": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        machine["cuda"] = torch.version.cuda
    installed = {d.name.lower() for d in importlib.metadata.distributions() if d.name}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if name in installed}
    return {"machine": machine, "versions": {"python": platform.python_version(), **versions}, "tiny": tiny}


def done_before(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """An earlier result; a :class:`UserError` where it is of another device, other libraries or other sizes."""
    before = read_json(folder / RESULT, "result of the check")
    made_with, here = (
        f"{result.get('machine', {}).get('device')}{', toy sizes' * bool(result.get('tiny'))}, {result.get('versions')}"
        for result in (before, now)
    )
    if made_with != here:
        raise UserError(f"{folder / RESULT} is of {made_with}, and this is {here}: leave --done out")
    return before


if __name__ == "__main__":
    main()
