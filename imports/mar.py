"""The paper's MAR: a masked encoder and decoder, and the flow prior's network as its head."""

from __future__ import annotations

from pathlib import Path

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.run.files import read_json
from flowprior.run.hub import saved_folder
from generation.generator import GeneratorObjective, build_generator
from generation.saved import save_generator
from imports.checkpoint import Checkpoint, scale_of
from imports.config import ImportConfig
from imports.flow_head import head_parts, head_sizes
from imports.names import Made, depth_of, fill_by_names, renamed, size_of
from mar.config import MARStageConfig
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import is_diffusers

WHAT = "a MAR with a flow head"
HEAD = "diffloss.net."
NAMES = ("encoder_blocks.", HEAD)  # that tell one
BEGINNINGS = {  # ours: published
    "embed.": "z_proj.",
    "embed_norm.": "z_proj_ln.",
    "encoder.": "encoder_blocks.",
    "decoder.": "decoder_blocks.",
    "encoder_positions": "encoder_pos_embed_learned",
    "decoder_positions": "decoder_pos_embed_learned",
    "head_positions": "diffusion_pos_embed_learned",
    "encoder_norm.": "encoder_norm.",
    "decoder_embed.": "decoder_embed.",
    "decoder_norm.": "decoder_norm.",
    "mask_token": "mask_token",
}


def import_mar(checkpoint: Checkpoint, options: ImportConfig, out: Path) -> GeneratorObjective:
    """Write the checkpoint's generator as the folder ``generator`` of a run, for the latents of ``options.autoencoder``.

    Raises:
        UserError: it is of a kind that does not fit, its autoencoder or its scale is not known, or tensors are missing, unknown or of other
            sizes.
    """
    shape, sizes = sizes_of(checkpoint)
    scale = scale_of(checkpoint, options.scale)
    if scale is None:
        raise UserError(
            f"the checkpoint {checkpoint.file} does not say how its latents were scaled: write scale=<1 / their std, in training>"
        )
    autoencoder = autoencoder_of(options, shape)
    model = build_config(MARStageConfig, {"model": {"name": "mar", "mar": sizes}}, "").model
    bundle = GeneratorObjective(build_generator(model, **shape), LatentNormaliser(shape["channels"]))
    names = list(bundle.model.state_dict())
    made = renamed(names, BEGINNINGS)
    head = [name.removeprefix("head.") for name in names if name.startswith("head.")]
    made |= {f"head.{name}": one for name, one in head_parts(head, HEAD).items()}
    made["class_embed.weight"] = Made(("class_emb.weight", "fake_latent"), lambda *rows: torch.cat(rows))
    fill_by_names(bundle.model, checkpoint, made, f"a MAR of width {sizes['width']}")
    bundle.normaliser.scale.fill_(scale)
    about = {"autoencoder": autoencoder.fingerprint, "class_names": [], "imported": checkpoint.origin()}
    save_generator(out, bundle.eval(), model, shape, about)
    return bundle


def sizes_of(checkpoint: Checkpoint) -> tuple[dict[str, int], dict[str, float]]:
    """``tokens``, ``channels`` and ``num_classes``, and the options of :class:`~mar.model.MARConfig` that the tensors say."""
    if "encoder_blocks.0.attn.q_norm.weight" not in checkpoint.tensors:
        raise UserError(
            f"the MAR in {checkpoint.file} does not fit: its queries and keys have no norms (encoder_blocks.0.attn.q_norm), as in MAR with a "
            "diffusion head"
        )
    width, channels = size_of(checkpoint, "z_proj.weight", 2, WHAT)
    tokens = size_of(checkpoint, "diffusion_pos_embed_learned", 3, WHAT)[1]
    buffer = size_of(checkpoint, "encoder_pos_embed_learned", 3, WHAT)[1] - tokens
    head = head_sizes(checkpoint, HEAD, WHAT)
    if head["channels"] != channels or buffer < 1:
        raise UserError(
            f"the MAR in {checkpoint.file} is damaged: {buffer} buffer tokens, and a head of {head['channels']} channels beside {channels}"
        )
    sizes = {
        "width": width,
        "encoder_depth": depth_of(checkpoint, "encoder_blocks."),
        "decoder_depth": depth_of(checkpoint, "decoder_blocks."),
        "heads": width // size_of(checkpoint, "encoder_blocks.0.attn.q_norm.weight", 1, WHAT)[0],
        "buffer_tokens": buffer,
        "head_width": head["width"],
        "head_depth": head["depth"],
        "norm_eps": 1e-6,  # as its code has them
        "qk_norm_eps": 1e-5,
    }
    shape = {"tokens": tokens, "channels": channels, "num_classes": size_of(checkpoint, "class_emb.weight", 2, WHAT)[0]}
    return shape, sizes


def autoencoder_of(options: ImportConfig, shape: dict[str, int]) -> Autoencoder:
    """The one whose latents it makes; a :class:`UserError` where none is named, or it is of other sizes."""
    if not options.autoencoder:
        raise UserError("a MAR belongs to an autoencoder: write autoencoder=<its folder, imported before>")
    folder = saved_folder(options.autoencoder, "autoencoder")
    if is_diffusers(read_json(folder / "config.json", "autoencoder")):
        raise UserError(
            f"{options.autoencoder} is an autoencoder of diffusers, and an imported MAR belongs to one that was imported: import the autoencoder "
            "whose latents it was trained on, and write autoencoder=<its folder>"
        )
    autoencoder = Autoencoder.load(folder)
    there, wanted = (autoencoder.config.tokens, autoencoder.config.channels), (shape["tokens"], shape["channels"])
    if there != wanted:
        raise UserError(
            f"the MAR makes {wanted[0]} tokens of {wanted[1]} channels, and the autoencoder {options.autoencoder} has {there[0]} of {there[1]}"
        )
    return autoencoder
