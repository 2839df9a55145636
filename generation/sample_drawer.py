"""From a generator and an autoencoder to pictures, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.training.randomness import stream_seed
from generation.autoencoder import decode_to_uint8
from generation.config import SampleConfig
from generation.generator import GeneratorObjective
from tokenizer.opening import Tokenizer

EXACT_GROUP = 16


@dataclass(frozen=True)
class SampleDrawer:
    """Draws images by their index."""

    bundle: GeneratorObjective
    autoencoder: Tokenizer
    config: SampleConfig
    world: World

    def draw(self, indices: range, labels: Tensor, cfg: float) -> Tensor:
        """uint8 images ``(n, 3, H, W)`` of ``indices``, on the CPU.

        Args:
            indices: of the images; image i is drawn from (seed, i).
            labels: of images 0, 1, ...; image i has ``labels[i % len(labels)]``.
            cfg: guidance scale.

        Raises:
            UserError: the generator cannot be guided so.
        """
        self.bundle.model.check_guidance(cfg)
        if not self.config.exact:
            return self._draw(indices, labels, cfg)
        # An image always has the same place in a group of the same shape, which is drawn whole for it.
        first = indices.start // EXACT_GROUP * EXACT_GROUP
        groups = [range(i, i + EXACT_GROUP) for i in range(first, indices.stop, EXACT_GROUP)]
        images = torch.cat([self._draw(group, labels, cfg) for group in groups])
        return images[indices.start - first : indices.stop - first]

    @torch.no_grad()
    def _draw(self, indices: range, labels: Tensor, cfg: float) -> Tensor:
        device, bf16 = self.world.device, self.config.precision == "bfloat16"
        wanted = labels[torch.tensor(indices) % len(labels)].to(device)
        seeds = [stream_seed(self.config.seed, "sample", i) for i in indices]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # whatever training's autocast around it is
            latents = self.bundle.model.sample(wanted, seeds, cfg)
            return decode_to_uint8(self.autoencoder, self.bundle.normaliser.undo(latents))
