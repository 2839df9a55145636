"""FID of a few images in the course of training: for a curve, not for a table."""

from __future__ import annotations

from typing import Any

import torch

from flowprior.data.image_sizes import ImageSize
from flowprior.metrics import StreamingMoments, frechet_distance
from flowprior.metrics.image_set import BATCH
from generation.config import GenerationConfig
from generation.labels import choose_shares
from generation.reference import open_reference
from generation.sample_drawer import EXACT_GROUP, SampleDrawer


class TrainingFID:
    """``evaluate.online_count`` images at the preview's guidance against the evaluation's reference, by all processes together.

    So few images read too high; the command ``evaluate`` measures the trained generator.

    Args:
        config: of the stage.
        drawer: draws with the weights of the moment.
        saved: what the generator's ``config.json`` will say: ``about`` and ``shape``.
    """

    def __init__(self, config: GenerationConfig, drawer: SampleDrawer, saved: dict[str, Any]) -> None:
        self.config, self.drawer = config, drawer
        evaluate, world = config.evaluate, drawer.world
        self.extractor = evaluate.open_extractor(world.device)
        with self._float32():
            size = ImageSize(*[drawer.autoencoder.config.image_size] * 2)
            reference = open_reference(config, self.extractor, size, world)
            # Kept in the run's folder: a resumed run does not look at all images again.
            self.reference = reference.moments(self.extractor, config.folder / "reference.npz", world)
        shares, classes = choose_shares(config, saved), drawer.bundle.model.num_classes
        self.labels = shares.labels(classes, evaluate.online_count + EXACT_GROUP)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """One figure, named after the number of images."""
        world, count = self.drawer.world, self.config.evaluate.online_count
        moments = StreamingMoments()
        for first in range(world.rank * BATCH, count, world.size * BATCH):
            indices = range(first, min(first + BATCH, count))
            images = self.drawer.draw(indices, self.labels, self.config.sample.preview_cfg)
            with self._float32():
                moments.update(self.extractor(images).fid)
        moments.sum_over(world)
        return {f"fid_of_{count}": frechet_distance(moments.statistics(self.extractor.name), self.reference)}

    def _float32(self) -> torch.autocast:
        """Training's autocast does not reach the extractor."""
        return torch.autocast(self.drawer.world.device.type, enabled=False)
