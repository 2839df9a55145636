"""The latent cache as training reads it, raw latents by key; ``flowprior/data/latent_writer.py`` makes it and says what lies in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowprior.data.order import SampleKey
from flowprior.errors import UserError, one_line
from flowprior.run.files import file_sha256, read_json
from flowprior.training.randomness import stream_seed

FORMAT_VERSION = 1
SHARD_NAME = re.compile(r"latents-\d{5,9}\.safetensors")


class LatentCache:
    """A finished cache as a keyed data set; ``batch`` returns raw ``latents`` float32 (B, T, C) and ``label`` int64 (B,).

    Args:
        folder: of the cache.
        seed: chooses between an image's views, and draws from its moments, by (seed, epoch, index).
        verify: read every shard once and compare its checksum.
        made_by: the command that makes the cache, for whoever has none.

    Raises:
        UserError: there is no whole cache, or a shard is missing, changed or of another shape.
    """

    def __init__(self, folder: Path, seed: int = 0, verify: bool = True, made_by: str = "cache_latents") -> None:
        self.folder, self.seed = folder, seed
        self.manifest = read_json(folder / "manifest.json", f"latent cache (run `{made_by}` first)")
        if self.manifest.get("format") != FORMAT_VERSION:
            raise UserError(f"the latent cache {folder} is of another version of this code: delete it")
        try:
            self.count, self.num_classes = int(self.manifest["count"]), int(self.manifest["num_classes"])
            self.shape = (int(self.manifest["tokens"]), int(self.manifest["channels"]))
            self.views, self.moments = int(self.manifest["views"]), bool(self.manifest.get("moments", False))
            shards = [
                (folder / Path(entry["file"]).name, int(entry["rows"]), entry["sha256"])
                for entry in self.manifest["shards"]
            ]
            if not shards or min(self.count, self.num_classes, self.views, *self.shape) < 1:
                raise ValueError("it lists no shards, or a number in it is not above 0")
            if not all(SHARD_NAME.fullmatch(entry["file"]) for entry in self.manifest["shards"]):
                raise ValueError("it names files that are no shards")  # or that lie elsewhere
            if not isinstance(self.manifest.get("origin"), dict) or not isinstance(
                self.manifest.get("class_names"), list
            ):
                raise ValueError("it does not say what it was made from")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{folder / 'manifest.json'} is damaged ({error}): delete the latent cache {folder}, and cache again"
            ) from error
        parts = [self._read_shard(*shard, verify) for shard in shards]
        self.latents = [latents for latents, _ in parts]
        self.labels = torch.cat([labels for _, labels in parts])
        self.starts = torch.tensor([0] + [len(part) for part in self.latents]).cumsum(0)
        if len(self.labels) != self.count:
            raise UserError(
                f"the latent cache {folder} holds {len(self.labels)} images and its manifest says {self.count}: delete the cache"
            )
        if not (0 <= self.labels.min() and self.labels.max() < self.num_classes):
            raise UserError(
                f"the latent cache {folder} has labels beyond its {self.num_classes} classes: delete the cache"
            )

    def _read_shard(self, file: Path, rows: int, checksum: str, verify: bool) -> tuple[Tensor, Tensor]:
        """Latents ``(rows, views, T, C)``, or twice C where they are moments, and labels ``(rows,)``."""
        if not file.is_file() or (verify and file_sha256(file) != checksum):
            manifest = self.folder / "manifest.json"
            raise UserError(
                f"the latent cache's file {file} is missing or damaged: delete it and {manifest}, and cache again"
            )
        try:
            with safe_open(file, "pt") as shard:
                latents, labels = shard.get_tensor("latents"), shard.get_tensor("labels")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"the latent cache's file {file} is damaged ({one_line(error)}): delete the cache {self.folder}"
            ) from error
        width = self.shape[1] * (2 if self.moments else 1)
        whole = latents.shape == (rows, self.views, self.shape[0], width) and labels.shape == (rows,)
        if not whole or not latents.is_floating_point() or labels.dtype != torch.int64:
            raise UserError(
                f"the latent cache's file {file} does not have the shape that its manifest says: delete the cache {self.folder}"
            )
        return latents, labels

    def __len__(self) -> int:
        return self.count

    @property
    def fingerprint(self) -> str:
        """16 hex digits of every shard's checksum."""
        return f"{stream_seed(*(entry['sha256'] for entry in self.manifest['shards'])):016x}"

    @property
    def device(self) -> torch.device:
        """Where the latents lie."""
        return self.latents[0].device

    @property
    def bytes(self) -> int:
        """Of all latents."""
        return sum(part.numel() * part.element_size() for part in self.latents)

    def hold_on(self, device: torch.device, share: float = 0.5) -> bool:
        """Move the latents to ``device`` where that is a GPU and they take at most ``share`` of its free memory; whether they did."""
        if device.type != "cuda" or self.bytes > share * torch.cuda.mem_get_info(device)[0]:
            return False
        self.move_to(device)
        return True

    def move_to(self, device: torch.device) -> None:
        """Latents and labels to ``device``, there as one tensor: a batch costs few copies of indices, however many shards there are."""
        whole = torch.empty(self.count, *self.latents[0].shape[1:], dtype=self.latents[0].dtype, device=device)
        for start, part in zip(self.starts.tolist(), self.latents):
            whole[start : start + len(part)] = part  # straight to their place: the memory is never needed twice
        self.latents, self.labels, self.starts = [whole], self.labels.to(device), torch.tensor([0, self.count])

    def batch(self, keys: list[SampleKey], draw: bool = True) -> dict[str, Tensor]:
        """Raw ``latents`` float32 (B, T, C), of a view drawn by (seed, epoch, index), and ``label`` int64 (B,); of moments a draw, or the mean."""
        index = torch.tensor([key.index for key in keys])
        views = torch.zeros_like(index)
        if self.views > 1:
            views = torch.tensor([self._view(key) if key.epoch >= 0 else 0 for key in keys])
        if len(self.latents) == 1:
            latents = self.latents[0][index.to(self.device), views.to(self.device)]
        else:  # image by image, from files: a batch meets about as many shards as it has images
            shards = torch.searchsorted(self.starts, index, right=True) - 1
            places = zip(shards.tolist(), (index - self.starts[shards]).tolist(), views.tolist())
            latents = torch.stack([self.latents[shard][row, view] for shard, row, view in places])
        latents = latents.float()
        if self.moments and not draw:
            latents = latents.chunk(2, -1)[0]
        elif self.moments:
            latents = draw_latents(latents, [(self.seed, key.epoch, key.index) for key in keys])
        return {"latents": latents, "label": self.labels[index.to(self.labels.device)]}

    def _view(self, key: SampleKey) -> int:
        return stream_seed(self.seed, "view", key.epoch, key.index) % self.views


def draw_latents(moments: Tensor, places: Sequence[tuple[int | str, ...]]) -> Tensor:
    """Latents ``(B, T, C)`` from mean and log-variance ``(B, T, 2 C)``; the noise of each depends on its place only."""
    mean, logvar = moments.float().chunk(2, dim=-1)
    noise = torch.stack(
        [
            torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(stream_seed("posterior", *place)))
            for place in places
        ]
    )
    return mean + (0.5 * logvar).exp() * noise.to(mean.device)
