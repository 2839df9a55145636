"""Weight files of other people's networks, through every option that names one."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from flowprior.data.images import ImageConfig
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import extractors
from flowprior.pretrained.timm_models import build_timm
from flowprior.pretrained.weights import read_weights
from flowprior.run.archives import load_pt
from tokenizer.features.timm import TimmFeatures
from tokenizer.losses.discriminators.dino import DinoConfig
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.prior.targets.base import TargetContext
from tokenizer.prior.targets.timm_model import TimmTarget
from tokenizer.vit import ViTConfig, build_vit

NAME, SIZE = "test_vit", 64


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """As published: with a classifier."""
    torch.manual_seed(0)
    state = timm.create_model(NAME, img_size=SIZE).state_dict()
    return {name: value + 0.1 * torch.randn(value.shape) for name, value in state.items()}


def prefixed(prefix, but=()):
    return lambda w: {name if name.startswith(but) else prefix + name: value for name, value in w.items()}


FILES = {
    "as they are": (lambda w: w, ""),
    "DataParallel": (prefixed("module."), "'module.' is stripped"),
    "torch.compile": (prefixed("_orig_mod."), "'_orig_mod.' is stripped"),
    "both": (prefixed("module._orig_mod."), "'module._orig_mod.' is stripped"),
    "Lightning": (lambda w: {"state_dict": prefixed("model.")(w), "epoch": 3}, "'state_dict' is taken, not epoch"),
    "backbone and head": (prefixed("backbone.", but=("head.",)), "'backbone.' is stripped"),
    "an encoder": (prefixed("encoder."), "'encoder.' is stripped"),
    "beside an optimiser": (
        lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "'model' is taken, not optimizer",
    ),
    "beside a step": (lambda w: w | {"step": 3}, "step left out"),
    "with a head of its pretraining": (lambda w: w | {"lm_head.weight": torch.ones(3)}, "lm_head.weight left out"),
    "in half precision": (lambda w: {name: value.half() for name, value in w.items()}, ""),
}


@pytest.mark.parametrize("change, said", FILES.values(), ids=FILES)
def test_known_ways_to_save_the_same_weights_load_and_what_was_done_is_said(tmp_path, weights, change, said, capsys):
    torch.save(change(dict(weights)), tmp_path / "weights.pth")
    found = build_timm(NAME, tmp_path / "weights.pth", img_size=SIZE).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-3)
    line = capsys.readouterr().err
    assert (
        said in line
        and re.search("head.weight, head.bias.* left out, not of the network", line)
        and line.count("\n") == 1
    )


def without(*names):
    return lambda w: {name: value for name, value in w.items() if not name.startswith(names)}


REFUSED = {
    "a block is missing": (without("blocks.3."), r"it lacks blocks\.3\.norm1\.weight, .* and \d+ more"),
    "a norm is missing": (without("norm.weight"), r"it lacks norm\.weight$"),
    "a bias is missing": (without("blocks.0.attn.qkv.bias"), r"it lacks blocks\.0\.attn\.qkv\.bias$"),
    "something is left over": (lambda w: w | {"blocks.9.norm1.weight": torch.ones(64)}, r"has blocks\.9\.norm1\.weight beside"),
    "half of it has a prefix": (
        lambda w: {("module." if "blocks" in name else "") + name: value for name, value in w.items()},
        "it lacks blocks.* and has module.blocks",
    ),
    "an unknown prefix": (prefixed("student_backbone."), "it lacks cls_token"),
    "of another width": (lambda w: w | {"blocks.0.norm1.weight": torch.ones(65)}, r"blocks\.0\.norm1\.weight is \(65,\)"),
    "not finite": (lambda w: w | {"norm.bias": torch.full((64,), torch.nan)}, r"norm\.bias holds NaN"),
    "whole numbers": (lambda w: {n: (v * 9).to(torch.int8) for n, v in w.items()}, r"quantised \(.* is torch.int8\)"),
    "sparse": (lambda w: w | {"norm.bias": torch.ones(64).to_sparse()}, "sparse or quantised tensor, norm.bias"),
    "two sets": (lambda w: {"student": w, "teacher": w}, r"several sets of tensors \(student, teacher\): save"),
    "names twice": (lambda w: w | prefixed("module.")(w), "has module"),
    "no tensors": (lambda w: {"epoch": 3}, "holds no tensors"),
    "a list": (lambda w: [torch.ones(2)], "must hold a dictionary of tensors, not a list"),
    "hyperparameters": (lambda w: {"state_dict": w, "args": argparse.Namespace(lr=1)}, r"Python objects \(argparse\.Namespace\)"),
    "numpy's scalars": (lambda w: {"model": w, "loss": np.float64(0.5)}, r"Python objects \(numpy.*scalar\)"),
}  # fmt: skip


@pytest.mark.parametrize("change, said", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fill_the_network_exactly_is_refused_in_one_line(tmp_path, weights, change, said):
    file = tmp_path / "weights.pth"
    torch.save(change(dict(weights)), file)
    with pytest.raises(UserError, match=said) as refused:
        build_timm(NAME, file, img_size=SIZE)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


class TinyDINO(extractors.DINOv2FeatureExtractor):
    MODEL, SIDE = NAME, SIZE


def target(file: str):
    context = TargetContext(0, Path(), World(), ImageConfig(size=SIZE))
    return TimmTarget(model=NAME, weights=file).build(context).model


DOORS = {
    "model.encoder.weights": lambda file: build_vit(ViTConfig(NAME, True, weights=file), SIZE, 16),
    "features.timm.weights": lambda file: TimmFeatures(NAME, True, file, SIZE).build(SIZE).frozen.vit,
    "discriminator.dino.weights": lambda file: DinoConfig(NAME, True, file, SIZE, blocks=(1,)).build(SIZE).frozen.vit,
    "target.timm.weights": target,
    "evaluate.weights": lambda file: TinyDINO("tiny", ["1024"], file).network,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_option_that_names_a_file_strips_refuses_and_says_alike(tmp_path, weights, door, capsys):
    torch.save(prefixed("module.")(weights), tmp_path / "prefixed.pth")
    found = door(str(tmp_path / "prefixed.pth")).state_dict()
    assert found.keys() >= {"blocks.0.attn.qkv.weight", "norm.weight"}
    for name, value in found.items():
        assert torch.equal(value, weights[name]), name
    assert "the prefix 'module.' is stripped" in capsys.readouterr().err
    save_file(without("blocks.2.")(weights), tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"short\.safetensors are not those of 'test_vit'.*lacks blocks\.2\."):
        door(str(tmp_path / "short.safetensors"))


def test_vgg_16_is_filled_by_name_and_size(tmp_path):
    network = PerceptualLoss().net.net
    theirs = {
        f"features.{name.split('.', 1)[1]}": torch.rand_like(value) for name, value in network.state_dict().items()
    }
    theirs["classifier.0.weight"] = torch.ones(2)
    torch.save(prefixed("module.")(theirs), tmp_path / "vgg.pth")
    found = PerceptualLoss().load(str(tmp_path / "vgg.pth")).net.net.state_dict()
    assert all(torch.equal(value, theirs[f"features.{name.split('.', 1)[1]}"]) for name, value in found.items())
    theirs["features.0.bias"] = torch.ones(1)  # which a copy would spread over 64 channels
    torch.save(theirs, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"is \(1,\) instead of \(64,\)"):
        PerceptualLoss().load(str(tmp_path / "vgg.pth"))


def test_flax_archives_are_refused_by_their_kind(tmp_path):
    np.savez(tmp_path / "vit.npz", a=np.ones(2))
    with pytest.raises(UserError, match="vit.npz is not PyTorch's"):
        read_weights(tmp_path / "vit.npz")


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize(
    "kind, objects, mend",
    [
        (
            "argparse.Namespace",
            {"state_dict": {}, "hyper_parameters": argparse.Namespace(lr=1)},
            "the dictionary of its tensors alone",
        ),
        ("torch.nn.modules.linear.Linear", torch.nn.Linear(2, 2), "the dictionary of its tensors alone"),
        (r"numpy\S*scalar", {"features": torch.ones(2, 2), "mean": np.float32(1)}, "torch.as_tensor"),
    ],
)
def test_python_objects_in_a_pt_file_are_named_with_how_to_save_the_tensors_alone(
    tmp_path, kind, objects, mend, zip_file
):
    file = tmp_path / "kept.pt"
    torch.save(objects, file, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))} holds Python objects \({kind}\)") as refused:
        load_pt(file, "feature file")
    said = str(refused.value)
    assert mend in said and "weights_only=False" in said and "damaged" not in said and said.isprintable()


def dinov2(state: dict) -> dict:
    """A ViT with registers as DINOv2's authors publish it: the class token's position apart, a mask token beside."""
    position = torch.randn(1, 1, 384)
    published = {name: value for name, value in state.items() if name not in ("reg_token", "cls_token", "pos_embed")}
    published |= {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 384)}
    return published | {
        "cls_token": state["cls_token"] - position,
        "pos_embed": torch.cat([position, state["pos_embed"]], 1),
    }


def dinov3(state: dict) -> dict:
    """An Eva as DINOv3's authors publish it."""
    names = {name: re.sub(r"gamma_(\d)", r"ls\1.gamma", name).replace("reg_token", "storage_tokens") for name in state}
    return {names[name]: value for name, value in state.items()} | {
        "mask_token": torch.zeros(1, 384),
        "rope_embed.periods": torch.ones(16),
    }


def openclip(state: dict) -> dict:
    return {f"visual.trunk.{name}": value for name, value in state.items()} | {
        "logit_scale": torch.ones(()),
        "text.a": torch.ones(2),
    }


@pytest.mark.parametrize(
    "name, publish",
    [
        ("vit_small_patch14_reg4_dinov2", dinov2),
        ("vit_small_patch16_dinov3", dinov3),
        ("vit_small_patch16_224", openclip),
    ],
)
def test_weights_as_their_authors_publish_them_are_taken(tmp_path, monkeypatch, name, publish):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **options: create(*a, depth=1, **options))
    torch.manual_seed(0)
    state = {key: torch.randn(value.shape) for key, value in build_timm(name, img_size=56).state_dict().items()}
    torch.save({"model": prefixed("module.")(publish(state))}, tmp_path / "published.pth")
    for key, value in build_timm(name, tmp_path / "published.pth", img_size=56).state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-5, atol=1e-5)
    short = publish(state)
    del short["visual.trunk.norm.weight" if publish is openclip else "norm.weight"]
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"it lacks norm\.weight$"):
        build_timm(name, tmp_path / "short.pth", img_size=56)
