"""Weight files of other people's networks: what is taken, stripped and left out is said, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowprior.errors import UserError, one_line
from flowprior.notes import note
from flowprior.run.archives import load_pt
from flowprior.run.files import read_tensors

# What wrappers put before every name: DataParallel and DDP, torch.compile, Lightning modules, and models that hold the network as a part.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "network.", "net.", "trunk.", "vit.")
# Parts that a published file may hold beside the network that features are taken from.
HEADS = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.", "AuxLogits.")  # classifiers
PRETRAINING = ("mask_token", "lm_head.", "dino_head.", "ibot_head.")
POOLING = ("attn_pool.",)  # may be left out by a network that pools otherwise


class Weights(NamedTuple):
    """Tensors by name, and what was done to the file's, in words."""

    file: Path
    what: str  # the file is, in messages
    tensors: dict[str, Tensor]
    changes: tuple[str, ...] = ()


def read_weights(file: str | Path, what: str = "file of pretrained weights") -> Weights:
    """The tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote (``.pth``, ``.pt``, ``.bin``, ``.ckpt``); no code is run.

    A dictionary with one set of tensors inside, such as ``{"model": {...}, "epoch": 3}``, gives that set.

    Raises:
        UserError: there is no such file, it is damaged, holds Python objects, or holds no tensors or several sets of them.
    """
    file = Path(file)
    if file.suffix in (".npz", ".msgpack", ".h5"):
        raise UserError(f"the {what} {file} is not PyTorch's: name a .safetensors or .pth file of the same network")
    if file.suffix == ".safetensors" or not file.is_file():
        return Weights(file, what, _strided(read_tensors(file, what), f"{what} {file}"))
    content, changes = load_pt(file, what, map_location="cpu"), ()
    if not isinstance(content, dict):
        raise UserError(f"the {what} {file} must hold a dictionary of tensors, not a {type(content).__name__}")
    while sets := {name: value for name, value in content.items() if _holds_tensors(value)}:
        loose = [name for name, value in content.items() if isinstance(value, Tensor)]
        if len(sets) > 1 or loose:
            first = f"torch.save(torch.load('{file.name}', weights_only=True)['{next(iter(sets))}'], 'weights.pth')"
            raise UserError(
                f"the {what} {file} holds several sets of tensors ({_few([*sets, *loose])}): save the one that is meant alone, "
                f"{first} for the first, and name that file"
            )
        (name, inner), others = next(iter(sets.items())), [str(n) for n in content if n not in sets]
        content, changes = inner, (*changes, f"'{name}' is taken" + (f", not {_few(others)}" if others else ""))
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"the {what} {file} holds no tensors")
    if plain := [str(name) for name in content if str(name) not in tensors]:
        changes += (f"{_few(plain)} left out, no tensors",)
    return Weights(file, what, _strided(tensors, f"{what} {file}"), changes)


def without_prefixes(weights: Weights, wanted: Collection[str], heads: tuple[str, ...] = HEADS) -> Weights:
    """``weights`` without the known prefixes that all names but those of ``heads`` share and none of the network's, ``wanted``, has.

    Raises:
        UserError: two names are the same without the prefix.
    """
    tensors, stripped = weights.tensors, ""
    while prefix := _shared_prefix([name for name in tensors if not name.startswith(heads)], wanted):
        shorter = {name.removeprefix(prefix): value for name, value in tensors.items()}
        if len(shorter) < len(tensors):
            raise UserError(
                f"the {weights.what} {weights.file} has names with and without '{prefix}': keep one of each"
            )
        tensors, stripped = shorter, stripped + prefix
    if not stripped:
        return weights
    return weights._replace(
        tensors=tensors, changes=(*weights.changes, f"the prefix '{stripped}' is stripped from its names")
    )


def fill(module: nn.Module, weights: Weights, what: str, may_be_left: tuple[str, ...] = ()) -> None:
    """Put ``weights`` into ``module``: every tensor of the module is filled, and what is left over starts with one of ``may_be_left``.

    What was stripped or left out is said on stderr.

    Args:
        module: a network, on the CPU.
        weights: named and sized as the module's.
        what: it is, in messages.
        may_be_left: beginnings of names.

    Raises:
        UserError: tensors are missing, left over, of other sizes, no floating-point numbers where the module wants them, or not finite.
    """
    own, file = module.state_dict(), weights.file
    missing = [name for name in own if name not in weights.tensors and not name.endswith("num_batches_tracked")]
    left = [name for name in weights.tensors if name not in own]
    strange = [name for name in left if not name.startswith(may_be_left)]
    if missing or strange:
        reasons = [f"it lacks {_few(missing)}"] * bool(missing) + [f"has {_few(strange)} beside"] * bool(strange)
        raise UserError(f"the weights in {file} are not those of {what}: {' and '.join(reasons)}")
    for name in own.keys() & weights.tensors.keys():
        value = weights.tensors[name]
        if value.shape != own[name].shape:
            sizes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
            raise UserError(f"the weights in {file} are not those of {what}: {name} is {sizes}")
        if own[name].is_floating_point() and not value.is_floating_point():
            raise UserError(
                f"the weights in {file} are quantised ({name} is {value.dtype}): name a file with floating-point ones"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"the weights in {file} are not finite: {name} holds NaN or infinity")
    try:
        module.load_state_dict({name: weights.tensors[name] for name in own if name in weights.tensors}, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {file} do not fit {what} ({one_line(error)})") from error
    changes = [*weights.changes] + ([f"{_few(left)} left out, not of the network here"] if left else [])
    if changes:
        note(f"the weights in {file}: {'; '.join(changes)}")


def _shared_prefix(names: list[str], wanted: Collection[str]) -> str:
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return "" if any(name.startswith(prefix) for name in wanted) else prefix
    return ""


def _holds_tensors(value: Any) -> bool:
    """Whether ``value`` is a dictionary with named tensors in it, at any depth; an optimiser's state is named by numbers."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return False
    return any(isinstance(v, Tensor) or (isinstance(v, dict) and _holds_tensors(v)) for v in value.values())


def _strided(tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"the {what} holds a sparse or quantised tensor, {name}: save it as a dense one")
    return tensors


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
