"""PatchGAN (Isola et al. 2017, arXiv 1611.07004), with spectral norm in the batch norm's place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from flowprior.run.config import Section, option
from tokenizer.losses.discriminators.base import Discriminator


@dataclass
class PatchGANConfig(Section):
    """Convolutions from scratch: nothing to download."""

    width: int = option(64, "channels of the first layer; each further one doubles them, up to eight times", least=1)
    layers: int = option(3, "number of convolutions with stride 2", least=1)

    def build(self, image_size: int) -> PatchGAN:
        return PatchGAN(self)


class PatchGAN(Discriminator):
    """One logit for every patch that the last layer sees."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        widths = [3, *(config.width * min(2**i, 8) for i in range(config.layers + 1))]
        strides = [2] * config.layers + [1]
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip(widths, widths[1:], strides):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 1)), nn.LeakyReLU(0.2)]
        # The hinge loss does not feel a constant in all logits: its gradient is rounding noise, which Adam would make steps of.
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)))

    @property
    def trained(self) -> nn.Module:
        return self.layers

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # (B, n)
