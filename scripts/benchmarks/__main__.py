"""Measure what is expensive, on whatever device there is; prints a table and writes a JSON file.

bash scripts/benchmark.sh [--quick] [--profile] [--only CASE ...] [--out FILE]
bash scripts/benchmark.sh --docs      write the tables of docs/speed.md anew from scripts/benchmarks/results
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import multiprocessing
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from flowprior.errors import UserError, entry_point
from flowprior.heap import keep_freed_memory
from flowprior.run.files import write_json
from flowprior.run.machine import device_name
from flowprior.run.presets import Parser
from scripts.benchmarks.cases import CASES
from scripts.benchmarks.measure import Effort, measure
from scripts.benchmarks.table import PAGE, put_into, terminal

EFFORTS = {"tiny": Effort(1, 0.0), "quick": Effort(3, 0.3), "full": Effort(3, 1.0), "gpu": Effort(7, 2.0)}
LIBRARIES = ("torch", "torchvision", "timm", "numpy")


@entry_point
def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.docs:
        put_into(PAGE)
        return
    # A process for every case: memory is counted from zero, and given back. None of them has touched the device before it forks.
    result: dict[str, Any] = {"quick": arguments.quick, "cases": {}}
    start = time.perf_counter()
    for name in arguments.only or CASES:
        answer = in_process(name, arguments)
        result |= {"machine": answer["machine"], "versions": answer["versions"]}
        result["cases"][name] = answer["metrics"]
        result["seconds"] = time.perf_counter() - start
        write_json(arguments.out, result)
        print(f"{name}: measured ({result['seconds']:.0f} s)", file=sys.stderr, flush=True)
    print(terminal(result))
    print(f"{arguments.out}: all metrics ({result['seconds']:.0f} s)")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; what argparse objects to becomes a :class:`UserError`."""
    parser = Parser(prog="bash scripts/benchmark.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller batches and fewer rounds: under 3 minutes")
    parser.add_argument("--tiny", action="store_true", help="networks of toy size, to see that everything runs")
    parser.add_argument("--profile", action="store_true", help="also say which operators take most of the time")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"), help="[runs/benchmark.json]")
    parser.add_argument("--docs", action="store_true", help="measure nothing: write the tables of docs/speed.md")

    return parser.parse_args(words)


def in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`measured` says in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                answer = measured(name, arguments)
            sender.send(answer)
        except BaseException:
            traceback.print_exc()
            sender.send(None)

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:  # killed, for want of memory say
        answer = None
    process.kill()  # it has nothing left to do, but would wait at its end for loader processes that leave when it has gone
    process.join()
    if answer is None:
        raise UserError(f"the case '{name}' failed; its error, if it could tell, is above")
    return answer


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case's metrics, and what they were measured on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    level = "tiny" if arguments.tiny else "gpu" if device.type == "cuda" else "quick" if arguments.quick else "full"
    effort = EFFORTS["quick" if arguments.quick and level != "tiny" else level]
    torch.manual_seed(0)
    if device.type == "cpu":
        keep_freed_memory()  # as every stage does
    with tempfile.TemporaryDirectory() as folder:
        metrics = measure(CASES[name](level, device, Path(folder)), device, effort, arguments.profile)
    machine = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if device.type == "cuda" else "float32",
    }
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"metrics": metrics, "machine": machine, "versions": {"python": platform.python_version(), **versions}}


if __name__ == "__main__":
    main()
