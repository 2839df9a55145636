"""FDr: several extractors in one number."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import (
    Extractor,
    ImageSet,
    Statistics,
    StreamingMoments,
    evaluate_generation,
    frechet_distance,
)
from flowprior.metrics.fdr import baseline_distance, mean_ratio
from flowprior.run.config import build_config
from flowprior.run.files import write_json
from generation.evaluate import main as evaluate_command
from generation.fdr import SeveralExtractors, _same_images, likeness
from generation.generate import samples_file
from generation.reference import open_reference
from generation.samples import find_samples
from mar.config import MARStageConfig

SETS = ("samples", "reference", "baseline")


@pytest.fixture
def place(tmp_path):
    """Three sets of 24 images, and two files of weights of one small model."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(SETS):
        np.savez(tmp_path / f"{name}.npz", arr_0=draw.integers(0, 256 - 30 * number, (24, 32, 32, 3), dtype=np.uint8))
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / f"{seed}.pth")
    return tmp_path


def config_in(place, seed=0, **changes):
    fdr = {"extractors": ["digits", f"timm:test_resnet@32={place}/{seed}.pth"], "baseline": f"{place}/baseline.npz"}
    evaluate = {"extractor": "digits", **{name: f"{place}/{name}.npz" for name in SETS[:2]}, "metrics": ["fid"]}
    evaluate["fdr"] = fdr | changes.pop("fdr", {})
    return build_config(
        MARStageConfig, {"run_dir": str(place / "run"), "sample": {"count": 24}, "evaluate": evaluate | changes}
    )


def several_of(config):
    extractor, samples = config.evaluate.open_extractor(), find_samples(config)
    reference = open_reference(config, extractor, samples.size)
    return SeveralExtractors(config, reference, samples.size, World())


def images_in(place, name):
    return ImageSet.of_archive(place / f"{name}.npz", Extractor("digits"))


def test_the_mean_ratio_is_one_of_the_baseline_itself():
    assert mean_ratio({"a": 3.0, "b": 10.0}, {"a": 2.0, "b": 40.0}) == pytest.approx((1.5 + 0.25) / 2)
    assert mean_ratio({"a": 2.0, "b": 40.0}, {"a": 2.0, "b": 40.0}) == 1


def moments_of(features):
    moments = StreamingMoments()
    for batch in features.split(7):
        moments.update(batch)
    return moments.statistics()


@pytest.mark.parametrize(("count", "dim"), [(24, 64), (200, 64), (40, 300)])
def test_a_baseline_of_the_references_own_images_in_another_order_is_refused_at_any_scale(count, dim):
    draw = np.random.default_rng(count)
    features = torch.from_numpy(draw.normal(3, draw.uniform(0, 2, dim), (count, dim)))
    for scale in (1e-3, 1, 1e3):
        reference = moments_of(scale * features)
        for _ in range(4):  # rounding has either sign
            reordered = moments_of(scale * features[draw.permutation(count)])
            with pytest.raises(UserError, match="digits: give images that are not the reference's own"):
                baseline_distance(reordered, reference, "digits")
        moved = moments_of(scale * (features + 0.03))
        assert baseline_distance(moved, reference, "digits") == frechet_distance(moved, reference)


@pytest.mark.parametrize("name", ["copy", "reordered"])
def test_an_archive_of_the_references_images_is_no_baseline(place, name):
    with np.load(place / "reference.npz") as archive:
        images = archive["arr_0"]
    np.savez(place / f"{name}.npz", arr_0=images if name == "copy" else images[::-1])
    with pytest.raises(UserError, match="not the reference's own"):
        several_of(config_in(place, fdr={"baseline": f"{place}/{name}.npz"})).measure(images_in(place, "samples"))


def test_the_reference_itself_is_no_baseline_by_another_crop_or_with_moments(place):
    several = several_of(config_in(place))
    one = several.reference
    for changes in ({"crop": "centre"}, {"moments": "of the file"}):
        assert _same_images(one, replace(one, identity=one.identity | changes))
    assert not _same_images(one, several.baseline)


def test_each_extractors_figures_are_those_of_it_alone_and_the_mean_is_of_their_ratios(place):
    several = several_of(config_in(place, fdr={"precision_recall": True}))
    found, baselines = several.measure(images_in(place, "samples")), several.baselines
    alone = {}
    for extractor in (Extractor("digits"), Extractor("timm:test_resnet@32", weights_path=place / "0.pth")):
        sets = {name: ImageSet.of_archive(place / f"{name}.npz", extractor) for name in SETS}
        metrics = evaluate_generation(sets["samples"], sets["reference"], ["fid", "precision_recall"])
        baseline = evaluate_generation(sets["baseline"], sets["reference"], ["fid"])["fid"]
        assert found[f"fd {extractor.name}"] == pytest.approx(metrics["fid"], rel=1e-6)
        assert baselines[extractor.name] == pytest.approx(baseline, rel=1e-6)
        assert found[f"recall {extractor.name}"] == metrics["recall"]
        assert found[f"precision {extractor.name}"] == metrics["precision"]
        alone[extractor.name] = metrics["fid"] / baseline
    assert found["fdr2"] == pytest.approx(np.mean(list(alone.values())), rel=1e-6)
    assert several.measure(images_in(place, "baseline"))["fdr2"] == pytest.approx(1, rel=1e-6)


def test_kept_moments_are_those_of_the_weights_that_made_them(place):
    first = several_of(config_in(place)).measure(images_in(place, "samples"))
    kept = Statistics.load(place / "run" / "mar" / "fdr" / "reference_timm_test_resnet@32.npz")
    assert kept.weights == Extractor("timm:test_resnet@32", weights_path=place / "0.pth").fingerprint
    again = several_of(config_in(place))
    again.reference.images._images = again.baseline.images._images = lambda: pytest.fail("read again")
    again.reference.images._part = again.baseline.images._part = lambda *_: pytest.fail("read again")
    assert again.measure(images_in(place, "samples")) == first
    other = several_of(config_in(place, seed=1)).measure(images_in(place, "samples"))
    assert other["fd digits"] == first["fd digits"] and other["fdr2"] != first["fdr2"]


def test_all_extractors_look_at_the_same_images_though_the_file_has_moments_of_one(place):
    expected = several_of(config_in(place)).measure(images_in(place, "samples"))
    with np.load(place / "reference.npz") as archive:
        images = archive["arr_0"]
    np.savez(place / "reference.npz", arr_0=images, mu=np.zeros(64), sigma=np.eye(64), extractor=np.str_("digits"))
    config = config_in(place)
    reference = open_reference(config, config.evaluate.open_extractor(), find_samples(config).size)
    assert reference.images.statistics().mu.max() == 0
    several = several_of(config)
    assert several.measure(images_in(place, "samples")) == pytest.approx(expected)
    assert several.reference.identity["moments"] == "of its images"


@pytest.mark.parametrize("order", [1, -1])
def test_moments_beside_the_baselines_images_are_skipped_in_any_order_of_extractors(place, order):
    expected = several_of(config_in(place)).measure(images_in(place, "samples"))
    with np.load(place / "baseline.npz") as archive:
        images = archive["arr_0"]
    np.savez(place / "baseline.npz", arr_0=images, mu=np.zeros(9), sigma=np.eye(9), extractor=np.str_("inception"))
    names = ["digits", f"timm:test_resnet@32={place}/0.pth"][::order]
    found = several_of(config_in(place, fdr={"extractors": names})).measure(images_in(place, "samples"))
    assert found == pytest.approx(expected)


def test_the_protocol_names_every_extractor_and_the_baseline(place):
    told = json.loads(json.dumps(several_of(config_in(place)).protocol()))
    digits, resnet = told["extractors"]
    assert digits["name"] == "digits" and resnet["name"] == "timm:test_resnet@32" and len(resnet["weights"]) == 16
    assert resnet["input"].startswith("32 x 32") and told["baseline"]["images"] == "baseline.npz"


def test_mistakes_are_one_line(place):
    Statistics(np.zeros(64), np.eye(64), 24, "digits", crop="centre 32").save(place / "moments.npz")
    np.savez(place / "one.npz", arr_0=np.zeros((1, 32, 32, 3), np.uint8))
    (place / "cut.npz").write_bytes((place / "one.npz").read_bytes()[:-10])
    twice = [f"timm:test_resnet={place}/{seed}.pth" for seed in (0, 1)]
    for changes, words in (
        ({"fdr": {"baseline": ""}}, "extractors goes with fdr.baseline"),
        ({"fdr": {"extractors": []}}, "baseline goes with fdr.extractors"),
        ({"fdr": {"extractors": twice}}, "holds timm:test_resnet twice"),
        ({"fdr": {"extractors": ["vgg"]}}, "no feature extractor 'vgg'"),
        ({"reference": f"{place}/moments.npz"}, "evaluate.reference holds moments only"),
        ({"fdr": {"baseline": f"{place}/moments.npz"}}, "evaluate.fdr.baseline holds moments only"),
        ({"fdr": {"baseline": f"{place}/cut.npz"}}, "the baseline of FDr .*cut.npz cannot be read .it is cut short"),
        ({"fdr": {"baseline": f"{place}/reference.npz"}}, "is the reference itself"),
        ({"fdr": {"baseline": f"{place}/gone.npz"}}, "there is no baseline of FDr at .*gone.npz: save real images"),
        ({"fdr": {"baseline": f"{place}/one.npz"}}, "one.npz, holds 1 image, which has no covariance"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            several_of(config_in(place, **changes)).measure(images_in(place, "samples"))
        assert "\n" not in str(caught.value)


def test_moments_of_other_weights_or_of_nobody_are_no_reference_of_a_timm_model(place):
    name = "timm:test_resnet@32"
    extractor = Extractor(name, weights_path=place / "0.pth")
    options = {"extractor": "timm", "reference": f"{place}/m.npz", "fdr": {"extractors": [], "baseline": ""}}
    config = config_in(place, **options, timm={"model": "test_resnet", "size": 32, "weights": f"{place}/0.pth"})
    size = find_samples(config).size
    for stated, words in (({"extractor": name, "weights": "0" * 16}, "other weights"), ({}, "do not state")):
        Statistics(np.zeros(96), np.eye(96), 24, crop="centre 32", **stated).save(place / "m.npz")
        with pytest.raises(UserError, match=words):
            open_reference(config, extractor, size)
    fitting = {"extractor": name, "weights": extractor.fingerprint}
    Statistics(np.zeros(96), np.eye(96), 24, crop="centre 32", **fitting).save(place / "m.npz")
    assert open_reference(config, extractor, size).images.weights == extractor.fingerprint


def test_a_baseline_of_fewer_images_than_the_samples_is_named(place, capfd):
    with np.load(place / "baseline.npz") as archive:
        np.savez(place / "few.npz", arr_0=archive["arr_0"][:5])
    several_of(config_in(place, fdr={"baseline": f"{place}/few.npz"}))
    assert "few.npz, has 5 images and each set of samples 24: fewer images lie farther" in capfd.readouterr().err
    several_of(config_in(place))
    assert "fewer images" not in capfd.readouterr().err


def test_samples_that_are_the_baseline_are_said_to_be(place):
    several = several_of(config_in(place))
    assert "made of these very samples" in likeness(several.measure(images_in(place, "baseline")), several.baselines)
    assert likeness(several.measure(images_in(place, "samples")), several.baselines) == ""
    assert likeness({"fid": 1.0}, {}) == ""


def test_further_guidance_scales_are_added_and_another_protocol_replaces_what_was_there(tmp_path, capfd, monkeypatch):
    draw = np.random.default_rng(0)

    def run(scales, metrics="fid", **drawn):
        config = build_config(
            MARStageConfig,
            {"run_dir": str(tmp_path), "sample": {"count": 30, "cfg": scales}}
            | {"evaluate": {"extractor": "digits", "metrics": [metrics]}},
        )
        for cfg in scales:
            file = samples_file(config, cfg)
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                images = draw.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
                np.savez(file, arr_0=images, labels=np.arange(30) % 10)
            write_json(file.with_suffix(".json"), {"protocol": {"cfg": cfg, "seed": 0, "sampler": {}} | drawn})
        monkeypatch.setattr(MARStageConfig, "read", lambda *_: config)
        evaluate_command(MARStageConfig)
        return json.loads((tmp_path / "mar" / "evaluation.json").read_text()), capfd.readouterr()

    first, _ = run([1, 2])
    both, said = run([0.5, 2])
    assert list(both["metrics"]) == list(both["protocol"]["samples"]) == ["0.5", "1", "2"]
    assert both["metrics"].items() > first["metrics"].items()
    assert "keeps what it says of cfg 1, 2, which was measured by the same protocol" in said.err
    assert "complete" in run([1])[1].out
    (tmp_path / "mar" / "samples" / "cfg_0.5.npz").unlink()
    other, said = run([1], seed=1)
    assert list(other["metrics"]) == ["1"]
    assert "was measured with other samples, and is replaced; what it says of cfg 0.5, 2 is not measured" in said.err
    _, said = run([1], metrics="inception_score", seed=1)
    assert "was measured with other splits of the inception score and metrics, and is replaced" in said.err
