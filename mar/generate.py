"""Sample images from the trained generator, one set per guidance scale.

    python -m mar.generate [--preset digits] [sample.cfg=[1,2]] [option=value ...]

Writes ``<run_dir>/mar/samples/cfg_<scale>.npz`` (``arr_0`` uint8 (N, H, W, 3) as ADM's evaluator reads it, and ``labels``) with a
``.json`` beside it that says how they were made. Image i depends on the seed and on i, not on batch or number of processes.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from flowprior.errors import entry_point
from flowprior.training.distributed import Workers, distributed_workers
from flowprior.training.files import read_json, write_bytes, write_json
from flowprior.training.pictures import save_sheet
from flowprior.training.randomness import stream_seed
from mar.config import MARStageConfig, read_config
from mar.generator import GeneratorObjective
from mar.saved import load_generator
from mar.tokenizer import decode_to_uint8, load_autoencoder
from tokenizer.autoencoder import Autoencoder


@entry_point
def main() -> None:
    config = read_config(__doc__)
    with distributed_workers() as workers:
        autoencoder = load_autoencoder(config, workers.device)
        bundle, saved = load_generator(config, autoencoder, workers.device)
        for cfg in config.sample.cfg:
            generate_set(config, workers, bundle, autoencoder, cfg, protocol(config, saved, cfg))


def samples_file(config: MARStageConfig, cfg: float) -> Path:
    return Path(config.run_dir) / "mar" / "samples" / f"cfg_{cfg:g}.npz"


def protocol(config: MARStageConfig, saved: dict[str, Any], cfg: float) -> dict[str, Any]:
    """How a set of images is made: equal protocols mean equal images."""
    sampler = asdict(getattr(config.model, saved["generator"]["name"]).sampler)
    return {
        "generator": saved["fingerprint"],
        "autoencoder": saved["about"]["autoencoder"],
        "count": config.sample.count,
        "seed": config.sample.seed,
        "labels": "i mod number of classes",
        "cfg": cfg,
        "sampler": sampler,
    }


def generate_set(
    config: MARStageConfig,
    workers: Workers,
    bundle: GeneratorObjective,
    autoencoder: Autoencoder,
    cfg: float,
    made_by: dict[str, Any],
) -> None:
    """Draw ``config.sample.count`` images at guidance ``cfg``, unless just these are there."""
    file = samples_file(config, cfg)
    note = file.with_suffix(".json")
    if file.is_file() and note.is_file() and read_json(note, "sampling protocol").get("protocol") == made_by:
        if workers.is_main:
            print(f"samples, cfg {cfg:g}: complete ({file})")
        return
    start = time.perf_counter()
    batches = math.ceil(config.sample.count / config.sample.batch)
    mine: list[Tensor] = []
    bar = tqdm(
        range(workers.rank, batches, workers.count),
        desc=f"sample, cfg {cfg:g}",
        unit="batch",
        disable=not workers.is_main,
        dynamic_ncols=True,
    )
    for number in bar:
        indices = range(number * config.sample.batch, min((number + 1) * config.sample.batch, config.sample.count))
        labels = torch.tensor(indices, device=workers.device) % bundle.model.num_classes
        latents = bundle.model.sample(labels, [stream_seed(config.sample.seed, "sample", i) for i in indices], cfg)
        mine.append(decode_to_uint8(autoencoder, bundle.normaliser.undo(latents)))
    size = autoencoder.config.image_size
    images = collect(
        torch.cat(mine) if mine else torch.empty(0, 3, size, size, dtype=torch.uint8), config, workers, file
    )
    if images is None:
        return
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=images.permute(0, 2, 3, 1).numpy(), labels=np.arange(len(images)) % bundle.model.num_classes)
    write_bytes(file, buffer.getvalue())
    write_json(note, {"protocol": made_by, "seconds": time.perf_counter() - start, "device": str(workers.device)})
    columns = min(10, bundle.model.num_classes)
    save_sheet(file.with_suffix(".png"), images[: 10 * columns], columns, enlarge=2 if size <= 64 else 1)
    print(f"samples, cfg {cfg:g}: {len(images)} images in {file} ({time.perf_counter() - start:.0f} s)")


def collect(mine: Tensor, config: MARStageConfig, workers: Workers, file: Path) -> Tensor | None:
    """All images in their order, in the first process; processes pass theirs on as files."""
    if workers.count == 1:
        return mine
    part = file.with_name(f".{file.stem}.part{workers.rank}.npy")
    buffer = io.BytesIO()
    np.save(buffer, mine.numpy())
    write_bytes(part, buffer.getvalue())
    workers.barrier()
    if not workers.is_main:
        return None
    files = [part.with_name(f".{file.stem}.part{rank}.npy") for rank in range(workers.count)]
    parts = [torch.from_numpy(np.load(f, allow_pickle=False)).split(config.sample.batch) for f in files]
    for f in files:
        f.unlink()
    batches = math.ceil(config.sample.count / config.sample.batch)
    return torch.cat([parts[number % workers.count][number // workers.count] for number in range(batches)])


if __name__ == "__main__":
    main()
