"""The published velocity network: names, the direction of its velocity, and the features of its time.

Its flow runs from data at t = 0 to noise at t = 1, and its time is not stretched: ``v(x, t)`` here is ``- v(x, 1 - t)`` there. The cosines and
sines of ``1 - t`` that its first layer sees lie, on [0, 1], in the span of those of ``1000 t`` that ours sees.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from flowprior.flow.velocity import TIME_FREQUENCIES, TIME_SCALE
from imports.checkpoint import Checkpoint
from imports.names import Made, depth_of, renamed, size_of

BEGINNINGS = {"input.": "input_proj.", "cond_embed.": "cond_embed.", "time_embed.": "time_embed.mlp."} | {
    "output.linear.": "final_layer.linear.",
    "output.modulation.": "final_layer.adaLN_modulation.",
}
IN_BLOCKS = {"norm.": "in_ln.", "mlp.": "mlp.", "modulation.": "adaLN_modulation."}
TIMES = 4001
RCOND = 1e-12


def head_sizes(checkpoint: Checkpoint, beginning: str, what: str) -> dict[str, int]:
    """``channels``, ``width`` and ``depth`` of the network whose names start with ``beginning``."""
    width, channels = size_of(checkpoint, f"{beginning}input_proj.weight", 2, what)
    return {"channels": channels, "width": width, "depth": depth_of(checkpoint, f"{beginning}res_blocks.")}


def head_parts(names: list[str], beginning: str) -> dict[str, Made]:
    """What the tensors of a :class:`~flowprior.flow.velocity.VelocityMLP`, by its ``names``, are made of."""
    blocks = {name.split(".")[1] for name in names if name.startswith("blocks.")}
    for_blocks = {
        f"blocks.{number}.{ours}": f"res_blocks.{number}.{published}"
        for number in blocks
        for ours, published in IN_BLOCKS.items()
    }
    beginnings = {ours: beginning + published for ours, published in (BEGINNINGS | for_blocks).items()}
    made = renamed(names, beginnings)
    for name in ("output.linear.weight", "output.linear.bias"):
        made[name] = made[name]._replace(by=torch.neg)
    made["time_embed.0.weight"] = made["time_embed.0.weight"]._replace(by=of_our_time)
    return made


def of_our_time(weight: Tensor) -> Tensor:
    """The first layer's ``weight (W, 256)`` of features of their time, for features of ours: ``W X^T``, with ``F_ours X = F_theirs``."""
    return (weight.double() @ _change_of_features().T).float()


@functools.cache
def _change_of_features() -> Tensor:
    """The least-squares X ``(256, 256)``, float64; what it leaves is 1e-12 of a feature."""
    t = torch.linspace(0, 1, TIMES, dtype=torch.float64)
    return torch.linalg.lstsq(_features(t * TIME_SCALE), _features(1 - t), rcond=RCOND, driver="gelsd").solution


def _features(t: Tensor) -> Tensor:
    """Cosines and sines of times ``t (n,)``, ``(n, 256)`` in float64."""
    half = TIME_FREQUENCIES // 2
    # in float32, as both networks compute them
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10_000.0) / half)).double()
    angles = t.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
