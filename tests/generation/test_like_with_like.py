"""At what size and crop samples and reference are compared, and what is said of metrics that mean little."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flowprior.data.embedded import EMBEDDED, digit_images
from flowprior.data.image_sizes import ImageSize
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet, StreamingMoments, evaluate_generation, frechet_distance
from flowprior.metrics.digit_networks import weights_file
from flowprior.metrics.registry import EXTRACTORS, foreign_images
from flowprior.notes import forget_notes
from flowprior.run.config import build_config
from flowprior.run.files import write_json
from generation import evaluate
from generation.config import SampleConfig
from generation.generate import samples_file
from generation.reference import check_counts, open_reference
from generation.samples import find_samples
from image_sets import Picture, write_tar, write_zip
from mar.config import MARStageConfig

DIGITS = Extractor("digits")
COUNT = 30


def pictures(side: int) -> torch.Tensor:
    """Digits with fine detail, which no resize keeps: uint8 ``(30, 3, side, side)``."""
    images = torch.nn.functional.interpolate(digit_images(32)[0][:COUNT].float(), side, mode="nearest")
    checks = (torch.arange(side).view(-1, 1) + torch.arange(side)) % 2 * 120 - 60  # (side, side)
    return (images + checks).clamp(0, 255).to(torch.uint8)


def archive(file, images, **others):
    np.savez(file, arr_0=images.permute(0, 2, 3, 1).numpy(), **others)
    return file


def folder(path, images):
    path.mkdir(parents=True)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(path / f"{number:03d}.png")
    return path


def packed(file, images):
    """A tar or zip file of the pictures of a folder."""
    kept = folder(file.with_name(f"{file.name} unpacked"), images)
    members = [(picture.name, picture.read_bytes()) for picture in sorted(kept.iterdir())]
    return (
        write_tar(file, members)
        if file.suffix == ".tar"
        else write_zip(file, [Picture(n[:-4], ".", data) for n, data in members])
    )


def statistics(file, images, crop=None):
    moments = StreamingMoments()
    moments.update(DIGITS(images).fid)
    moments.statistics("digits", crop).save(file)
    return file


@pytest.fixture
def measured(tmp_path):
    """A function from samples, reference and options to the result that evaluation.json holds."""

    def measure(samples, reference, metrics=("fid",), **sections) -> dict:
        values = {
            "run_dir": str(tmp_path / "run"),
            "sample": {"count": COUNT, "cfg": [1]},
            "evaluate": {
                "extractor": "digits",
                "samples": str(samples),
                "reference": str(reference),
                "metrics": metrics,
            },
        }
        config = build_config(MARStageConfig, values | sections)
        found = find_samples(config)
        compared = open_reference(config, DIGITS, found.size)
        made_by = evaluate.protocol(config, DIGITS, found, compared)
        evaluate.warn(config, found, compared)
        return evaluate.evaluate(config, DIGITS, found, compared) | {"protocol": json.loads(json.dumps(made_by))}

    return measure


def fid_of(result: dict) -> float:
    [metrics] = result["metrics"].values()
    return metrics["fid"]


@pytest.fixture
def forms(tmp_path):
    """The same pictures of 64 px in every form, and of 32 px."""
    large, small = pictures(64), pictures(32)
    return {
        "npz": archive(tmp_path / "large.npz", large),
        "folder": folder(tmp_path / "large", large),
        "tar": packed(tmp_path / "large.tar", large),
        "zip": packed(tmp_path / "large.zip", large),
        "statistics": statistics(tmp_path / "stats64.npz", large, "centre 64"),
        "unstated": statistics(tmp_path / "unstated.npz", large),
        "small npz": archive(tmp_path / "small.npz", small),
        "small folder": folder(tmp_path / "small", small),
        "small statistics": statistics(tmp_path / "stats32.npz", small, "centre 32"),
    }


@pytest.mark.parametrize("samples", ["npz", "folder", "tar"])
@pytest.mark.parametrize("reference", ["npz", "folder", "zip", "statistics", "unstated"])
def test_pictures_of_64_pixels_are_compared_with_themselves_at_64_whatever_data_size_is(
    measured, forms, samples, reference, capsys
):
    result = measured(forms[samples], forms[reference])
    assert fid_of(result) == pytest.approx(0, abs=1e-4)
    stated, seen = result["protocol"]["reference"], result["protocol"]["samples"][forms[samples].name]
    assert (seen["size"], seen["crop"]) == ("64 x 64", "none")
    crop = {"statistics": "centre", "unstated": "not stated"}.get(reference, "none")
    assert (stated["size"], stated["crop"]) == ("not stated" if reference == "unstated" else "64 x 64", crop)
    assert ("does not state the size and crop" in capsys.readouterr().err) == (reference == "unstated")


@pytest.mark.parametrize("samples", ["npz", "folder"])
@pytest.mark.parametrize("reference", ["small npz", "small folder", "small statistics"])
def test_a_reference_of_another_size_is_refused(measured, forms, samples, reference):
    with pytest.raises(UserError, match="64 x 64") as caught:
        measured(forms[samples], forms[reference])
    assert "python fid_stats/compute.py " in str(
        caught.value
    ) and "--extractor digits --size 64 --out stats.npz" in str(caught.value)
    assert all(str(forms[name]) in str(caught.value) for name in (samples, reference)) and "\n" not in str(caught.value)


def test_data_of_another_size_are_refused_for_a_folder_and_for_the_runs_own_sets_too(measured, forms, tmp_path):
    for samples in (forms["npz"], forms["folder"]):
        with pytest.raises(UserError, match="are 64 x 64 and the data .* cropped to 32: write data.size=64"):
            measured(samples, "data")
    own = build_config(MARStageConfig, {"run_dir": str(tmp_path / "run"), "sample": {"cfg": [1]}})
    with pytest.raises(UserError, match="no set of samples at .*cfg_1.npz: run `python -m mar generate run_dir=.*run`"):
        find_samples(own)
    samples_file(own, 1).parent.mkdir(parents=True)
    archive(samples_file(own, 1), pictures(64))
    with pytest.raises(UserError, match="run/mar/samples are 64 x 64 and the data"):
        open_reference(own, DIGITS, find_samples(own).size)


def test_photographs_are_cropped_to_the_samples_size_and_it_is_said(measured, forms, tmp_path, capsys):
    large = pictures(64)
    mixed = folder(tmp_path / "mixed", torch.nn.functional.pad(large[:20].float(), (10, 10)).to(torch.uint8))
    folder(tmp_path / "others", torch.nn.functional.pad(large[20:25].float(), (0, 0, 6, 6)).to(torch.uint8))
    (tmp_path / "others").rename(mixed / "others")
    for file in mixed.glob("*.png"):
        file.rename(mixed / "others" / f"wide{file.name}")
    result = measured(forms["npz"], mixed)
    expected = ImageSet(torch.cat([large[20:25], large[:20]]), DIGITS).statistics()
    assert fid_of(result) == pytest.approx(
        frechet_distance(ImageSet(large, DIGITS).statistics(), expected), rel=1e-5, abs=1e-5
    )
    assert result["protocol"]["reference"]["crop"] == "centre"
    said = capsys.readouterr().err
    assert "are cropped centrally to the samples' 64 x 64" in said and "enlarged" not in said
    Image.new("RGB", (50, 30)).save(mixed / "others" / "low.png")
    measured(forms["npz"], mixed)
    assert "1 of 26 are smaller and are enlarged" in capsys.readouterr().err


def test_samples_of_several_sizes_and_folders_of_oblong_ones_are_refused(measured, forms, tmp_path):
    Image.new("RGB", (40, 48)).save(forms["folder"] / "odd.png")
    with pytest.raises(UserError, match=r"of 2 sizes \(30 of 64 x 64, 1 of 40 x 48\)"):
        measured(forms["folder"], forms["npz"])
    oblong = torch.nn.functional.pad(pictures(32).float(), (4, 4)).to(torch.uint8)
    with pytest.raises(UserError, match="are 40 x 32, and images outside of an .npz are read"):
        measured(folder(tmp_path / "oblong", oblong), forms["npz"])
    both = [archive(tmp_path / f"oblong{n}.npz", oblong) for n in range(2)]
    assert fid_of(measured(*both)) == pytest.approx(0, abs=1e-4)
    with pytest.raises(UserError, match="are 40 x 32"):
        measured(both[0], "data")


def test_moments_beside_images_that_state_another_size_are_refused(measured, forms, tmp_path):
    with np.load(forms["small statistics"]) as arrays:
        archive(tmp_path / "both.npz", pictures(64), **arrays)
    with pytest.raises(UserError, match="cropped 'centre 32' and .* are 64 x 64"):
        measured(forms["npz"], tmp_path / "both.npz")


def test_the_library_refuses_sets_and_statistics_of_different_sizes_streams_included():
    large, small = pictures(64), pictures(32)
    stream = ImageSet(lambda: small.split(8), DIGITS)
    for reference in (ImageSet(small, DIGITS), stream, ImageSet(small, DIGITS).statistics()):
        if not isinstance(reference, ImageSet):
            reference = type(reference)(reference.mu, reference.sigma, COUNT, "digits", crop="centre 32")
        with pytest.raises(UserError, match="generated images are 64 x 64 and the reference's 32 x 32"):
            evaluate_generation(ImageSet(large, DIGITS), reference, ["fid"])
    one, other = (
        type(reference)(reference.mu, reference.sigma, COUNT, "digits", crop=crop)
        for crop in ("centre 32", "centre 64")
    )
    with pytest.raises(UserError, match="'centre 32' do not compare with 'centre 64'"):
        frechet_distance(one, other)
    with pytest.raises(ValueError, match="images of one size"):
        ImageSet(lambda: [large, small], DIGITS).statistics()


@pytest.mark.parametrize("name", [name if name != "timm" else "timm:resnet18" for name in EXTRACTORS])
@pytest.mark.parametrize("source", ["digits", "mnist", "files", ""])
def test_only_an_embedded_extractor_on_images_of_another_source_is_warned_of(name, source):
    told = foreign_images(name, source)
    assert bool(told) == (name in EMBEDDED and name != source)
    if told:
        assert EMBEDDED[name].shown in told
        assert told.endswith(f"write evaluate.extractor={source if source in EMBEDDED else 'inception'}")


def test_what_the_extractor_was_trained_on_is_said_and_stated(measured, forms, capsys):
    result = measured(forms["npz"], forms["folder"])
    said = capsys.readouterr().err
    assert "was trained on scikit-learn's 1,797 handwritten digits" in said
    assert f"if {forms['folder']} or {forms['npz']} does not hold such images, metrics by it mean little" in said
    assert result["protocol"]["extractor"]["trained on"] == "scikit-learn's 1,797 handwritten digits"
    forget_notes()
    small = measured(forms["small npz"], "data")  # digits, so that nothing is foreign
    assert "was trained on" not in capsys.readouterr().err and small["protocol"]["reference"]["crop"] == "centre"


def test_weights_of_ones_own_are_not_said_to_be_trained_on_anything(measured, forms, capsys):
    weights = {"weights": str(weights_file("digits", "extractor"))}
    options = {
        "extractor": "digits",
        "samples": str(forms["npz"]),
        "reference": str(forms["folder"]),
        "metrics": ["fid"],
    }
    config = build_config(MARStageConfig, {"sample": {"count": COUNT}, "evaluate": options | weights})
    extractor = Extractor("digits", weights_path=config.evaluate.weights)
    samples = find_samples(config)
    compared = open_reference(config, extractor, samples.size)
    capsys.readouterr()
    evaluate.warn(config, samples, compared)
    assert capsys.readouterr().err == ""
    assert "not stated" in evaluate.protocol(config, extractor, samples, compared)["extractor"]["trained on"]


@pytest.fixture
def own_sets(tmp_path):
    """A function from class names and labels to the metrics of a run's own set of real digits."""

    def measure(names, labels, metrics=("recognised", "fid")) -> dict:
        config = build_config(
            MARStageConfig,
            {
                "run_dir": str(tmp_path),
                "sample": {"count": COUNT, "cfg": [1]},
                "evaluate": {"extractor": "digits", "metrics": metrics},
            },
        )
        write_json(tmp_path / "mar" / "generator" / "config.json", {"about": {"class_names": names}})
        samples_file(config, 1).parent.mkdir(exist_ok=True)
        archive(samples_file(config, 1), digit_images(32)[0][:COUNT], labels=labels)
        samples = find_samples(config)
        return evaluate.evaluate(config, DIGITS, samples, open_reference(config, DIGITS, samples.size))

    return measure


def test_the_judge_of_digits_is_not_asked_about_cats_and_reads_the_digit_in_a_classs_name(own_sets):
    labels = digit_images(32)[1][:COUNT].numpy()
    right = own_sets([str(n) for n in range(10)], labels)["metrics"]["1"]["recognised"]
    turned = own_sets([str(9 - n) for n in range(10)], 9 - labels)["metrics"]["1"]["recognised"]
    assert right == turned > 0.95
    result = own_sets(["cat", "dog"], labels % 2)
    assert result["metrics"]["1"]["recognised"] is None and result["metrics"]["1"]["fid"] > 0
    assert "knows the digits 0 to 9" in result["not_measured"]["1"]["recognised"] and result["best_cfg"] == "1"


def test_a_references_shares_are_compared_by_name(own_sets, tmp_path, capsys):
    labels = np.repeat([0, 1], [20, 10])
    own_sets(["bee", "ant"], labels, ["fid"])
    config = build_config(
        MARStageConfig,
        {"run_dir": str(tmp_path), "sample": {"count": COUNT, "cfg": [1]}, "evaluate": {"extractor": "digits"}},
    )
    samples = find_samples(config)
    data = open_reference(config, DIGITS, samples.size)
    for counts, differ in (((10, 20), False), ((20, 10), True)):  # ants and bees
        reference = replace(data, class_counts=counts, class_names=("ant", "bee"))
        capsys.readouterr()
        forget_notes()
        evaluate.warn(config, samples, reference)
        said = capsys.readouterr().err
        assert "names in another order (class 0 is bee here and ant there)" in said
        assert ("are in other shares" in said) == differ


def test_a_reference_of_other_data_than_the_generators_is_named(tmp_path):
    config = build_config(MARStageConfig, {"run_dir": str(tmp_path), "evaluate": {"extractor": "digits"}})
    data = open_reference(config, DIGITS, ImageSize(32, 32))
    for trained_on, said in ((data.identity["images"], ""), ("0" * 16, "1797 other images than"), (None, "")):
        write_json(tmp_path / "mar" / "generator" / "config.json", {"about": {"images": trained_on}})
        told = evaluate.says_of_data(config, data)
        assert said in told and bool(told) == bool(said)


def test_a_figure_that_is_not_a_number_is_null_with_its_reason(own_sets, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "evaluate_generation", lambda *_: {"fid": float("nan"), "precision": 0.5})
    result = own_sets([], digit_images(32)[1][:COUNT].numpy(), ["fid", "precision_recall"])
    assert result["metrics"]["1"] == {"fid": None, "precision": 0.5}
    assert result["not_measured"] == {"1": {"fid": "its value is nan"}} and "best_cfg" not in result
    write_json(tmp_path / "x.json", result)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == result


def test_an_fid_of_one_image_is_refused_before_anything_is_measured(tmp_path):
    config = MARStageConfig(sample=SampleConfig(count=1))
    for count in (1, 30):
        with pytest.raises(UserError, match="one image has no covariance: sample.count is 1"):
            check_counts(config, count)
    with pytest.raises(UserError, match="the reference holds 1, give 2"):
        check_counts(MARStageConfig(), 1)
