"""Pictures that are replaced under their names, at their lengths, are other pictures to every stage; what earlier versions wrote is named."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flowprior.data.images import ImageConfig, open_images
from flowprior.distributed import World
from flowprior.run.config import build_config
from flowprior.run.files import write_tensors
from generation.train import check_images
from mar import cache_latents, estimate_scale, evaluate, train_mar
from mar.config import MARStageConfig
from tokenizer import evaluate as evaluate_autoencoder
from tokenizer import train_ae
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig
from tokenizer.prior.targets.base import TargetContext, computed_once
from tokenizer.prior.targets.codebook import CodebookTarget
from tokenizer.prior.targets.extraction import ExtractionOptions, extracted_features

AE = [
    "regulariser.name=none", "model={image_size: 32, patch_size: 16, tokens: 4, channels: 3}", "model.encoder={width: 12, depth: 1, heads: 3}",
    "model.decoder={width: 12, depth: 1, heads: 3}", "train={steps: 2, global_batch: 4, eval_steps: 0, tensorboard: false}",
]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"

    def write(seed: int) -> None:
        for number in range(20):
            pixels = np.random.default_rng([seed, number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            file = folder / f"class{number % 2}" / f"{number:02d}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
            os.utime(file, (0, 0))

    write(0)
    return write


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command on the images; its exit code and what it said on stderr, besides how many images there are."""
    torch.manual_seed(0)
    vit = ViTConfig(width=12, depth=1, heads=3)
    Autoencoder(AutoencoderConfig(32, 16, 4, 3, False, vit, vit)).save(tmp_path / "ae" / "autoencoder")

    def remarks() -> str:
        said = capsys.readouterr().err.splitlines(keepends=True)
        return "".join(line for line in said if "whose labels come from" not in line)

    def call(module, *words: object) -> tuple[int, str]:
        own = ["data.source=folder", f"data.path={tmp_path / 'images'}", f"run_dir={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["command", *own, *map(str, words)])
        try:
            module.main()
        except SystemExit as stop:
            return stop.code, remarks()
        return 0, remarks()

    return call


def before(folder, size: int = 32) -> str:
    """The fingerprint that an earlier version gave the images."""
    return open_images(ImageConfig("folder", str(folder), size)).fingerprint().before


def test_a_latent_cache_of_other_pictures_is_refused(command, images, tmp_path):
    assert command(cache_latents)[0] == 0
    assert command(cache_latents) == (0, "")  # complete
    images(1)
    code, said = command(cache_latents)
    assert code == 2 and "was made from another input (images)" in said and str(tmp_path / "latents") in said


def test_training_on_cached_latents_refuses_other_images_at_another_place_and_takes_a_copy(command, images, tmp_path):
    small = ["train={steps: 2, global_batch: 4, eval_steps: 0, tensorboard: false}", "sample.preview_images=1"]
    assert [command(step)[0] for step in (cache_latents, estimate_scale)] == [0, 0]
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    shutil.copytree(tmp_path / "images", tmp_path / "others")
    (tmp_path / "others" / "class0" / "00.bmp").unlink()
    for complete in (False, True):
        code, said = command(train_mar, *small, f"data.path={tmp_path / 'others'}")
        assert (
            code == 2
            and f"from the images of {tmp_path / 'images'}, and those in {tmp_path / 'others'} are others" in said
        )
        assert complete or command(train_mar, *small)[0] == 0
    assert command(train_mar, *small, f"data.path={tmp_path / 'copy'}")[0] == 0
    code, said = command(train_mar, *small, f"data.path={tmp_path / 'gone'}")
    assert code == 0 and "training reads the latents of the images in" in said and "gone" in said
    assert command(train_mar, *small, "data.path=") == (0, "")


def test_a_latent_cache_of_an_earlier_version_is_accepted_with_a_line_and_left_as_it_is(command, images, tmp_path):
    assert command(cache_latents)[0] == 0
    manifest = tmp_path / "latents" / "manifest.json"
    kept = json.loads(manifest.read_text())
    kept["origin"]["images"] = before(tmp_path / "images")
    manifest.write_text(json.dumps(kept))
    code, said = command(cache_latents)
    assert code == 0 and str(manifest) in said and "earlier version" in said and said.count("\n") == 1
    assert json.loads(manifest.read_text()) == kept
    Image.new("RGBA", (32, 32), (9, 9, 9, 9)).save(tmp_path / "images" / "class0" / "00.bmp", "PNG")
    kept["origin"]["images"] = before(tmp_path / "images")
    manifest.write_text(json.dumps(kept))
    code, said = command(cache_latents)
    assert code == 2 and "00.bmp otherwise" in said


def test_an_autoencoder_of_other_pictures_is_not_gone_on_with(command, images, tmp_path):
    run = f"run_dir={tmp_path / 'run'}"
    assert command(train_ae, *AE, run)[0] == 0 and command(train_ae, *AE, run) == (0, "")
    file = tmp_path / "run" / "ae" / "inputs.json"
    written = file.read_text()
    file.write_text(json.dumps({"data": before(tmp_path / "images")}))
    code, said = command(train_ae, *AE, run)
    assert code == 0 and str(file) in said and "names and lengths" in said
    file.write_text(written)
    images(1)
    code, said = command(train_ae, *AE, run)
    assert code == 2 and "another data" in said


def test_held_out_pictures_that_are_replaced_are_measured_anew(command, images, tmp_path):
    (tmp_path / "images").rename(tmp_path / "held out #2")
    images(0)
    words = [
        *AE,
        f"run_dir={tmp_path / 'run'}",
        f"held_out={tmp_path / 'held out #2'}",
        "evaluate.metrics=[fidelity]",
        "evaluate.extractor=",
    ]
    assert command(train_ae, *words)[0] == 0
    file = tmp_path / "run" / "ae" / "evaluation.json"

    def measured() -> tuple[dict, int]:
        assert command(evaluate_autoencoder, *words)[0] == 0
        return json.loads(file.read_text())["metrics"], file.stat().st_mtime_ns

    first = measured()
    assert measured() == first
    for picture in (tmp_path / "held out #2").rglob("*.bmp"):
        Image.new("RGB", (32, 32), (9, 9, 9)).save(picture)
    assert measured()[0] != first[0]


def test_a_folder_with_a_number_sign_is_not_the_folder_before_it(command, images, tmp_path):
    shutil.copytree(tmp_path / "images", tmp_path / "images #2")
    for file in sorted((tmp_path / "images #2").rglob("*.bmp"))[::2]:
        file.unlink()
    assert command(cache_latents, f"data.path={tmp_path / 'images #2'}")[0] == 0
    assert json.loads((tmp_path / "latents" / "manifest.json").read_text())["count"] == 10


def test_an_evaluation_of_other_pictures_is_made_anew(command, images, tmp_path):
    words = ["sample.count=20", "evaluate={extractor: digits, metrics: [fid], half_half_splits: 0}"]
    theirs = tmp_path / "theirs"
    (tmp_path / "images").rename(theirs)
    images(2)
    words.append(f"evaluate.samples={theirs}")

    def fid() -> float:
        assert command(evaluate, *words)[0] == 0
        return json.loads((tmp_path / "mar" / "evaluation_theirs.json").read_text())["metrics"]["theirs"]["fid"]

    first = fid()
    written = (tmp_path / "mar" / "evaluation_theirs.json").stat().st_mtime_ns
    assert fid() == first and (tmp_path / "mar" / "evaluation_theirs.json").stat().st_mtime_ns == written
    for file in theirs.rglob("*.bmp"):
        Image.new("RGB", (32, 32), (int(file.stem), 0, 0)).save(file)
    assert fid() > first + 1
    images(3)  # the reference
    assert fid() != first


def target_context(tmp_path) -> TargetContext:
    return TargetContext(0, tmp_path / "run", World(), ImageConfig("folder", str(tmp_path / "images"), 16))


def test_a_feature_table_of_other_pictures_is_made_anew_and_an_earlier_versions_is_kept(images, tmp_path, capsys):
    context, made = target_context(tmp_path), []

    def mean_colours(batch):
        made.append(len(batch))
        return batch.float().mean((2, 3)).unsqueeze(1)

    def features():
        source = open_images(context.data)
        return extracted_features(
            context, "colours", "mean", source, ExtractionOptions(), lambda: mean_colours
        ).features

    first = features().clone()
    made.clear()
    assert torch.equal(features(), first) and not made
    record = tmp_path / "run" / "target_features.json"
    now, old = open_images(context.data).fingerprint(), before(tmp_path / "images", 16)
    written = record.read_text()
    record.write_text(written.replace(now, old))
    capsys.readouterr()
    assert torch.equal(features(), first) and not made and "earlier version" in capsys.readouterr().err
    record.write_text(written)
    images(1)
    assert not torch.equal(features(), first) and sum(made) >= 20


def test_a_codebook_of_other_pictures_is_made_anew(images, tmp_path):
    context = target_context(tmp_path)
    target = CodebookTarget(of="patches", clusters=4)
    first = target.load(context).features
    assert torch.equal(target.load(context).features, first)
    images(1)
    assert not torch.equal(target.load(context).features, first)


def test_a_computed_target_of_an_earlier_version_is_kept_with_a_line(images, tmp_path, capsys):
    context = target_context(tmp_path)
    now = open_images(context.data).fingerprint()

    def make(recipe):
        return computed_once(context, recipe, lambda: pytest.fail("it is there"), now)

    about = {"name": "t", "made_from": f"{('k', f'patches {now.before}')!r} seed 0", "rows_per_sample": "1"}
    write_tensors(tmp_path / "run" / "target.safetensors", {"features": torch.ones(5, 2)}, about)
    assert make(("k", f"patches {now}")).features.shape == (5, 2)
    assert "earlier version" in capsys.readouterr().err


class BesideANodeWithoutImages(World):
    """The first of two processes; both must gather as often."""

    def __init__(self):
        super().__init__()
        self.others = iter([False, "there are no images there"])

    def all_gather(self, value):
        return [value, next(self.others)]


def test_where_one_node_of_two_has_the_images_neither_compares_them_and_the_first_says_so(images, tmp_path, capsys):
    data = {"source": "files", "path": str(tmp_path / "images")}
    config = build_config(MARStageConfig, {"run_dir": str(tmp_path), "data": data})
    for place in ("/elsewhere", config.data.place):
        cache, world = (
            SimpleNamespace(manifest={"place": place, "origin": {"images": "others"}}),
            BesideANodeWithoutImages(),
        )
        check_images(config, cache, world)
        assert list(world.others) == [] and "none of data.path (there are no images there)" in capsys.readouterr().err
