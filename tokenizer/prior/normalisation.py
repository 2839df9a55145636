"""What a target is and what its map makes of it: for the terminal, the stage's result, and notes on what is odd."""

from __future__ import annotations

from typing import Any

import torch

from flowprior.flow.target_map import TargetMap
from flowprior.training.randomness import stream_seed
from tokenizer.prior.held_out import RowSplit
from tokenizer.prior.targets import TargetFeatures

ROWS = 100_000


def describe_normalisation(target: TargetFeatures, target_map: TargetMap, projection: str, seed: int) -> dict[str, Any]:
    """What the target is and what its map, a ``projection`` to C channels, makes of it: on 100,000 random rows, drawn from ``seed``."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "rows to describe"))
    rows = target.features[torch.randperm(len(target.features), generator=generator)[:ROWS]].float()
    projected = target_map(rows)  # (n, C)
    channels = projected.shape[1]
    shares = torch.linalg.eigvalsh(torch.cov(projected.double().T).reshape(channels, -1)).clamp_min(1e-30)
    shares = shares / shares.sum()
    told_apart = rows @ torch.randn(rows.shape[1], generator=generator)
    return {
        "count": len(target.features),
        "feature_channels": rows.shape[1],
        "mean_norm": rows.mean(0).norm().item(),
        "std": target_map.std.item(),
        "scale": 1 / target_map.std.item(),
        "projection": projection,
        "channels": channels,
        "projected_std": projected.std().item(),
        "projected_channel_std": projected.std(0).tolist(),
        "projected_effective_rank": torch.exp(-(shares * shares.log()).sum()).item(),
        "rows_looked_at": len(rows),
        "different_rows": len(told_apart.unique()),
    }


def say_normalisation(target: TargetFeatures, split: RowSplit, about: dict[str, Any]) -> None:
    """Print what :func:`describe_normalisation` says, in two lines."""
    low, high = min(about["projected_channel_std"]), max(about["projected_channel_std"])
    held_out = (
        "none, so metrics compare with training rows" if split.held_out is None else f"{len(split.held_out)} rows"
    )
    print(
        f"target {target.name}: {about['count']} x {about['feature_channels']}, norm of the mean {about['mean_norm']:.4g}, "
        f"std {about['std']:.4g} (scale 1/std = {about['scale']:.4f})\n"
        f"{about['projection']} projection to {about['channels']} channels: std {about['projected_std']:.3f}, "
        f"per channel {low:.3f} to {high:.3f}; held out: {held_out}"
    )


def odd_about(about: dict[str, Any], is_codebook: bool) -> list[str]:
    """What is unusual about a target of which :func:`describe_normalisation` says this: nothing to mend, but to know.

    A codebook may well have fewer entries than channels.
    """
    count, features, channels = about["count"], about["feature_channels"], about["channels"]
    rank, rows, different = about["projected_effective_rank"], about["rows_looked_at"], about["different_rows"]
    sentences = {
        f"the table has {count} rows of {features} channels: each row counts as a sample, so save it as (samples, channels) if it lies the "
        "other way round": count < features and not is_codebook,
        f"the target has {features} channels and the flow {channels}: it fills a subspace": features < channels,
        f"the projected target varies along {rank:.1f} of {channels} directions: the largest channels hide the others": (
            rank < 1.5 and min(features, channels) > 2
        ),
        f"{rows - different} of the {rows} rows looked at repeat others": different < rows / 2,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
