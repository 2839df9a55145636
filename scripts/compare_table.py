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
    missing = [
        f
        for f in (run / "ae" / "evaluation.json", run / "ae" / "result.json", run / "mar" / "evaluation.json")
        if not f.is_file()
    ]
    if missing:
        print(
            f"error: {missing[0]} is not there: see {run}.log, and run `bash scripts/compare_digits.sh` again",
            file=sys.stderr,
        )
        sys.exit(2)
    reconstruction = json.loads((run / "ae" / "evaluation.json").read_text())["metrics"]
    evaluation = json.loads((run / "mar" / "evaluation.json").read_text())
    latents = json.loads((run / "ae" / "result.json").read_text())
    best = evaluation.get("best_cfg") or min(evaluation["metrics"], key=float)
    halves = {"half_half_fid": evaluation["half_half_fid"]["mean"]} if "half_half_fid" in evaluation else {}
    return (
        reconstruction
        | evaluation["metrics"][best]
        | {"best_cfg": float(best), "latent_std": latents["latent_std"]}
        | halves
    )


def shown_columns(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Every figure that some run has: the usual ones in their order, then the others; deviations within one run are left to the JSON."""
    names = dict.fromkeys(name for row in table.values() for name in row)
    others = [name for name in names if name not in (*COLUMNS, "half_half_fid") and not name.endswith("_std")]
    return [name for name in COLUMNS if name in names] + others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--regularisers", nargs="+", required=True)
    arguments = parser.parse_args()
    table = {}
    for regulariser in arguments.regularisers:
        runs = [figures_of(arguments.runs / f"{regulariser}_seed{seed}") for seed in arguments.seeds]
        shared = [name for name in runs[0] if all(name in run for run in runs)]
        table[regulariser] = {
            name: {
                "mean": statistics.fmean(run[name] for run in runs),
                "std": statistics.stdev(run[name] for run in runs) if len(runs) > 1 else 0.0,
                "seeds": [run[name] for run in runs],
            }
            for name in shared
        }
    columns = shown_columns(table)
    print(f"{'':<10}" + "".join(f"{name:>22}" for name in columns))
    for regulariser, row in table.items():
        cells = (f"{row[name]['mean']:.3f} +- {row[name]['std']:.3f}" if name in row else "-" for name in columns)
        print(f"{regulariser:<10}" + "".join(f"{cell:>22}" for cell in cells))
    if {"none", "flow"} <= table.keys() and all("fid" in table[name] for name in ("none", "flow")):
        ratios = [f / n for f, n in zip(table["flow"]["fid"]["seeds"], table["none"]["fid"]["seeds"])]
        table["fid_ratio_flow_to_none"] = {
            "of_means": table["flow"]["fid"]["mean"] / table["none"]["fid"]["mean"],
            "seeds": ratios,
        }
        print(
            f"FID with flow / FID with none: {table['fid_ratio_flow_to_none']['of_means']:.3f} (per seed {', '.join(f'{r:.3f}' for r in ratios)})"
        )
    (arguments.runs / "digits.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
