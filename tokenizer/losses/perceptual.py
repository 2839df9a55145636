"""LPIPS, through the ``lpips`` package (Zhang et al. 2018, arXiv 1801.03924)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.pretrained.weights import fill, read_weights, without_prefixes

VGG_FILE = "vgg16-397923af.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"


def vgg_place(weights: str = "") -> Path:
    """Where VGG-16's weights are looked for: the file given, else torch's hub folder."""
    return Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE


class PerceptualLoss(nn.Module):
    """LPIPS-VGG distance, frozen; images in [-1, 1]. The linear layers come with the package, VGG-16's weights by :meth:`load`."""

    def __init__(self) -> None:
        super().__init__()
        import lpips

        with warnings.catch_warnings():  # lpips speaks to torchvision as one did before its 0.13
            warnings.simplefilter("ignore", UserWarning)
            self.net = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        self.requires_grad_(False)
        self.eval()

    def load(self, weights: str = "", without: str = "write loss.perceptual_weight=0") -> PerceptualLoss:
        """Take torchvision's VGG-16, of which only ``features.*`` are read, from the file ``weights`` or else from torch's hub folder.

        ``without`` is what a person does to need none.

        Raises:
            UserError: the weights are not on this machine and cannot be fetched, or are not VGG-16's.
        """
        file, fetch = vgg_place(weights), not weights
        remedy = f"put {VGG_FILE} from {VGG_URL} there, name it with loss.perceptual_weights=<path>, or {without}"
        if fetch and not file.is_file():
            try:
                os.makedirs(file.parent, exist_ok=True)
                torch.hub.download_url_to_file(VGG_URL, str(file), hash_prefix="397923af", progress=False)
            except (OSError, RuntimeError) as error:
                raise UserError(f"LPIPS needs torchvision's VGG-16 weights at {file}: {remedy}") from error
        if not file.is_file():
            raise UserError(f"LPIPS needs torchvision's VGG-16 weights, and there is no file {file}: {remedy}")
        # slice3.12.weight is torchvision's features.12.weight
        own = {name: f"features.{name.split('.', 1)[1]}" for name in self.net.net.state_dict()}
        try:
            found = without_prefixes(read_weights(file, "file of VGG-16 weights"), own.values())
            tensors = {name: found.tensors[theirs] for name, theirs in own.items() if theirs in found.tensors}
            others = (name for name in found.tensors if name not in own.values() and not name.startswith("classifier."))
            tensors |= {name: found.tensors[name] for name in others}
            fill(self.net.net, found._replace(tensors=tensors), "torchvision's VGG-16")
        except UserError as error:
            raise UserError(f"{error}: {remedy}") from error
        return self

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)

    def per_image(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """One distance per pair, ``(B,)``."""
        return self.net(reconstruction, images).flatten()

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Mean over the batch, a scalar."""
        return self.net(reconstruction, images).mean()
