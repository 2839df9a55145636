"""Mean and spread over seeds of the runs that ``compare_digits.sh`` made, on the terminal and as JSON; one seed has no spread.

python scripts/compare_table.py runs/comparison --seeds 0 1 2 --regularisers none flow
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flowprior.rounding import rounded_with_error  # noqa: E402

COLUMNS = ("psnr", "rfid", "fid", "cfg", "recognised", "inception_score", "precision", "recall")
LATENTS = (
    "latent_std",
    "target_std",
    "latent_effective_rank",
    "target_effective_rank",
    "latent_sliced_wasserstein",
    "latent_sliced_wasserstein_floor",
)


def metrics_of(run: Path, stages: list[str], cfg: str) -> dict[str, float]:
    """The metrics of one run; a generator's, where it is among the stages, at the guidance scale ``cfg``, which is ``best`` for the run's
    best by FID.

    Where there are several generators, the names of their metrics begin with the stage's.
    """
    needed = [run / "ae" / "result.json", *(run / stage / "evaluation.json" for stage in stages)]
    missing = [f for f in needed if not f.is_file()]
    if missing:
        print(
            f"error: {missing[0]} is not there: see {run}.log, and run `bash scripts/compare_digits.sh` again",
            file=sys.stderr,
        )
        sys.exit(2)
    reconstruction = json.loads((run / "ae" / "evaluation.json").read_text())["metrics"]
    latents = json.loads((run / "ae" / "result.json").read_text())
    reconstruction |= {name: latents[name] for name in LATENTS if name in latents}
    figures, generators = measured(reconstruction, run), [stage for stage in stages if stage != "ae"]
    for stage in generators:
        evaluation = json.loads((run / stage / "evaluation.json").read_text())
        scale = cfg
        if cfg == "best":
            scale = evaluation.get("best_cfg") or min(evaluation["metrics"], key=float)
        if scale not in evaluation["metrics"]:
            there = ", ".join(evaluation["metrics"])
            print(f"error: {run / stage} was evaluated at guidance {there}, not at {cfg}: write CFG=", file=sys.stderr)
            sys.exit(2)
        own = measured(evaluation["metrics"][scale], run) | {"cfg": float(scale)}
        figures |= {f"{stage}_{name}" if len(generators) > 1 else name: value for name, value in own.items()}
        if "half_half_fid" in evaluation:
            figures["half_half_fid"] = evaluation["half_half_fid"]["mean"]
    return figures


def measured(metrics: dict[str, float | None], run: Path) -> dict[str, float]:
    """The metrics that are numbers; the others are named."""
    missing = [name for name, value in metrics.items() if value is None]
    if missing:
        print(f"note: {run} has no {', '.join(missing)}: its evaluation.json says why", file=sys.stderr)
    return {name: value for name, value in metrics.items() if value is not None}


def shown_columns(table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Every figure that some run has: the usual ones in their order, then the others; deviations within one run are left to the JSON."""
    names = dict.fromkeys(name for row in table.values() for name in row)
    usual = (*COLUMNS, *LATENTS)
    others = [name for name in names if name not in (*usual, "half_half_fid") and not name.endswith("_std")]
    return [name for name in usual if name in names] + others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--regularisers", nargs="+", required=True)
    parser.add_argument("--stages", nargs="+", default=["ae", "mar"], help="ae, and generators: mar, sit")
    parser.add_argument("--cfg", default="1", help="guidance scale, or best: of each run the one with its lowest FID")
    arguments = parser.parse_args()
    table = {}
    for regulariser in arguments.regularisers:
        folders = [arguments.runs / f"{regulariser}_seed{seed}" for seed in arguments.seeds]
        runs = [metrics_of(folder, arguments.stages, arguments.cfg) for folder in folders]
        shared = [name for name in runs[0] if all(name in run for run in runs)]
        table[regulariser] = {
            name: {
                "mean": statistics.fmean(run[name] for run in runs),
                "std": statistics.stdev(run[name] for run in runs) if len(runs) > 1 else None,
                "seeds": [run[name] for run in runs],
            }
            for name in shared
        }
    columns = shown_columns(table)
    first, width = max(map(len, table)) + 2, max(22, *(len(name) + 2 for name in columns))
    print(" " * first + "".join(f"{name:>{width}}" for name in columns))
    for regulariser, row in table.items():
        cells = (
            " +- ".join(filter(None, rounded_with_error(row[name]["mean"], row[name]["std"]))) if name in row else "-"
            for name in columns
        )
        print(f"{regulariser:<{first}}" + "".join(f"{cell:>{width}}" for cell in cells))
    for fid in [name for name in columns if name == "fid" or name.endswith("_fid") and name != "half_half_fid"]:
        shown = fid.replace("_fid", " FID").replace("fid", "FID")
        generated = {name: row[fid]["mean"] for name, row in table.items() if fid in row}
        if {"none", "flow"} <= generated.keys():
            ratios = [f / n for f, n in zip(table["flow"][fid]["seeds"], table["none"][fid]["seeds"])]
            of_means = generated["flow"] / generated["none"]
            table[f"{fid}_ratio_flow_to_none"] = {"of_means": of_means, "seeds": ratios}
            per_seed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{shown} with flow / {shown} with none: {of_means:.3f} (per seed {per_seed})")
        print(f"lowest {shown}: {min(generated, key=generated.get)}")
    (arguments.runs / "digits.json").write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
