"""Mean and spread over seeds of the runs that ``compare_digits.sh`` made, on the terminal and as JSON.

    python scripts/compare_table.py runs/comparison --seeds 0 1 2 --regularisers none flow
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

COLUMNS = ("psnr", "rfid", "fid", "best_cfg", "recognised", "inception_score", "precision", "recall", "latent_std")


def figures_of(run: Path) -> dict[str, float]:
    """The figures of one run; the generator's at its best guidance scale by FID."""
    missing = [f for f in (run / "ae" / "evaluation.json", run / "ae" / "result.json", run / "mar" / "evaluation.json") if not f.is_file()]
    if missing:
        print(f"error: {missing[0]} is not there: see {run}.log, and run `bash scripts/compare_digits.sh` again", file=sys.stderr)
        sys.exit(2)
    reconstruction = json.loads((run / "ae" / "evaluation.json").read_text())["metrics"]
    evaluation = json.loads((run / "mar" / "evaluation.json").read_text())
    latents = json.loads((run / "ae" / "result.json").read_text())
    best = evaluation["metrics"][evaluation["best_cfg"]]
    return {**best, "best_cfg": float(evaluation["best_cfg"]), "psnr": reconstruction["psnr"], "rfid": reconstruction["rfid"],
            "latent_std": latents["latent_std"], "half_half_fid": evaluation["half_half_fid"]["mean"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--regularisers", nargs="+", required=True)
    arguments = parser.parse_args()
    table = {}
    print(f"{'':<10}" + "".join(f"{name:>22}" for name in COLUMNS))
    for regulariser in arguments.regularisers:
        runs = [figures_of(arguments.runs / f"{regulariser}_seed{seed}") for seed in arguments.seeds]
        table[regulariser] = {name: {"mean": statistics.fmean(run[name] for run in runs),
                                     "std": statistics.stdev(run[name] for run in runs) if len(runs) > 1 else 0.0,
                                     "seeds": [run[name] for run in runs]} for name in (*COLUMNS, "half_half_fid")}
        print(f"{regulariser:<10}" + "".join(f"{entry['mean']:>12.3f} +- {entry['std']:.3f}".rjust(22) for entry in map(table[regulariser].get, COLUMNS)))
    if {"none", "flow"} <= table.keys():
        ratios = [f / n for f, n in zip(table["flow"]["fid"]["seeds"], table["none"]["fid"]["seeds"])]
        table["fid_ratio_flow_to_none"] = {"of_means": table["flow"]["fid"]["mean"] / table["none"]["fid"]["mean"], "seeds": ratios}
        print(f"FID with flow / FID with none: {table['fid_ratio_flow_to_none']['of_means']:.3f} (per seed {', '.join(f'{r:.3f}' for r in ratios)})")
    (arguments.runs / "digits.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
