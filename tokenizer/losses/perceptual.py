"""LPIPS, through the ``lpips`` package (Zhang et al., 2018)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.errors import UserError

VGG_FILE = "vgg16-397923af.pth"


class PerceptualLoss(nn.Module):
    """LPIPS-VGG distance, frozen; images in [-1, 1].

    Args:
        require_weights: without them (tests of shapes) the VGG trunk stays random.

    Raises:
        UserError: torchvision's VGG-16 weights are not on this machine and cannot be fetched.
    """

    def __init__(self, require_weights: bool = True) -> None:
        super().__init__()
        import lpips

        try:
            self.net = lpips.LPIPS(net="vgg", pnet_rand=not require_weights, verbose=False)
        except (OSError, RuntimeError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise UserError(
                f"LPIPS needs torchvision's VGG-16 weights: put {VGG_FILE} from download.pytorch.org/models into {folder}, "
                f"or write loss.perceptual_weight=0"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Mean over the batch, a scalar."""
        return self.net(reconstruction, images).mean()
