"""The embedded low-level target: latents of a small KL autoencoder trained on embedded digits, in an image VAE's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowprior.data.images import ImageConfig, open_images
from flowprior.run.config import build_config, option
from flowprior.run.run_folder import RunFolder
from tokenizer.prior.targets.autoencoder import autoencoder_latents
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.extraction import ExtractionOptions


@dataclass
class DigitsLowLevelTarget:
    """source=digits_lowlevel: a small KL autoencoder is trained, and its latent tokens of the images are the target."""

    of: Literal["digits", "mnist"] = option("digits", "embedded images that it is trained on and encodes")
    tokens: int = option(16, "latent tokens of the autoencoder")
    channels: int = option(16, "channels of a latent token")
    width: int = option(96, "width of the autoencoder's transformers")
    depth: int = option(2, "blocks of each transformer")
    kl_weight: float = option(1e-4, "weight of the KL divergence per latent element")
    steps: int = option(600, "steps of the autoencoder's training, 64 images each")

    def load(self, context: TargetContext) -> TargetFeatures:
        data = ImageConfig(source=self.of)
        folder = self.train_autoencoder(context)
        return autoencoder_latents(folder, ExtractionOptions(dtype="float32"), context, data)

    def train_autoencoder(self, context: TargetContext) -> Path:
        """Train it as stage 2 trains its own, into ``target_autoencoder/`` beside the prior; it resumes and is trained once."""
        from tokenizer.config import AEConfig
        from tokenizer.train_ae import train

        run_dir = context.folder / "target_autoencoder"
        config = build_config(AEConfig, self.autoencoder_options(run_dir, context.seed))
        folder, images = RunFolder(run_dir, "ae"), open_images(config.data, config.train.seed)
        folder.open(config, context.world, {"data": images.fingerprint()})
        if not folder.is_complete():
            train(config, folder, context.world, images, images, prior=None)
        context.world.barrier()  # the first process writes it
        return folder.path / "autoencoder"

    def autoencoder_options(self, run_dir: Path, seed: int) -> dict[str, Any]:
        """Stage 2's options for the small KL autoencoder."""
        transformer = {"width": self.width, "depth": self.depth, "heads": 3}
        return {
            "run_dir": str(run_dir),
            "data": {"source": self.of, "size": 32},
            "model": {
                "image_size": 32,
                "patch_size": 8,
                "tokens": self.tokens,
                "channels": self.channels,
                "token_std": 0.5,
                "encoder": transformer,
                "decoder": transformer,
            },
            "regulariser": {"name": "kl", "kl": {"weight": self.kl_weight}},
            "monitor": {"images": 128},
            "train": {
                "steps": self.steps,
                "global_batch": 64,
                "seed": seed,
                "eval_steps": 0,
                "checkpoint_steps": 200,
                "tensorboard": False,
            },
            "optim": {
                "lr": 3e-3,
                "betas": [0.9, 0.99],
                "weight_decay": 1e-4,
                "warmup_steps": min(100, self.steps // 10),
                "final_lr_fraction": 0.02,
                "ema_decay": 0.99,
            },
        }
