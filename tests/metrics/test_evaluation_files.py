"""What the evaluations of the stages write, and how the report and the table read it."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowprior.data.embedded import digit_images
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet, Statistics
from flowprior.metrics.digit_networks import weights_file
from flowprior.run.config import build_config
from flowprior.run.files import read_tensors, write_json, write_tensors
from generation import evaluate
from generation.generate import protocol, samples_file
from generation.labels import EQUAL
from generation.reference import open_reference
from generation.samples import find_samples
from mar.config import MARStageConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def config_with(tmp_path):
    """A function from options of the evaluation to a config whose samples are 40 real digits."""

    def make(**options) -> MARStageConfig:
        values = {
            "run_dir": str(tmp_path),
            "sample": {"count": 40, "cfg": [1]},
            "evaluate": {"extractor": "digits", **options},
        }
        config = build_config(MARStageConfig, values)
        file = samples_file(config, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        images, labels = digit_images(32)
        np.savez(file, arr_0=images[:40].permute(0, 2, 3, 1).numpy(), labels=labels[:40].numpy())
        write_json(file.with_suffix(".json"), {"protocol": {"seed": 0}})
        return config

    return make


def protocol_of(config: MARStageConfig) -> dict:
    extractor = Extractor(config.evaluate.extractor, weights_path=config.evaluate.weights or None)
    samples = find_samples(config)
    return evaluate.protocol(config, extractor, samples, open_reference(config, extractor, samples.size))


def metrics_of(config: MARStageConfig) -> dict:
    extractor = Extractor(config.evaluate.extractor)
    samples = find_samples(config)
    return evaluate.evaluate(config, extractor, samples, open_reference(config, extractor, samples.size))


def test_a_protocol_changes_with_the_extractors_weights_the_reference_and_the_metrics(config_with, tmp_path):
    weights = read_tensors(weights_file("digits", "extractor"), "weights")
    write_tensors(tmp_path / "w.safetensors", weights | {"head.bias": weights["head.bias"] + 1})
    statistics = [tmp_path / folder / "s.npz" for folder in "ab"]
    for count, file in zip((40, 50), statistics):
        ImageSet(digit_images(32)[0][:count], Extractor("digits")).statistics().save(file)
    options = [{}, {"weights": str(tmp_path / "w.safetensors")}, {"metrics": ["fid"]}, {"half_half_splits": 1}]
    protocols = [protocol_of(config_with(**o)) for o in [*options, *({"reference": str(f)} for f in statistics)]]
    subset = config_with()
    subset.data.subset = "val"
    protocols.append(protocol_of(subset))
    assert len({json.dumps(p, sort_keys=True) for p in protocols}) == len(protocols)
    assert protocols[0] == protocol_of(config_with()) == json.loads(json.dumps(protocols[0]))


def test_only_the_metrics_that_are_asked_for_are_measured(config_with, tmp_path):
    assert metrics_of(config_with(metrics=["inception_score"])).keys() == {"metrics"}
    everything = metrics_of(config_with(half_half_splits=3))
    assert set(everything["metrics"]["1"]) == {
        "fid",
        "inception_score",
        "inception_score_std",
        "precision",
        "recall",
        "recognised",
    }
    assert len(everything["half_half_fid"]["splits"]) == 3 and everything["best_cfg"] == "1"


def test_with_a_file_as_reference_there_are_neither_precision_nor_halves(config_with, tmp_path):
    ImageSet(digit_images(32)[0], Extractor("digits")).statistics().save(tmp_path / "s.npz")
    result = metrics_of(config_with(reference=str(tmp_path / "s.npz"), half_half_splits=3))
    assert set(result["metrics"]["1"]) == {"fid", "inception_score", "inception_score_std", "recognised"}
    assert "half_half_fid" not in result


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """The first 40 digits as an .npz without labels, and as a folder."""
    images = digit_images(32)[0][:40].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "theirs.npz", images)
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number:03d}.png")
    return {"npz": tmp_path / "theirs.npz", "folder": tmp_path / "folder"}


def test_an_npz_and_a_folder_of_anybodys_images_measure_as_the_runs_own_sets_do(config_with, pictures):
    own = metrics_of(config_with())["metrics"]["1"]
    own.pop("recognised")
    for where in pictures.values():
        config = config_with(samples=str(where))
        [(name, metrics)] = metrics_of(config)["metrics"].items()
        assert name == where.name and metrics == pytest.approx(own, rel=1e-4)
        assert list(protocol_of(config)["samples"]) == [where.name]
        assert evaluate.result_file(config).name == f"evaluation_{where.stem}.json"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_samples_of_another_count_are_refused(config_with, pictures, kind):
    config = config_with(samples=str(pictures[kind]))
    config.sample.count = 41
    with pytest.raises(UserError, match="holds 40 images and sample.count is 41"):
        metrics_of(config)


def test_samples_of_another_size_than_the_data_are_refused(config_with, pictures):
    config = config_with(samples=str(pictures["npz"]))
    config.data.size = 64
    with pytest.raises(UserError, match="theirs.npz are 32 x 32 and the data .* cropped to 64: write data.size=32"):
        protocol_of(config)


def test_precision_and_recall_against_too_many_images_are_refused(config_with):
    config = config_with()
    evaluate.check_counts(config, 100_000)
    with pytest.raises(UserError, match="compare all features of 100001 reference images.*evaluate.metrics="):
        evaluate.check_counts(config, 100_001)


def test_samples_of_another_generator_or_of_other_options_are_refused(config_with, tmp_path):
    config = config_with()
    saved = {"fingerprint": "f", "about": {"autoencoder": "a"}, "generator": {"name": "mar"}}
    write_json(tmp_path / "mar" / "generator" / "config.json", saved)
    note = samples_file(config, 1).with_suffix(".json")
    write_json(note, {"protocol": protocol(config, saved, 1.0, EQUAL.description)})
    protocol_of(config)
    for change in ({"generator": "g"}, {"seed": 1}, {"count": 3}):
        write_json(note, {"protocol": protocol(config, saved, 1.0, EQUAL.description) | change})
        with pytest.raises(UserError, match=f"were made with other {next(iter(change))}: run"):
            protocol_of(config)


def test_samples_count_by_their_labels_and_not_by_what_these_are_the_shares_of(config_with, tmp_path):
    config = config_with()
    saved = {"fingerprint": "f", "about": {"autoencoder": "a"}, "generator": {"name": "mar"}}
    saved["shape"] = {"num_classes": 10}
    write_json(tmp_path / "mar" / "generator" / "config.json", saved)
    file, images = samples_file(config, 1), digit_images(32)[0][:40].permute(0, 2, 3, 1).numpy()
    made_by = protocol(config, saved, 1.0, "in the class shares of the reference (0123456789abcdef)")
    write_json(file.with_suffix(".json"), {"protocol": made_by})
    np.savez(file, arr_0=images, labels=np.arange(40) % 10)
    assert protocol_of(config)["samples"]["1"]["labels"] == made_by["labels"]
    np.savez(file, arr_0=images, labels=np.arange(40) % 5)
    said = "made with other labels: .*generate run_dir=.* evaluate.reference=data` .* sample.class_shares=data to measure them as they"
    with pytest.raises(UserError, match=said):
        protocol_of(config)


def test_classes_that_stand_in_another_order_in_the_reference_are_said(config_with):
    assert evaluate.unlike_names(["a", "b"], (), "generator") == "" == evaluate.unlike_names(["a"], ("a",), "samples")
    assert "have other names than the samples'" in evaluate.unlike_names(["a"], ("b",), "samples")
    turned = evaluate.unlike_names(["a", "b", "c"], ("a", "c", "b"), "generator")
    assert "in another order (class 1 is b here and c there): they are compared by name" in turned


def test_a_folder_and_an_archive_serve_as_reference_and_an_archives_moments_come_before_its_images(
    config_with, pictures, tmp_path
):
    folder = metrics_of(config_with(reference=str(pictures["folder"])))["metrics"]["1"]
    archive = metrics_of(config_with(reference=str(pictures["npz"])))["metrics"]["1"]
    assert folder == pytest.approx(archive, abs=1e-4) and abs(archive["fid"]) < 1e-4 and archive["precision"] == 1
    moments = ImageSet(digit_images(32)[0], Extractor("digits")).statistics()
    with np.load(pictures["npz"]) as arrays:
        np.savez(tmp_path / "adm.npz", arr_0=arrays["arr_0"], mu=moments.mu, sigma=moments.sigma)
    both = metrics_of(config_with(reference=str(tmp_path / "adm.npz")))["metrics"]["1"]
    assert both["precision"] == 1 and both["fid"] == pytest.approx(metrics_of(config_with())["metrics"]["1"]["fid"])


def test_moments_of_another_extractor_are_refused(config_with, tmp_path):
    ImageSet(digit_images(32)[0][:40], Extractor("digits")).statistics().save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    Statistics(loaded.mu, loaded.sigma, 40, "inception").save(tmp_path / "s.npz")
    with pytest.raises(UserError, match="by 'inception': write evaluate.extractor=inception"):
        metrics_of(config_with(reference=str(tmp_path / "s.npz")))


def fill(
    run: Path, generated: dict[str, dict[str, float]], best: str | None = None, halves: bool = False, classes: int = 10
) -> Path:
    for stage in ("flowhead", "ae", "mar"):
        write_json(run / stage / "result.json", {"seconds": 1.0, "peak_memory_gb": 2.0, "latent_std": 0.5})
    write_json(run / "latents" / "manifest.json", {"num_classes": classes})
    write_json(run / "ae" / "evaluation.json", {"metrics": {"psnr": 20.0, "ssim": 0.5}, "protocol": {"count": 90}})
    extra = ({"best_cfg": best} if best else {}) | ({"half_half_fid": {"mean": 1.0, "std": 0.1}} if halves else {})
    write_json(run / "mar" / "evaluation.json", {"metrics": generated, **extra})
    return run


def test_the_report_prints_whatever_was_measured(tmp_path):
    report = runpy.run_path(str(SCRIPTS / "report.py"))
    rows = dict(report["summary"](fill(tmp_path / "a", {"1": {"fid": 2.0, "my_figure": 0.25}}, best="1", halves=True)))
    assert rows["autoencoder"] == "PSNR 20.00 dB  SSIM 0.5000  (on 90 images)"
    assert rows["MAR, cfg 1"] == "FID 2.000  my figure 0.250  <- best"
    assert "yardstick" in rows["FID of real halves"]
    rows = dict(
        report["summary"](
            fill(tmp_path / "b", {"1": {"inception_score": 7.0, "inception_score_std": 0.5, "recognised": 0.5}})
        )
    )
    assert rows["MAR, cfg 1"] == "IS 7.00 +- 0.50  recognised 50.00%" and "FID of real halves" not in rows


def test_the_report_of_a_run_on_imported_models_shows_what_was_measured_and_asks_for_no_training(tmp_path):
    report = runpy.run_path(str(SCRIPTS / "report.py"))
    run = fill(tmp_path, {"1": {"fid": 2.0}})
    for stage, model in (("flowhead", "prior"), ("ae", "autoencoder")):
        (run / stage / "result.json").unlink()
        write_json(run / stage / model / "config.json", {})
    rows = dict(report["summary"](run))
    assert rows["autoencoder"] == "PSNR 20.00 dB  SSIM 0.5000  (on 90 images)" and rows["training time"] == "mar 1 s"


def test_a_figure_that_was_not_measured_is_named_by_report_and_table_and_is_never_the_best(
    tmp_path, monkeypatch, capsys
):
    report = runpy.run_path(str(SCRIPTS / "report.py"))
    run = fill(tmp_path / "none_seed0", {"1": {"fid": 2.0}, "2": {"fid": None, "recognised": None}, "3": {"fid": 1.0}})
    assert dict(report["summary"](run))["MAR, cfg 2"] == "FID not measured  recognised not measured"
    assert report["two_scales"](run, "mar") == ["1", "3"]
    write_json(run / "ae" / "evaluation.json", {"metrics": {"psnr": float("inf"), "ssim": 1.0}})
    monkeypatch.setattr(sys, "argv", ["compare_table.py", str(tmp_path), "--seeds", "0", "--regularisers", "none"])
    runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
    said = capsys.readouterr()
    assert "psnr" not in said.out and "none_seed0 has no psnr" in said.err


def test_one_seed_has_no_spread_in_the_table_nor_in_the_figures_of_the_group_sizes(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "none_seed0", {"1": {"fid": 2.0}}, best="1")
    monkeypatch.setattr(sys, "argv", ["compare_table.py", str(tmp_path), "--seeds", "0", "--regularisers", "none"])
    runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
    said = capsys.readouterr().out
    assert "2.000" in said and "+-" not in said
    assert json.loads((tmp_path / "digits.json").read_text())["none"]["fid"]["std"] is None
    for seed in (0, 1):
        log = tmp_path / f"size16_seed{seed}" / "flowhead" / "log.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps({"step": 10, "held_out_loss": 0.5 + seed}) + "\n")
    words = ["draw_group_sizes.py", str(tmp_path), str(tmp_path / "sizes.png"), "--sizes", "16", "--seeds"]
    for seeds, shown in ((["0"], "0.5000 (0.5000)"), (["0", "1"], "1.0000 +- 0.7071 (0.5000, 1.5000)")):
        monkeypatch.setattr(sys, "argv", words + seeds)
        runpy.run_path(str(SCRIPTS / "draw_group_sizes.py"))["main"]()
        assert f"held-out loss {shown} after 10 steps" in capsys.readouterr().out


def test_the_captions_promise_one_class_a_column_only_where_the_sheet_has_it(tmp_path):
    caption = runpy.run_path(str(SCRIPTS / "report.py"))["classes_text"]
    assert "one class a column" in caption(fill(tmp_path / "a", {}, classes=10), "mar")
    assert caption(fill(tmp_path / "b", {}, classes=11), "mar") == ""
    note = tmp_path / "a" / "mar" / "samples" / "cfg_1.json"
    write_json(note, {"protocol": {"labels": "i mod number of classes"}})
    assert "one class a column" in caption(tmp_path / "a", "mar")
    write_json(note, {"protocol": {"labels": "in the class shares of the data (0)"}})
    assert caption(tmp_path / "a", "mar") == ""


@pytest.mark.parametrize("metrics, best, expected", [
    ({"1": {"fid": 3.0}, "2": {"fid": 2.0}, "3": {"fid": 4.0}}, "2", ["1", "2"]),
    ({"1": {}, "2": {}, "3": {}}, None, ["1", "3"]),
    ({"1": {"fid": 3.0}}, "1", ["1"]),
])  # fmt: skip
def test_the_report_shows_the_smallest_scale_and_the_best_of_the_others(tmp_path, metrics, best, expected):
    assert runpy.run_path(str(SCRIPTS / "report.py"))["two_scales"](fill(tmp_path, metrics, best), "mar") == expected


def test_the_table_prints_whatever_the_runs_have_in_common(tmp_path, monkeypatch, capsys):
    for seed, fid in ((0, 2.0), (1, 4.0)):
        fill(
            tmp_path / f"none_seed{seed}",
            {"1": {"fid": fid, "precision": 0.5, "my_figure": 3.0}},
            best="1",
            halves=True,
        )
        fill(tmp_path / f"flow_seed{seed}", {"1": {"fid": fid / 2}}, best="1")
    monkeypatch.setattr(
        sys, "argv", ["compare_table.py", str(tmp_path), "--seeds", "0", "1", "--regularisers", "none", "flow"]
    )
    runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
    head, none, flow, ratio, lowest = capsys.readouterr().out.splitlines()
    assert head.split() == ["psnr", "fid", "cfg", "precision", "latent_std", "ssim", "my_figure"]
    assert none.count("+-") == 7 and flow.count("+-") == 5 and flow.split().count("-") == 2
    assert ratio.startswith("FID with flow / FID with none: 0.500") and lowest == "lowest FID: flow"
    table = json.loads((tmp_path / "digits.json").read_text())
    assert table["none"]["half_half_fid"]["mean"] == 1.0 and table["none"]["fid"]["seeds"] == [2.0, 4.0]


def test_the_table_is_without_guidance_unless_another_scale_or_each_runs_best_is_asked_for(
    tmp_path, monkeypatch, capsys
):
    for seed, fids in enumerate([(3.0, 1.0), (2.0, 5.0)]):
        fill(
            tmp_path / f"none_seed{seed}",
            {scale: {"fid": fid} for scale, fid in zip(("1", "1.5"), fids)},
            best="1" if fids[0] < fids[1] else "1.5",
        )
    words = ["compare_table.py", str(tmp_path), "--seeds", "0", "1", "--regularisers", "none"]
    for more, fid, cfg in (([], 2.5, 1), (["--cfg", "1.5"], 3, 1.5), (["--cfg", "best"], 1.5, 1.25)):
        monkeypatch.setattr(sys, "argv", words + more)
        runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
        found = json.loads((tmp_path / "digits.json").read_text())["none"]
        assert (found["fid"]["mean"], found["cfg"]["mean"]) == (fid, cfg)
    monkeypatch.setattr(sys, "argv", [*words, "--cfg", "2"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
    assert "was evaluated at guidance 1, 1.5, not at 2" in capsys.readouterr().err


def test_the_table_and_the_report_tell_two_generators_apart(tmp_path, monkeypatch, capsys):
    for name, fids in {"none": (2.0, 3.0), "flow": (1.0, 6.0)}.items():
        run = fill(tmp_path / f"{name}_seed0", {"1": {"fid": fids[0]}}, best="1")
        write_json(run / "sit" / "evaluation.json", {"metrics": {"1.5": {"fid": fids[1]}}, "best_cfg": "1.5"})
        write_json(run / "sit" / "result.json", {"seconds": 2, "peak_memory_gb": 0.1})
    rows = dict(runpy.run_path(str(SCRIPTS / "report.py"))["summary"](run))
    assert rows["MAR, cfg 1"] == "FID 1.000  <- best" and rows["SiT, cfg 1.5"] == "FID 6.000  <- best"
    words = [str(tmp_path), "--seeds", "0", "--regularisers", "none", "flow", "--stages", "ae", "mar", "sit"]
    words += ["--cfg", "best"]
    monkeypatch.setattr(sys, "argv", ["compare_table.py", *words])
    runpy.run_path(str(SCRIPTS / "compare_table.py"))["main"]()
    said = capsys.readouterr().out
    assert "mar FID with flow / mar FID with none: 0.500" in said and "lowest mar FID: flow" in said
    assert "sit FID with flow / sit FID with none: 2.000" in said and "lowest sit FID: none" in said
    assert json.loads((tmp_path / "digits.json").read_text())["flow"]["sit_cfg"]["mean"] == 1.5
