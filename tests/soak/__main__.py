"""Try every row of the reliability scorecard, and say how much of it held.

    bash scripts/soak.sh [--quick] [--rows 1,3,4] [--seed 0] [--share 1] [--json FILE]
    bash scripts/soak.sh --docs      write the table of docs/reliability.md anew from the kept results

Prints ``row, tried, held`` per line, and every failure with what repeats it. Rows that a machine cannot try, such as a full disk where
small disks cannot be mounted, are printed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from soak.rows import ROWS, try_row
from soak.stages import Soak
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
    except (ValueError, KeyError):
        print(f"error: --rows is a list of {', '.join(map(str, ROWS))}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    results = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.is_file() else {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak = Soak(Path(folder), arguments.quick, arguments.seed, arguments.share)
        for number, row in rows.items():
            start = time.perf_counter()
            outcome = try_row(row, soak, lambda line: print(f"    seed {arguments.seed}: {line}", flush=True))
            failed |= outcome.held < outcome.tried
            print(f"{number} {row.title}, {outcome.tried}, {outcome.held}", flush=True)
            if outcome.note:
                print(f"    {outcome.note}", flush=True)
            print(f"    {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            results[str(number)] = {
                "title": row.title,
                "tried": outcome.tried,
                "held": outcome.held,
                "seed": arguments.seed,
                "quick": arguments.quick,
                "share": arguments.share,
                "note": outcome.note,
                "torch": torch.__version__,
                "cores": os.cpu_count(),
            }
            if arguments.json:
                ordered = {key: results[key] for key in sorted(results, key=int)}
                arguments.json.write_text(json.dumps(ordered, indent=2, allow_nan=False) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
