"""A real ``AutoencoderKL`` of diffusers with random weights, whose maps are a quarter of the image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def save_small_diffusers(folder: Path, seed: int = 0):
    """The model, saved as diffusers saves it; tests without the library are skipped."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=3,
            norm_num_groups=4,
        ).eval()
    model.save_pretrained(folder)
    return model
