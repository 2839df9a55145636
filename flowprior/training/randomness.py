"""Noise as a pure function of (seed, step): a resumed run draws what the uninterrupted one drew, at any number of processes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stratified_uniform(
    count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """``count`` numbers in [0, 1), one from each of ``count`` equal strata, in random order.

    Every single one is uniform, so expectations over it are unchanged; their estimate has less variance.
    """
    jitter = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return ((order + jitter) / count).clamp_(max=1 - 1e-6)


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part; close parts give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def seed_global_generators(*parts: int | str) -> None:
    """Seed what weight initialisation and dropout draw from; for a trainer's main and the training loop, never for a constructor."""
    seed = stream_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


class StepRandom:
    """The noise of one micro-batch of one training step.

    Draws are made for the whole global batch and cut to this micro-batch's share, so that the noise which a sample meets
    depends on the seed, the step and the sample's place in the global batch, and on nothing else.

    Args:
        seed: of the run.
        step: of training.
        slot, slots: which of the global batch's equal micro-batches this is, counted in the order of the samples.
        device: where the noise is made; on the meta device it has shapes only.
    """

    def __init__(self, seed: int, step: int, slot: int = 0, slots: int = 1, device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.slot, self.slots, self.device = seed, step, slot, slots, torch.device(device)

    def generator(self, name: str) -> torch.Generator | None:
        """A fresh generator for the draw called ``name``, the same in every process; None on the meta device, which has none."""
        if self.device.type == "meta":
            return None
        return torch.Generator(self.device).manual_seed(stream_seed(self.seed, self.step, name))

    def host_generator(self, name: str) -> torch.Generator:
        """The same on the CPU, for a number that Python needs: nobody waits until a GPU has drawn it."""
        return torch.Generator("cpu").manual_seed(stream_seed(self.seed, self.step, name))

    def _share(self, everything: Tensor) -> Tensor:
        return everything.view(self.slots, -1, *everything.shape[1:])[self.slot]

    def normal(self, name: str, batch: int, *shape: int) -> Tensor:
        """Standard normal ``(batch, *shape)``."""
        return self._share(torch.randn(self.slots * batch, *shape, generator=self.generator(name), device=self.device))

    def uniform(self, name: str, batch: int, *shape: int) -> Tensor:
        """Uniform on [0, 1), ``(batch, *shape)``."""
        return self._share(torch.rand(self.slots * batch, *shape, generator=self.generator(name), device=self.device))

    def times(self, name: str, batch: int, *shape: int) -> Tensor:
        """Times in [0, 1), ``(batch, *shape)``, stratified over the global batch."""
        count = self.slots * batch * torch.Size(shape).numel()
        return self._share(
            stratified_uniform(count, self.generator(name), self.device).view(self.slots * batch, *shape)
        )

    def uniform_of_period(self, name: str, steps: int) -> float:
        """One number on [0, 1) that stays for ``steps`` steps, the same for every sample."""
        generator = torch.Generator("cpu").manual_seed(stream_seed(self.seed, "period", self.step // steps, name))
        return torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item()

    def seed_dropout(self) -> None:
        """Make dropout, which only knows the global generator, a function of (seed, step, micro-batch)."""
        seed_global_generators(self.seed, self.step, "dropout", self.slot)
