"""What MAR's sampler costs and what its images are worth: with the head's flow, with its map, in one pass, over runs of several seeds.

python scripts/compare_samplers.py runs/a runs/b [--cases curve options] [--cfg 1 1.5] [--json samplers.json] [option=value ...]
python scripts/compare_samplers.py --json samplers.json --draw docs/head_evaluations.png      measures nothing

A run holds a trained generator, and the flow map and guided transformer where these are to be measured. Every set is the one that
``python -m mar generate`` draws. Results are kept in the JSON file as they come; what is there of the same
networks is not measured again. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flowprior.data.image_sizes import ImageSize  # noqa: E402
from flowprior.distributed import World  # noqa: E402
from flowprior.errors import entry_point  # noqa: E402
from flowprior.metrics import ImageSet  # noqa: E402
from flowprior.notes import note  # noqa: E402
from flowprior.rounding import rounded_with_error  # noqa: E402
from flowprior.run.files import read_json, write_json  # noqa: E402
from generation.evaluate import metrics_of  # noqa: E402
from generation.generate import load_drawer  # noqa: E402
from generation.labels import choose_shares  # noqa: E402
from generation.reference import open_reference  # noqa: E402
from generation.sample_drawer import EXACT_GROUP  # noqa: E402
from mar.config import MARStageConfig  # noqa: E402
from mar.sampler import SamplerConfig, sample_latents  # noqa: E402
from scripts.benchmarks.measure import count_flop  # noqa: E402
from scripts.kept_results import refuse_same_names  # noqa: E402

EVALUATIONS = (1, 2, 4, 8, 25)
SOLVERS = {"euler": "Euler", "heun": "Heun", "ab2": "Adams-Bashforth (ab2)", "map": "flow map"}
CURVE = {
    f"{solver} {count}": {"solver": solver, "head_evaluations": count}
    for solver in ("euler", "heun", "ab2")
    for count in EVALUATIONS
} | {f"map {count}": {"head": "map", "head_evaluations": count} for count in (1, 2, 3, 4)}
MAP = {"head": "map", "head_evaluations": 2}
FALLING = {"head_evaluations": 25, "head_evaluations_last": 5}
ONE_PASS = MAP | {"one_pass": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "evaluations falling from 25 to 5": FALLING,
    "guidance damped, 1": {"cfg_damping": 1.0},
    "guidance damped, 4": {"cfg_damping": 4.0},
    "guidance from flow time 0.25 on": {"cfg_interval": (0.25, 1.0)},
    "guidance up to flow time 0.75": {"cfg_interval": (0.0, 0.75)},
    "encodings renewed every 4th step": {"encoder_every": 4},
    "decodings, too, every 2nd step": {"encoder_every": 4, "decoder_every": 2},
    "decodings, too, every 4th step": {"encoder_every": 4, "decoder_every": 4},
    "evaluations falling from 25 to 5, guidance damped, 4": FALLING | {"cfg_damping": 4.0},
    "the same; encodings every 4th step": FALLING | {"cfg_damping": 4.0, "encoder_every": 4},
    "the same; decodings, too, every 2nd step": FALLING | {"cfg_damping": 4.0, "encoder_every": 4, "decoder_every": 2},
    "map, 1 evaluation": MAP | {"head_evaluations": 1},
    "map, 2 evaluations": MAP,
    "map, 2 falling to 1": MAP | {"head_evaluations_last": 1},
    "map, 2; encodings every 2nd step": MAP | {"encoder_every": 2},
    "map, 2; encodings and decodings every 2nd step": MAP | {"encoder_every": 2, "decoder_every": 2},
    "map, 2; encodings every 4th step": MAP | {"encoder_every": 4},
    "map, 2; decodings, too, every 2nd step": MAP | {"encoder_every": 4, "decoder_every": 2},
    "map, 2; decodings, too, every 4th step": MAP | {"encoder_every": 4, "decoder_every": 4},
    "one pass, map, 1 evaluation": ONE_PASS | {"head_evaluations": 1},
    "one pass, map, 2 evaluations": ONE_PASS,
    "one pass, map, 2; encodings every 4th step": ONE_PASS | {"encoder_every": 4},
    "one pass, map, 2; decodings, too, every 2nd step": ONE_PASS | {"encoder_every": 4, "decoder_every": 2},
}
CASES = {"curve": CURVE, "options": OPTIONS}
SHOWN = ("fid", "precision", "recall", "recognised")
TIMED_IMAGES, TIMED_PAIRS = 100, 3


@entry_point
def main() -> None:
    arguments, words = parse()
    results = read_json(arguments.json, "results") if arguments.json.is_file() else {}
    refuse_same_names(list(map(Path, arguments.runs)))
    for run in arguments.runs:
        measure_run(run, words, arguments, results)
    print(table(results))
    if arguments.draw:
        draw(results, arguments.draw)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="run folders")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--only", nargs="+", default=[], help="cases by name")
    parser.add_argument("--cfg", nargs="+", type=float, default=[1.5], help="guidance scales")
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--json", type=Path, default=Path("runs/samplers.json"))
    parser.add_argument("--draw", type=Path, help="picture of FID against evaluations")
    arguments, words = parser.parse_known_args()
    overrides = [word for word in arguments.runs if "=" in word]
    arguments.runs = [word for word in arguments.runs if "=" not in word]
    return arguments, overrides + words


def measure_run(run: str, words: list[str], arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Add what is missing of one run to ``results`` and to the JSON file."""
    chosen = {name: options for kind in arguments.cases for name, options in CASES[kind].items()}
    chosen = {name: options for name, options in chosen.items() if name in (arguments.only or chosen)}
    asked = [f"--preset {arguments.preset}", *sorted(words)]
    made_from = {name: [*fingerprints(Path(run), options), *asked] for name, options in chosen.items()}

    def is_there(name: str, cfg: float) -> bool:
        kept = results.get(name, {}).get(f"{cfg:g}", {}).get("runs", {}).get(Path(run).name, {})
        return kept.get("made_from", made_from[name] if kept else None) == made_from[name]

    missing = [(name, cfg) for name in chosen for cfg in arguments.cfg if not is_there(name, cfg)]
    if not missing:
        return
    plain = MARStageConfig.read("", ["--preset", arguments.preset, *words]).model.mar.sampler
    bench = Bench(run, words, arguments.preset, [chosen[name] for name, _ in missing])
    for name, cfg in missing:
        sampler = replace(plain, **chosen[name])
        of_case = results.setdefault(name, {}).setdefault(f"{cfg:g}", {"runs": {}})
        of_case["runs"][Path(run).name] = bench.metrics(sampler, cfg) | {"made_from": made_from[name]}
        of_case["gflop"] = bench.gflop(sampler, cfg)
        of_case.setdefault("times_faster", []).append(bench.times_faster(plain, sampler, cfg))
        write_json(arguments.json, results)
        print(f"{run}, {name}, cfg {cfg:g}: {of_case['runs'][Path(run).name]}", file=sys.stderr, flush=True)


def fingerprints(run: Path, options: dict[str, Any]) -> list[str]:
    """Of the run's generator, and of the flow map or the guided transformer where a case's sampler has ``options`` that take them."""
    parts = ["generator"]
    if options.get("head") == "map":
        parts.append("guided/transformer" if options.get("one_pass") else "flow_map/map")
    files = [run / "mar" / part / "config.json" for part in parts]
    return [read_json(file, "what is sampled with")["fingerprint"] for file in files if file.is_file()]


class Bench:
    """A run's generator, and what its images are compared with."""

    def __init__(self, run: str, words: list[str], preset: str, cases: list[dict[str, Any]]) -> None:
        own = ["evaluate.metrics=[fid, precision_recall, recognised]"]
        self.config = MARStageConfig.read("", ["--preset", preset, f"run_dir={run}", *words, *own])
        sampler = self.config.model.mar.sampler
        self.drawer, saved = load_drawer(self.config, World())
        needed = {(case.get("head", "flow"), case.get("one_pass", False)) for case in cases}
        for head, one_pass in sorted(needed):
            self.config.model.mar.sampler = replace(sampler, head=head, one_pass=one_pass, head_evaluations=1)
            self.config.equip(self.drawer.bundle.model, saved)  # where the sampler asks for it
        self.extractor = self.config.evaluate.open_extractor()
        size = ImageSize(*[self.drawer.autoencoder.config.image_size] * 2)
        self.reference = open_reference(self.config, self.extractor, size)
        self.classes, self.count = self.drawer.bundle.model.num_classes, self.config.sample.count
        self.labels = choose_shares(self.config, saved).labels(self.classes, self.count + EXACT_GROUP)

    def draw(self, sampler: SamplerConfig, cfg: float, first: int, last: int) -> Tensor:
        self.drawer.bundle.model.config.sampler = sampler
        return self.drawer.draw(range(first, last), self.labels, cfg)

    def metrics(self, sampler: SamplerConfig, cfg: float) -> dict[str, float]:
        """Of the set that ``python -m mar generate`` draws, and the seconds of all cores that drawing takes, decoder included."""
        starts, before = range(0, self.count, self.config.sample.batch), time.process_time()
        parts = [self.draw(sampler, cfg, i, min(i + self.config.sample.batch, self.count)) for i in starts]
        seconds = time.process_time() - before
        labels = self.labels[torch.arange(self.count) % len(self.labels)]
        found, _ = metrics_of(self.config, ImageSet(torch.cat(parts), self.extractor, labels), self.reference)
        return {name: value for name, value in found.items() if value is not None} | {"cpu_seconds": seconds}

    def latents(self, sampler: SamplerConfig, cfg: float, images: int) -> None:
        sample_latents(self.drawer.bundle.model, torch.arange(images) % self.classes, list(range(images)), cfg, sampler)

    def gflop(self, sampler: SamplerConfig, cfg: float) -> float:
        """Of the latents of one image, in a batch with as many of every class."""
        images = 10 * self.classes
        return count_flop(lambda: self.latents(sampler, cfg, images), self.drawer.world.device) / images / 1e9

    def times_faster(self, plain: SamplerConfig, sampler: SamplerConfig, cfg: float) -> float:
        """Seconds of the plain sampler over this one's, latents alone: the median over pairs, one after the other."""
        ratios = []
        for _ in range(TIMED_PAIRS):
            seconds = []
            for one in (plain, sampler):
                start = time.perf_counter()
                self.latents(one, cfg, TIMED_IMAGES)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[0] / seconds[1])
        return statistics.median(ratios)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return " ± ".join(filter(None, rounded_with_error(statistics.fmean(values), deviation)))


def options_of(found: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The preset and the words that a case was measured with; those of ``other`` where results of before do not say."""
    words = found.get("made_from", other.get("made_from", []))
    return words[next((i for i, word in enumerate(words) if word.startswith("--preset ")), len(words)) :]


def table(results: dict[str, Any]) -> str:
    """Means and deviations over the runs, in Markdown."""
    lines = [
        "| sampler | guidance | FID | FID over plain | precision | recall | recognised | MFLOP an image | CPU seconds a set | times faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_cfg in results.items():
        for cfg, case in by_cfg.items():
            plain = results.get("plain", results.get("euler 25", {})).get(cfg, {"runs": {}})["runs"]
            pairs = {run: (one, plain[run]) for run, one in case["runs"].items() if run in plain}
            alike = [(one, other) for one, other in pairs.values() if options_of(one, other) == options_of(other, one)]
            ratios = [one["fid"] / other["fid"] for one, other in alike]
            if left := len(pairs) - len(alike):
                note(
                    f"{name}, guidance {cfg}: no ratio of {left} runs, whose plain sampler was measured with other options"
                )
            cells = [spread([found[metric] for found in case["runs"].values()]) for metric in SHOWN]
            cells[1:1] = [spread(ratios) if ratios else ""]
            seconds = statistics.median(found["cpu_seconds"] for found in case["runs"].values())
            cells += [f"{1000 * case['gflop']:.1f}", f"{seconds:.1f}", f"{statistics.median(case['times_faster']):.2f}"]
            lines.append(" | ".join([f"| {name}", cfg, *cells]) + " |")
    return "\n".join(lines)


def draw(results: dict[str, Any], file: Path) -> None:
    """FID against evaluations of the head and against seconds, a column for every guidance scale: each run, and their mean."""
    scales = list(dict.fromkeys(cfg for name in CURVE for cfg in results.get(name, {})))
    figure, rows = plt.subplots(2, len(scales), figsize=(4.2 * len(scales) + 0.6, 6.4), dpi=110, squeeze=False)
    for column, cfg in enumerate(scales):
        for number, (solver, label) in enumerate(SOLVERS.items()):
            names = [name for name in CURVE if name.split()[0] == solver and cfg in results.get(name, {})]
            runs = [list(results[name][cfg]["runs"].values()) for name in names]
            counts = [int(name.split()[1]) for name in names]
            seconds = [statistics.median(found["cpu_seconds"] for found in each) for each in runs]
            for axes, across in zip(rows[:, column], (counts, seconds)):
                fids = [[found["fid"] for found in each] for each in runs]
                axes.plot(across, [statistics.fmean(f) for f in fids], f"C{number}o-", markersize=4, label=label)
                for place, values in zip(across, fids):
                    axes.plot([place] * len(values), values, f"C{number}_", alpha=0.7)
        for axes, label in zip(rows[:, column], ("evaluations of the head per token", "CPU seconds for the set")):
            axes.set(xscale="log", yscale="log", xlabel=label)
            axes.spines[["top", "right"]].set_visible(False)
        rows[0][column].set_title(f"guidance {cfg}")
        rows[0][column].set_xticks(sorted({*EVALUATIONS, 3}), labels=map(str, sorted({*EVALUATIONS, 3})))
        rows[0][column].minorticks_off()
    for axes in rows[:, 0]:
        axes.set_ylabel("FID")
    rows[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
