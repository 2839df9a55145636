"""Try every row of the reliability scorecard, and say how much of it held.

    bash scripts/soak.sh [--quick] [--rows 1,3,4] [--stages sit,distil] [--seed 0] [--share 1] [--json FILE]
    bash scripts/soak.sh --docs      write the table of docs/reliability.md anew from the kept results

Prints ``row, tried, held`` per line, and every failure with what repeats it. Rows that a machine cannot try, such as a full disk where
small disks cannot be mounted, are printed with the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from soak.kept import add
from soak.rows import ROWS, try_row
from soak.stages import STAGES, Soak
from soak.table import PAGE, put_into


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bash scripts/soak.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a handful of each, in under five minutes")
    parser.add_argument(
        "--rows",
        help=f"numbers joined by commas [all]: {', '.join(f'{number} {row.title}' for number, row in ROWS.items())}",
    )
    parser.add_argument("--stages", help=f"stages that the rows try, joined by commas [all]: {', '.join(STAGES)}")
    parser.add_argument("--seed", type=int, default=0, help="of every random instant and mutation [0]")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form's random trials, for less time [1]")
    parser.add_argument("--json", type=Path, help="file to which the rows that were tried are added")
    parser.add_argument("--docs", action="store_true", help="try nothing: write the table of docs/reliability.md")
    arguments = parser.parse_args()
    if arguments.docs:
        put_into(PAGE)
        return 0
    try:
        chosen = [int(number) for number in arguments.rows.split(",")] if arguments.rows is not None else list(ROWS)
        rows = {number: ROWS[number] for number in chosen}
        stages = arguments.stages.split(",") if arguments.stages is not None else STAGES
        if unknown := set(stages) - set(STAGES):
            raise KeyError(*unknown)
    except (ValueError, KeyError):
        lists = f"--rows is a list of {', '.join(map(str, ROWS))}, and --stages of {', '.join(STAGES)}"
        print(f"error: {lists}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed = False
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak = Soak(Path(folder), arguments.quick, arguments.seed, arguments.share, tuple(stages))
        for number, row in rows.items():
            start = time.perf_counter()
            outcome = try_row(row, soak, lambda line: print(f"    seed {arguments.seed}: {line}", flush=True))
            failed |= outcome.held < outcome.tried
            print(f"{number} {row.title}, {outcome.tried}, {outcome.held}", flush=True)
            if outcome.note:
                print(f"    {outcome.note}", flush=True)
            print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            if arguments.json:
                part = {
                    "stages": row.stages(soak),
                    "tried": outcome.tried,
                    "held": outcome.held,
                    "seed": arguments.seed,
                    "quick": arguments.quick,
                    "share": arguments.share,
                    "note": outcome.note,
                    "torch": torch.__version__,
                    "cores": os.cpu_count(),
                }
                add(arguments.json, number, row.title, part)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
