"""Whether the images that an autoencoder is measured on are those that it was trained on: every figure says which."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from flowprior.data.images import open_images
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.run.files import read_json
from flowprior.run.run_folder import RunFolder
from tokenizer import evaluate, train_ae


def config(run, **options) -> train_ae.AEConfig:
    vit = {"width": 12, "depth": 1, "heads": 3}
    small = {
        "run_dir": str(run),
        "data": {"size": 16},
        "regulariser": {"name": "none"},
        "monitor": {"images": 16, "picture_images": 2},
        "evaluate": {"metrics": ["fidelity"]},
        "model": {"image_size": 16, "patch_size": 8, "tokens": 2, "channels": 4, "encoder": vit, "decoder": vit},
        "train": {"steps": 1, "global_batch": 4, "eval_steps": 0, "tensorboard": False},
    }
    data = small["data"] | options.pop("data", {})
    return build_config(train_ae.AEConfig, small | {"data": data} | options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("training", "others"):
        (root / name).mkdir()
        for number in range(5):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "link").symlink_to(root / "training")
    shutil.copytree(root / "others", root / "mixed")
    for number in (1, 3):
        shutil.copy(root / "training" / f"{number}.png", root / "mixed" / f"copy{number}.png")
    return root


CASES = {
    "the digits": ({}, {}, "training"),
    "the digits' other part": ({"subset": "train"}, {}, "held-out"),
    "a folder": ({"source": "folder", "path": "{root}/training"}, {}, "training"),
    "another folder": ({"source": "folder", "path": "{root}/training"}, {"held_out": "{root}/others"}, "held-out"),
    "a folder with copies": ({"source": "folder", "path": "{root}/training"}, {"held_out": "{root}/mixed"}, "held-out"),
    "the same folder": ({"source": "folder", "path": "{root}/training"}, {"held_out": "{root}/training/"}, "training"),
    "a link to it": ({"source": "folder", "path": "{root}/training"}, {"held_out": "{root}/link"}, "training"),
}


@pytest.mark.parametrize("case", CASES)
def test_training_and_evaluation_say_whether_their_figures_are_of_training_images(case, folders, tmp_path, capsys):
    data, options, kind = json.loads(json.dumps(CASES[case]).replace("{root}", str(folders)))
    chosen, folder = config(tmp_path, data=data, **options), RunFolder(tmp_path, "ae")
    images, measured = open_images(chosen.data), open_images(chosen.held_out_data())
    folder.open(chosen, World())
    train_ae.train(chosen, folder, World(), images, measured, None)
    said = capsys.readouterr().out
    count = min(16, len(measured))
    assert f"on {count} {kind} images" in said
    evaluate.evaluate(chosen, folder.path, train_ae.Autoencoder.load(folder.path / "autoencoder"))
    noted = capsys.readouterr().err
    assert ("2 of the 7 held-out images looked at are training images" in noted) == (case == "a folder with copies")
    assert (f"note: measured on the {len(measured)} training images" in noted) == (kind == "training")
    protocol = json.loads((folder.path / "evaluation.json").read_text())["protocol"]
    assert protocol["held_out"] is (kind == "held-out") and protocol["count"] == len(measured)


@pytest.mark.parametrize("place", [{"data": {"path": "{root}/others"}}, {"held_out": "{root}/others"}])
def test_nothing_is_said_of_the_training_images_of_an_autoencoder_that_was_imported(place, folders, tmp_path, capsys):
    options = json.loads(json.dumps(place).replace("{root}", str(folders)))
    chosen = config(tmp_path, data={"source": "folder"} | options.pop("data", {}), **options)
    imported = train_ae.Autoencoder(chosen.model, {"imported": {"file": "other.safetensors"}})
    (tmp_path / "ae").mkdir()
    evaluate.evaluate(chosen, tmp_path / "ae", imported)
    assert "training images" not in capsys.readouterr().err
    protocol = json.loads((tmp_path / "ae" / "evaluation.json").read_text())["protocol"]
    assert protocol["held_out"] is None and protocol["count"] == 5


@pytest.mark.parametrize(
    "subset, features, name, said",
    [
        ("train", "digits", "reals", True),
        ("train", "mnist", "reals", False),
        ("train", "digits", "none", False),
        ("all", "digits", "reals", False),
    ],
)
def test_a_classifier_that_saw_the_held_out_digits_is_named(subset, features, name, said, tmp_path):
    options = {"features": {"source": "digits", "digits": {"of": features}}, "regulariser": {"name": name}}
    chosen = config(tmp_path, data={"subset": subset}, **options)
    told = chosen.says_of_held_out(open_images(chosen.held_out_data()))
    assert ("is trained on all images of digits, those held out among them" in told) == said


@pytest.mark.parametrize(
    "source, of, name, said",
    [
        ("mnist", "digits", "vavae", "a classifier of digits, and the images are others (data.source=mnist): write features.digits.of=mnist"),
        ("mnist", "mnist", "vavae", ""),
        ("mnist", "digits", "none", ""),
        ("digits", "digits", "reals", ""),
    ],
)  # fmt: skip
def test_features_of_a_classifier_of_other_images_are_named(source, of, name, said, tmp_path):
    options = {"features": {"source": "digits", "digits": {"of": of}}, "regulariser": {"name": name}}
    told = config(tmp_path, data={"source": source}, **options).says_of_features()
    assert told.endswith(said) and bool(told) == bool(said)


def test_a_run_is_made_from_the_files_of_weights_that_are_in_use(tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.pth" for name in ("features", "vgg")}
    for name, file in files.items():
        file.write_text(name)
    options = {
        "features": {"source": "timm", "timm": {"weights": str(files["features"])}},
        "loss": {"perceptual_weight": 0.1, "perceptual_weights": str(files["vgg"])},
    }
    inputs = []
    monkeypatch.setattr(train_ae, "train", lambda config, folder, *_: inputs.append(read_json(folder.inputs_file, "")))
    for name in ("none", "vavae"):
        chosen = config(tmp_path / name, regulariser={"name": name}, **options)
        monkeypatch.setattr(train_ae, "config_from_command_line", lambda *_, chosen=chosen, **__: chosen)
        train_ae.run_stage(type(chosen), train_ae.PRESETS, "")
    wanted = {"data", "file of LPIPS's weights"}
    assert [set(one) for one in inputs] == [wanted, wanted | {"file of the features' weights"}]
    (tmp_path / "vavae" / "ae" / "checkpoints" / "step_00000001").mkdir(parents=True)
    files["features"].write_text("others")
    with pytest.raises(UserError, match="another file of the features' weights"):
        train_ae.run_stage(type(chosen), train_ae.PRESETS, "")


def test_while_training_rfid_compares_the_few_images_with_their_own_originals(tmp_path, capsys):
    """A reference of all held-out images is of another number, and has no place there."""
    options = {"monitor": {"images": 16, "picture_images": 2, "metrics": ["rfid"]}}
    reference = {"evaluate": {"extractor": "digits", "metrics": ["rfid"], "reference": str(tmp_path / "nowhere.npz")}}
    chosen, folder = config(tmp_path, **options, **reference), RunFolder(tmp_path, "ae")
    images = open_images(chosen.data)
    folder.open(chosen, World())
    train_ae.train(chosen, folder, World(), images, images, None)
    said = capsys.readouterr().out
    assert folder.is_complete() and "PSNR" not in said and "autoencoder: " in said  # nor is there a PSNR to be said
    assert np.isfinite(json.loads((folder.path / "result.json").read_text())["rfid"])


def test_further_metrics_of_an_autoencoder_that_was_measured_are_measured(tmp_path, capsys):
    first, folder = config(tmp_path, evaluate={"extractor": "digits", "metrics": ["rfid"]}), RunFolder(tmp_path, "ae")
    images = open_images(first.data)
    folder.open(first, World())
    train_ae.train(first, folder, World(), images, images, None)
    autoencoder = train_ae.Autoencoder.load(folder.path / "autoencoder")
    evaluate.evaluate(first, folder.path, autoencoder)
    both = config(tmp_path, evaluate={"extractor": "digits", "metrics": ["rfid", "fidelity"]})
    evaluate.evaluate(both, folder.path, autoencoder)
    assert {"rfid", "psnr", "ssim"} <= json.loads((folder.path / "evaluation.json").read_text())["metrics"].keys()
    capsys.readouterr()
    evaluate.evaluate(both, folder.path, autoencoder)
    assert "complete" in capsys.readouterr().out


def test_weights_of_lpips_that_are_missing_are_said_before_training_with_what_does_without_them(tmp_path, capsys):
    loss = {"perceptual_weight": 0, "perceptual_weights": str(tmp_path / "nowhere.pth")}
    evaluated = {"metrics": ["fidelity", "lpips"], "extractor": ""}
    train_ae.note_missing_weights(config(tmp_path, loss=loss, evaluate=evaluated))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "the evaluation after training will stop: LPIPS needs" in said
        and "name the metrics without it, evaluate.metrics=" in said
    )
    assert "loss.perceptual_weight=0" not in said
