"""Published autoencoders, in the formats that they come in."""

import argparse
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flowprior.errors import UserError
from imports.__main__ import check_out, import_weights, in_words, parse
from imports.checkpoint import read_checkpoint
from imports.names import few
from published_autoencoder import CHANNELS, IMAGE, NAME, TOKENS, PublishedAutoencoder
from tokenizer.autoencoder import Autoencoder

WORDS = (f"encoder={NAME}", f"decoder={NAME}")
IMAGES = torch.rand(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def published(kind="ae", seed=0) -> PublishedAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PublishedAutoencoder(kind)


def imported(source, folder, *words) -> Autoencoder:
    name, out, config = parse([str(source), "--out", str(folder), *WORDS, *words])
    check_out(out)
    import_weights(read_checkpoint(name, config.set), config, out)
    return Autoencoder.load(out)


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["ae", "kl", "softvq"])
@torch.no_grad()
def test_an_imported_autoencoder_encodes_and_decodes_as_the_published_one(kind, tmp_path):
    theirs = published(kind)
    save_file(state_of(theirs), tmp_path / "model.safetensors")
    ours = imported(tmp_path, tmp_path / "ours")
    latents = theirs.encode(IMAGES)
    assert latents.shape == (3, TOKENS, CHANNELS) and latents.std() > 0.01
    torch.testing.assert_close(ours.encode(IMAGES), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decode(latents), theirs.decode(latents), rtol=1e-4, atol=1e-5)
    assert ours.config.gaussian == (kind == "kl") and ours.about["imported"]["file"] == "model.safetensors"


@torch.no_grad()
def test_the_averaged_weights_of_a_training_checkpoint_are_taken_unless_another_set_is_named(tmp_path, capfd):
    average, last = published(seed=1), published(seed=2)
    content = {
        "model": {f"module.{name}": value for name, value in state_of(last).items()},
        "ema": {
            f"_orig_mod.{name}".replace("encoder.", "encoder._orig_mod."): v for name, v in state_of(average).items()
        },
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "steps": 3,
        "args": argparse.Namespace(lr=1e-4, model="softvq"),
    }
    torch.save(content, tmp_path / "0250000.pt")
    of_average = imported(tmp_path / "0250000.pt", tmp_path / "average")
    assert "'ema' is taken, not model" in capfd.readouterr().err
    torch.testing.assert_close(of_average.encode(IMAGES), average.encode(IMAGES), rtol=1e-4, atol=1e-5)
    of_last = imported(tmp_path / "0250000.pt", tmp_path / "last", "set=model")
    torch.testing.assert_close(of_last.encode(IMAGES), last.encode(IMAGES), rtol=1e-4, atol=1e-5)
    assert of_last.about["imported"]["set"] == "model"


def test_half_precision_is_taken_as_it_is_and_what_is_dropped_is_said(tmp_path, capfd):
    state = {name: value.bfloat16() for name, value in state_of(published("softvq")).items()}
    save_file(state, tmp_path / "half.safetensors")
    ours = imported(tmp_path / "half.safetensors", tmp_path / "ours")
    assert torch.equal(ours.encoder.to_latent.weight, state["quant_conv.weight"].float())
    said = capfd.readouterr().err
    for words in (
        "7 tensors have no place here and are left out",
        "repa_model.",
        "quantize.codebook_used",
        "decoder.model.patch_embed.",
    ):
        assert words in said
    assert ".." not in said


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def having(**more):
    return lambda state: state | {name.replace("__", "."): value for name, value in more.items()}


CHANGES = {
    **{
        name: (lambda state, name=name: state | {name: torch.zeros(2)}, "LoRA adapters")
        for name in (
            "encoder.model.blocks.0.attn.qkv.lora_A",
            "base_model.model.encoder.model.blocks.0.attn.qkv.lora_B.default.weight",
            "encoder.model.blocks.0.attn.qkv.lora.down.weight",
            "lora_unet_blocks_0.lora_up.weight",
            "encoder.model.blocks.0.attn.processor.to_q_lora.up.weight",
        )
    },
    "adapters alone": (lambda state: {"diffloss.net.input_proj.lora_A": torch.zeros(2)}, "LoRA adapters"),
    "diffusers": (lambda state: {"encoder.down_blocks.0.x": torch.zeros(2)}, "AutoencoderKL of diffusers needs no"),
    "diffusers, whose names for the middle are ours": (
        lambda state: {"encoder.down_blocks.0.x": torch.zeros(2), "quant_conv.weight": torch.zeros(2)},
        "AutoencoderKL of diffusers needs no",
    ),
    "rope": (having(encoder__model__rope__freqs=torch.zeros(2)), r"rotary positions \(RoPE\)"),
    "no positions": (without("decoder.model.pos_embed"), "decoder.model.pos_embed is not there"),
    "convolutional head": (having(decoder__to_pixel__conv_in__weight=torch.zeros(2)), "out of convolutions"),
    "convolutional read-out": (
        having(decoder__to_pixel__model__weight=torch.zeros(3, 64, 3, 3)),
        "out of convolutions",
    ),
    "hard codebook": (having(quantize__embedding__weight=torch.zeros(8, 6)), "a hard codebook"),
    "unknown": (having(encoder__extra=torch.zeros(2)), "has encoder.extra beside"),
    "missing": (without("encoder.model.blocks.1.norm2.bias"), "it lacks encoder.model.blocks.1.norm2.bias"),
    "no latent tokens": (without("encoder.latent_tokens"), "it lacks encoder.latent_tokens"),
    "other size": (having(quant_conv__bias=torch.zeros(5)), r"quant_conv.bias is \(5,\), for \(6,\) here"),
    "not finite": (having(post_quant_conv__bias=torch.full((64,), torch.nan)), "no finite .*: post_quant_conv.bias"),
    "both prefixes": (lambda s: s | {"module.quant_conv.bias": s["quant_conv.bias"]}, "with and without"),
    "other network": (
        lambda s: {"fc.weight": torch.zeros(2, 2)},
        r"none of these: autoencoder.*flow prior \(names begin with flow_loss.net.\)",
    ),
    "unequal channels": (
        having(post_quant_conv__weight=torch.zeros(64, 5)),
        "encodes to 6 channels and decodes from 5",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name_in_one_line_and_nothing_is_written(change, tmp_path):
    make, words = CHANGES[change]
    torch.save(make(state_of(published())), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=words) as caught:
        imported(tmp_path / "weights.pth", tmp_path / "ours")
    assert "\n" not in str(caught.value) and not (tmp_path / "ours").exists()


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was executed",))


def test_a_checkpoint_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    torch.save({"model": Malicious()}, tmp_path / "code.pt")
    torch.save({"one": {"a": torch.zeros(2)}, "two": {"b": torch.zeros(2)}}, tmp_path / "sets.pt")
    torch.save({"ema": {"a": torch.zeros(2)}}, tmp_path / "ema.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("by somebody")
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for source, out, words, told in (
        ("code.pt", "x", (), "holds Python objects"),
        ("sets.pt", "x", (), "write set=<one of one, two>"),
        ("ema.pt", "x", ("set=model",), "no set 'model'"),
        ("list.pt", "x", (), "not a list"),
        ("empty", "x", (), "holds neither model.safetensors"),
        ("none.pt", "x", (), "no checkpoint at"),
        ("ema.pt", "full", (), "is there already"),
        ("ema.pt", "x", ("temperature=0",), "temperature is above 0"),
        ("ema.pt", "x", ("model",), "'model' is no option: these are set=, encoder=,"),
        ("ema.pt", "x", ("depth=3",), "'depth=3' is no option: these are set="),
        ("sd", "x", (), "diffusers' AutoencoderKL: an AutoencoderKL of diffusers needs no import"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            imported(tmp_path / source, tmp_path / out, *words)
        assert "\n" not in str(caught.value)


def other_files():
    array = io.BytesIO()
    np.savez(array, a=np.zeros(3))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    return {
        "empty": (b"", "is empty"),
        "an .npz": (array.getvalue(), r"no checkpoint but an archive of NumPy's arrays \(.npz\)"),
        "a picture": (picture.getvalue(), "no checkpoint but a PNG image"),
        "text": ("ein längerer Text\n".encode() * 99, "no checkpoint but text"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "no checkpoint but a pointer of Git LFS"),
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", other_files())
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(kind, suffix, tmp_path):
    content, words = other_files()[kind]
    (tmp_path / f"file{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(str(tmp_path / f"file{suffix}"))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_that_ends_early_is_damaged(suffix, tmp_path):
    tensors, file = {"a": torch.zeros(2000)}, tmp_path / f"file{suffix}"
    (torch.save if suffix == ".pt" else save_file)(tensors, file)
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(str(file))


def test_of_what_torch_says_of_a_file_one_whole_sentence_is_quoted_and_none_of_its_readers_workings(
    tmp_path, monkeypatch
):
    (tmp_path / "file.pt").write_bytes(b"\x80\x02 no pickle")
    for said, quoted in (
        ("Weights only load failed. Version 2.6 " + "word " * 99, "it is cut short, or bytes of it have changed"),
        ("No memory is left. More words", "No memory is left"),
        ("word " * 99, "RuntimeError"),
    ):

        def failing(*_, told=said, **__):
            raise RuntimeError(told)

        monkeypatch.setattr(torch, "load", failing)
        with pytest.raises(UserError, match=rf"is damaged \({quoted}\): restore or delete it"):
            read_checkpoint(str(tmp_path / "file.pt"))


@pytest.mark.parametrize("word", ["scale=3", "features=8", "projection_seed=1", "autoencoder=x"])
def test_an_option_that_changes_nothing_in_an_autoencoder_is_refused(word, tmp_path):
    save_file(state_of(published()), tmp_path / "model.safetensors")
    option = word.partition("=")[0]
    with pytest.raises(UserError, match=f"leave out {option}=: the autoencoder in .* takes set=, encoder=, decoder="):
        imported(tmp_path, tmp_path / "ours", word)
    with pytest.raises(UserError, match="leave out temperature=: .* has no codebooks"):
        imported(tmp_path, tmp_path / "ours", "temperature=0.1")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("count, words", [(7, "7"), (12_345, "12,345"), (1_234_567, "1.2 million")])
def test_a_small_count_of_numbers_is_said_as_it_is(count, words):
    assert in_words(count) == words


def test_names_in_a_line_end_with_how_many_more_there_are_unless_there_are_none():
    assert few(list("abcd")) == "a, b, c, d" and few(list("abcdef")) == "a, b, c, d and 2 more"


def test_the_transformers_of_a_checkpoint_are_known_by_their_width_and_depth(tmp_path):
    from imports.autoencoder import vit_name
    from imports.checkpoint import Checkpoint

    def named(width, depth, *more):
        names = [f"encoder.model.blocks.{number}.norm1.weight" for number in range(depth)] + list(more)
        tensors = dict.fromkeys(names, torch.zeros(1)) | {"encoder.model.pos_embed": torch.zeros(1, 257, width)}
        return vit_name(Checkpoint(tmp_path, tensors, "", {}), "encoder")

    scale = "encoder.model.blocks.0.ls1.gamma"
    assert named(1024, 24, scale) == "vit_large_patch14_dinov2"
    assert named(768, 12, scale, "encoder.model.reg_token") == "vit_base_patch14_reg4_dinov2"
    assert named(384, 12) == "vit_small_patch16_224"
    with pytest.raises(UserError, match="write encoder=<its name in timm>"):
        named(100, 3)
