"""The autoencoders of SoftVQ-VAE (arXiv 2412.10958) and of the paper's code: a ViT of patches and latent tokens, and a ViT back."""

from __future__ import annotations

import math
import re
from pathlib import Path

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import build_config
from imports.checkpoint import Checkpoint
from imports.config import ImportConfig
from imports.names import Made, depth_of, fill_by_names, renamed, size_of
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig

WHAT = "a ViT autoencoder"
NAMES = ("encoder.model.", "quant_conv.", "post_quant_conv.")  # that tell one
BEGINNINGS = {  # ours: published
    "encoder.vit.": "encoder.model.",
    "encoder.to_latent.": "quant_conv.",
    "decoder.vit.": "decoder.model.",
    "decoder.from_latent.": "post_quant_conv.",
    "decoder.latent_positions": "decoder.latent_pos_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.to_pixels.": "decoder.to_pixel.model.",
    "latent_maps.0.codewords": "quantize.embedding",
}
# Of training alone: the alignment's features and head, a count of codewords, and a patch embedding that a decoder has no pixels for.
DROPPED = ("repa_model.", "projection.", "quantize.codebook_used", "decoder.model.patch_embed.")
REFUSED = {
    r"(^|[._])(rope|freqs)": "its transformers have rotary positions (RoPE), and those here have learned ones",
    r"^decoder\.to_pixel\.(?!model\.(weight|bias)$)": "its pixels come out of convolutions, and here of one linear layer",
    r"^quantize\.embedding\.": "it has a hard codebook (VQ), and here there are soft ones",
}
VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}


def import_autoencoder(checkpoint: Checkpoint, options: ImportConfig, out: Path) -> Autoencoder:
    """Write the checkpoint's autoencoder as a folder that :meth:`~tokenizer.autoencoder.Autoencoder.load` reads.

    Raises:
        UserError: it is of a kind that does not fit, or tensors are missing, unknown or of other sizes.
    """
    refuse(checkpoint)
    config = config_of(checkpoint, options)
    model = Autoencoder(config, {"imported": checkpoint.origin()})
    made = renamed(model.state_dict(), BEGINNINGS)
    tokens = ("encoder.latent_tokens", "encoder.latent_pos_embed")
    made["encoder.latent_tokens"] = Made(tokens, lambda token, position: token + position)
    fill_by_names(
        model, checkpoint, made, f"an autoencoder of {config.encoder.name} and {config.decoder.name}", DROPPED
    )
    model.eval().save(out)
    return model


def refuse(checkpoint: Checkpoint) -> None:
    """A :class:`UserError` for what no network here can be."""
    for pattern, reason in REFUSED.items():
        if name := next((name for name in checkpoint.tensors if re.search(pattern, name)), None):
            raise UserError(f"the autoencoder in {checkpoint.file} does not fit: {reason} ({name})")
    for part in ("encoder", "decoder"):
        if f"{part}.model.pos_embed" not in checkpoint.tensors and depth_of(checkpoint, f"{part}.model.blocks."):
            raise UserError(
                f"the autoencoder in {checkpoint.file} does not fit: {part}.model.pos_embed is not there, as where positions are rotary (RoPE)"
            )
    pixels = checkpoint.tensors.get("decoder.to_pixel.model.weight")
    if pixels is not None and pixels.dim() != 2:
        reason = REFUSED[r"^decoder\.to_pixel\.(?!model\.(weight|bias)$)"]
        raise UserError(f"the autoencoder in {checkpoint.file} does not fit: {reason} (decoder.to_pixel.model.weight)")


def config_of(checkpoint: Checkpoint, options: ImportConfig) -> AutoencoderConfig:
    """The sizes that the tensors say."""
    patch = size_of(checkpoint, "encoder.model.patch_embed.proj.weight", 4, WHAT)[-1]
    positions = size_of(checkpoint, "encoder.model.pos_embed", 3, WHAT)[1]
    side = math.isqrt(positions)  # with the class token's position, or without
    tokens = size_of(checkpoint, "encoder.latent_tokens", 3, WHAT)[1]
    coded, channels = (
        size_of(checkpoint, "quant_conv.weight", 2, WHAT)[0],
        size_of(checkpoint, "post_quant_conv.weight", 2, WHAT)[1],
    )
    if coded not in (channels, 2 * channels):
        raise UserError(f"the autoencoder in {checkpoint.file} encodes to {coded} channels and decodes from {channels}")
    latent_map = {"name": "none"}
    if "quantize.embedding" in checkpoint.tensors:
        codebooks, size, _ = size_of(checkpoint, "quantize.embedding", 3, WHAT)
        sizes = {"codebooks": codebooks, "size": size, "temperature": options.temperature}
        latent_map = {"name": "segment_codebooks", "segment_codebooks": sizes}
    elif options.temperature != ImportConfig.temperature:
        raise UserError(f"leave out temperature=: the autoencoder in {checkpoint.file} has no codebooks")
    values = {
        "image_size": side * patch,
        "patch_size": patch,
        "tokens": tokens,
        "channels": channels,
        "gaussian": coded == 2 * channels,
        "encoder": {"name": options.encoder or vit_name(checkpoint, "encoder")},
        "decoder": {"name": options.decoder or vit_name(checkpoint, "decoder")},
        "input_mean": [0.5] * 3,  # images are fed in [-1, 1]
        "input_std": [0.5] * 3,
        "latent_map": latent_map,
    }
    return build_config(AutoencoderConfig, values, str(checkpoint.file))


def vit_name(checkpoint: Checkpoint, part: str) -> str:
    """timm's name of the ViT that has this width and depth, with the layer scale of DINOv2 or without."""
    beginning = f"{part}.model."
    width, depth = (
        size_of(checkpoint, f"{beginning}pos_embed", 3, WHAT)[-1],
        depth_of(checkpoint, f"{beginning}blocks."),
    )
    size = VITS.get((width, depth))
    if size is None:
        raise UserError(f"no ViT of {depth} blocks of width {width} is known: write {part}=<its name in timm>")
    if f"{beginning}blocks.0.ls1.gamma" not in checkpoint.tensors:
        name = f"vit_{size}_patch16_224"
    else:
        name = f"vit_{size}_patch14{'_reg4' * (f'{beginning}reg_token' in checkpoint.tensors)}_dinov2"
    note(
        f"the {part} of {checkpoint.file} has {depth} blocks of width {width}: {name} is taken ({part}= names another)"
    )
    return name
