"""The paper's flow prior: its velocity network, and how its target features were scaled and projected."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.notes import note
from imports.checkpoint import Checkpoint, scale_of
from imports.config import ImportConfig
from imports.flow_head import head_parts, head_sizes
from imports.names import fill_by_names

BEGINNING = "flow_loss.net."
NAMES = (BEGINNING,)  # that tell one


def import_flow_prior(checkpoint: Checkpoint, options: ImportConfig, out: Path) -> FlowPrior:
    """Write the checkpoint's prior as a folder that :meth:`~flowprior.flow.prior.FlowPrior.load` reads.

    Raises:
        UserError: tensors are missing, unknown or of other sizes, or the scale is no finite number above 0.
    """
    if not options.features and options.projection_seed != ImportConfig.projection_seed:
        raise UserError(
            "projection_seed= goes with features=<channels before the projection>: write both, or leave it out"
        )
    velocity = VelocityMLP(**head_sizes(checkpoint, BEGINNING, "a flow prior"))
    made = head_parts(list(velocity.state_dict()), BEGINNING)
    fill_by_names(velocity, checkpoint, made, f"a flow prior of {velocity.channels} channels")
    scale = scale_of(checkpoint, options.scale) or 1.0
    target_map = map_of(velocity.channels, options, scale)
    about = {
        "imported": checkpoint.origin(),
        "scale": scale,
        "projection": "random" if options.features else "identity",
    }
    prior = FlowPrior(velocity, target_map, about)
    prior.save(out)
    start = (
        f"{options.features} channels, projected with seed {options.projection_seed}"
        if options.features
        else "the flow's channels"
    )
    note(
        f"prior.project takes features of {start} and multiplies them by {scale:g} (features=, projection_seed= and scale= say otherwise)"
    )
    return prior


def map_of(channels: int, options: ImportConfig, scale: float) -> TargetMap:
    """``x -> scale x``, uncentred, and then the published projection with entries of N(0, 1 / d2), where ``options`` say what d2 is."""
    features = options.features or channels
    matrix: Tensor = torch.eye(channels)  # (d2, C)
    if options.features:
        generator = torch.Generator().manual_seed(options.projection_seed)
        matrix = torch.empty(channels, features).normal_(std=features**-0.5, generator=generator).T  # drawn as (C, d2)
    return TargetMap(torch.zeros(features), torch.tensor(1 / scale), matrix)
