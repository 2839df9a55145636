"""Row 9: losses, gradients and latents that are not finite."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from flowprior.run.files import file_sha256, read_json, write_json
from flowprior.training.checkpoint import named_entries
from soak.instruments import poison
from soak.resume import keeping_all, read_state, recorded
from soak.stages import STEPS, Soak, Trial, checkpoint_hash, log_of, stage_folder, steps_saved

IN_A_ROW = 3  # the preset's train.non_finite_steps


def injected(soak: Soak) -> Iterator[Trial]:
    """Values that are not finite in many places: a few, which are skipped, and too many in a row."""
    for name in soak.trained if not soak.quick else ("ae",):
        places = ["loss", "gradient"] + (["discriminator", "discriminator_gradient"] if name == "ae" else [])
        for where in places:
            for value in (math.nan, math.inf) if not soak.quick else (math.nan,):
                for ranks in (1, 2) if not soak.quick or where == "loss" else (1,):
                    step = soak.random.randint(13, 30)
                    yield (
                        f"{name} {where} {value} in {ranks} processes from step {step} on",
                        _too_many(soak, name, where, value, step, ranks),
                    )
                if ranks == 1 or not soak.quick:
                    yield f"{name} {where} {value} twice at step {step}", _a_few(soak, name, where, value, step)
    if "mar" in soak.stages:
        yield from _latents(soak)


def _too_many(soak: Soak, name: str, where: str, value: float, step: int, ranks: int) -> str | None:
    """Three in a row, in one rank only where there are two."""
    run, rank = soak.fresh(name), None if ranks == 1 else soak.random.randrange(ranks)
    bad = poison(name, where, value, list(range(step, step + IN_A_ROW)), rank)
    process = soak.start(name, run, *keeping_all(), instrument=bad, ranks=ranks)
    process.wait()
    said, problem = process.said(), None
    lines = [line for line in said.splitlines() if line.startswith("stopped: ")]
    term = {"loss": "loss", "gradient": "gradient of ", "discriminator": "the discriminator's loss"}.get(
        where, "gradient of the discriminator"
    )
    if process.run_code() != 3 or len(lines) != 1:
        problem = f"exit code {process.run_code()}: {said[-400:]}"
    elif f"step {step + IN_A_ROW - 1} " not in lines[0] or term not in lines[0]:
        problem = f"step or term is not named: {lines[0]}"
    elif not where.endswith("gradient") and f"process {rank or 0}: " not in lines[0]:
        problem = f"the process is not named: {lines[0]}"
    elif orphans := process.orphans():
        problem = f"orphans {orphans}"
    else:
        problem = _untouched(soak, name, run, step, ranks)
    shutil.rmtree(run)
    return problem


def _untouched(soak: Soak, name: str, run: Path, step: int, ranks: int) -> str | None:
    """Weights, averages and moments in the last checkpoint are those from before the first bad step."""
    last = max(steps_saved(name, run))
    folder = stage_folder(name, run) / "checkpoints"
    before, after = folder / f"step_{step:08d}", folder / f"step_{last:08d}"
    for file in sorted(before.iterdir()):
        if file.stem in ("manifest", "skipped"):
            continue
        kept, now = dict(named_entries(read_state(file))), dict(named_entries(read_state(after / file.name)))
        for entry, value in kept.items():
            same = value.equal(now[entry]) if hasattr(value, "equal") else value == now[entry] or entry.endswith(".lr")
            if not same:
                return f"{file.name} {entry} moved in a step that was not finite"
    whole = stage_folder(name, recorded(soak, name)) / "checkpoints" / before.name
    if ranks == 1 and checkpoint_hash(before) != checkpoint_hash(whole):
        return "the checkpoint before is another than without the bad values"
    return None


def _a_few(soak: Soak, name: str, where: str, value: float, step: int) -> str | None:
    """Two in a row: the run goes on, says so, and its log stays finite."""
    run = soak.fresh(name)
    process = soak.start(name, run, *keeping_all(), instrument=poison(name, where, value, [step, step + 1]))
    code, rows, problem = process.wait(), log_of(name, run), None
    if code != 0 or process.said().count(": skipped") != 2:
        problem = f"exit code {code}: {process.said()[-400:]}"
    elif rows[-1]["step"] != STEPS or max(row.get("skipped_steps", 0) for row in rows) != 2:
        problem = "the log does not count the steps that were skipped"
    elif any(isinstance(figure, str) for row in rows for figure in row.values()):
        problem = "the log holds values that are not finite"
    shutil.rmtree(run)
    return problem


def _latents(soak: Soak) -> Iterator[Trial]:
    """A cache with a latent that is not finite, whose manifest vouches for it."""
    for value in (math.nan, math.inf, -math.inf):
        run = soak.fresh("mar")
        file = run / "latents" / "latents-00001.safetensors"
        tensors = load_file(file)
        tensors["latents"].view(-1)[5] = value
        save_file(tensors, file)
        manifest = read_json(file.with_name("manifest.json"), "manifest")
        entry = next(entry for entry in manifest["shards"] if entry["file"] == file.name)
        entry["sha256"] = file_sha256(file)
        write_json(file.with_name("manifest.json"), manifest)
        process = soak.start("mar", run, "train.non_finite_steps=1")
        code = process.wait()
        said = process.said()
        good = code == 3 and "stopped: step " in said and "process 0: loss" in said
        yield f"mar, a latent {value}", None if good else f"exit code {code}: {said[-300:]}"
        shutil.rmtree(run)
        if soak.quick:
            return
