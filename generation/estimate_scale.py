"""Measure the cached latents and store their scale, 1 / std, in the cache's manifest: training and decoding read it there.

python -m <generator> estimate_scale runs/digits/latents [--num_samples 10000]
python -m <generator> estimate_scale [--preset digits] [option=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_scale import check_statistics, measure_statistics, store_statistics
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.rounding import rounded
from flowprior.run.lock import sole_writer
from flowprior.run.presets import Parser
from generation.config import GenerationConfig


def main(stage: type[GenerationConfig]) -> None:
    folder, samples, per = parse(stage, sys.argv[1:])
    with sole_writer(folder, World(), may_be_read_only=True):
        cache = LatentCache(folder, verify=False, made_by=stage.command("cache_latents"))
        statistics = cache.manifest.get("statistics")
        kept = statistics if isinstance(statistics, dict) else {}
        if kept.get("images") != min(samples, len(cache)) or (per == "token" and "token_std" not in kept):
            statistics = measure_statistics(cache, samples)
            store_statistics(folder, statistics)
            cache.manifest["statistics"] = statistics
        check_statistics(cache, stage.command("estimate_scale"), per)
    print(describe(statistics))


def parse(stage: type[GenerationConfig], words: list[str]) -> tuple[Path, int, str]:
    """The cache's folder, how many images to measure, and the scale that is wanted, in either form of the command: the first wants all."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_samples", "--num-samples", type=int)
    arguments, rest = parser.parse_known_args(words)
    if arguments.num_samples is not None and arguments.num_samples < 1:
        raise UserError(f"--num_samples is at least 1, not {arguments.num_samples}")
    if len(rest) == 1 and "=" not in rest[0] and not rest[0].startswith("-"):
        return Path(rest[0]), arguments.num_samples or 10_000, "token"
    config = stage.read(__doc__, rest)
    return config.cache_folder, arguments.num_samples or config.cache.scale_samples, config.cache.scale_per


def describe(statistics: dict[str, Any]) -> str:
    """The line for the terminal."""
    scale, std = (rounded(statistics[name], ".4f") for name in ("scale", "std"))
    low, high, mean = (rounded(statistics[name]) for name in ("min", "max", "mean"))
    return (
        f"scale: {scale} = 1 / std of {statistics['images']} images (min {low}, max {high}, mean {mean}, std {std}); "
        f"std per channel: {' '.join(map(rounded, statistics['channel_std']))}"
    )
