"""The report of real, if small, tokenizers: every figure is in the table or in the list of what is missing, and the page stands by itself."""

import html
import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from flowprior import FlowPrior
from flowprior.data.images import ImageConfig, open_images
from flowprior.errors import UserError
from flowprior.metrics import Extractor, Features
from flowprior.run.files import tensors_fingerprint
from latent_report.__main__ import parse, short_names, write_report
from latent_report.config import ReportConfig
from latent_report.curves import CURVES
from latent_report.figures import FIGURES, GLANCE, GLANCE_CURVES, GROUPS, Figure
from latent_report.flows import FlowBudget
from latent_report.left_out import by_reason, named_in
from latent_report.measure import Measured, Results, measure, measure_places
from latent_report.measure_images import measure_semantics, remark_on_extractor
from latent_report.measures.distribution import normalised
from latent_report.measures.reconstruction import (
    decoded,
    feature_distance,
    feature_distance_of_few,
    noisy,
    psnr_and_ssim,
)
from latent_report.measures.semantics import cknna
from latent_report.opening import Latents
from latent_report.page import best_of, number, page
from latent_report.svg import Line, line_plot
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.metrics import MeterContext, build_meters
from tokenizer.reconstruct import measure_with_noise
from tokenizer.vit import ViTConfig

SMALL = FlowBudget(steps=3, images=16, width=8, depth=1, times=4)


def small_autoencoder(seed: int = 0) -> Autoencoder:
    vit = ViTConfig(width=12, depth=1, heads=3)
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(32, 16, 4, 3, encoder=vit, decoder=vit)).eval()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The report of two autoencoders and of one's latents alone, against a prior."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        small_autoencoder(seed).save(folder / f"seed{seed}" / "ae" / "autoencoder")
    features = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    FlowPrior.fit(features, channels=3, width=8, depth=1, steps=2, progress=False).save(folder / "prior")
    bare = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(folder / "bare.npz", latents=bare, labels=np.arange(40) % 2)
    config = ReportConfig(
        out=str(folder / "out"),
        images=40,
        flow=SMALL,
        resamples=4,
        noise_shares=(0.1, 0.4),
        prior=str(folder / "prior"),
    )
    names = [str(folder / name) for name in ("seed0", "seed1", "bare.npz")]
    report = write_report(names, config)
    return folder / "out", report


def test_every_figure_of_the_table_is_measured_or_its_absence_has_a_reason(reported):
    _, report = reported
    one, two, bare = report["tokenizers"]
    every = FIGURES.keys() | CURVES.keys()
    for tokenizer in (one, two, bare):
        measured, reasons = tokenizer["figures"].keys() | tokenizer["curves"].keys(), tokenizer["left_out"].keys()
        assert measured | reasons == every and not measured & reasons
    for tokenizer in (one, two):
        assert tokenizer["left_out"].keys() <= {"lpips"}
        assert tokenizer["weights"]["extractor"] == Extractor("digits").fingerprint
    assert bare["weights"] == {}
    reconstruction, images = "bare latents have no decoder", "bare latents have no images"
    expected = dict.fromkeys(named_in("reconstruction"), reconstruction) | dict.fromkeys(("cka", "cknna"), images)
    assert bare["left_out"] == expected


def test_figures_that_were_drawn_from_images_have_an_error_and_all_are_finite(reported):
    _, report = reported
    for tokenizer in report["tokenizers"]:
        for name, entry in tokenizer["figures"].items():
            assert np.isfinite([entry["value"], entry["error"]]).all(), name


def test_the_json_is_what_was_returned_and_says_what_every_figure_means(reported):
    folder, report = reported
    kept = json.loads((folder / "report.json").read_text())
    assert kept == json.loads(json.dumps(report)) and kept["figures"].keys() == FIGURES.keys()
    assert [one["name"] for one in kept["tokenizers"]] == ["seed0", "seed1", "bare.npz"]


def test_the_page_names_every_figure_and_asks_no_network_for_anything(reported):
    folder, report = reported
    page = (folder / "report.html").read_text()
    shown = [figure for name, figure in FIGURES.items() if name != "lpips"]
    assert [figure.label for figure in shown if html.escape(figure.meaning) not in page] == []
    drawn = [name for name, curve in CURVES.items() if not curve.drawn_in]
    assert page.count("<svg") == len([*drawn, *GLANCE_CURVES]) and page.count("data:image/png;base64,") == 2
    remarks = [name for tokenizer in report["tokenizers"] for name in tokenizer["remarks"]]
    assert page.count(" *</span>") == len([*remarks, *(name for name in remarks if name in GLANCE)]) > 0
    assert not re.search(r"(src|href)=[\"'](?!data:)|https?:|url\(|<script|@import", page)


def test_every_figure_and_curve_belongs_to_a_group_and_is_a_sentence():
    for figure in [*FIGURES.values(), *CURVES.values()]:
        assert figure.group in GROUPS and figure.meaning.endswith(".") and figure.meaning[0].isupper()
    for figure in FIGURES.values():
        assert format(1.0, figure.form) and figure.better in ("higher", "lower", "")


def test_two_reports_of_one_tokenizer_are_alike_to_the_bit(reported, tmp_path):
    folder, report = reported
    out, options = tmp_path / "again", report["protocol"]["options"]
    config = ReportConfig(
        out=str(out), images=40, flow=SMALL, resamples=4, noise_shares=(0.1, 0.4), prior=options["prior"]
    )
    again = write_report([report["tokenizers"][1]["path"]], config)
    assert again["tokenizers"][0]["figures"] == report["tokenizers"][1]["figures"]


def test_noise_is_what_the_evaluation_of_an_autoencoder_draws_and_more_of_it_is_worse():
    model, source = small_autoencoder(), open_images(ImageConfig(subset="val"))
    context = MeterContext(torch.device("cpu"), len(source), 32, extractor="digits")
    theirs = measure_with_noise(model, source, {s: build_meters(["fidelity"], context) for s in (0.2, 0.8)})
    with torch.no_grad():
        codes = model.encode(source.images.float() / 127.5 - 1)
    psnr = []
    for share in (0.2, 0.8):
        rebuilt = decoded(model.decode, noisy(codes, share))
        psnr.append(psnr_and_ssim(source.images, rebuilt)[:, 0].mean().item())
        assert psnr[-1] == pytest.approx(theirs[f"psnr_noise_{share:g}"], rel=1e-5)
    clean = decoded(model.decode, codes)
    drift = [(decoded(model.decode, noisy(codes, s)).float() - clean.float()).square().mean() for s in (0.2, 0.8)]
    assert 0 < drift[0] < drift[1]


def test_the_distance_of_features_is_that_of_their_means_where_their_spread_is_the_same():
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert feature_distance(features, features + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25, rel=1e-3)


@pytest.mark.parametrize("count, width", [(200, 4), (15, 40)])
def test_the_distance_of_features_of_few_images_is_that_by_a_root_of_the_covariances(count, width):
    one, other = torch.randn(2, count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = 2 * one + 1
    sigmas = torch.cov(one.T), torch.cov(other.T)
    roots = torch.linalg.eigvals(sigmas[0] @ sigmas[1]).real.clamp(min=0).sqrt().sum()
    expected = (one.mean(0) - other.mean(0)).square().sum() + sigmas[0].trace() + sigmas[1].trace() - 2 * roots
    assert feature_distance_of_few(one, other) == pytest.approx(expected.item(), rel=1e-5)
    if count > width:
        assert feature_distance(one, other) == pytest.approx(expected.item(), rel=1e-5)


def test_latents_are_compared_with_the_pooled_features_of_the_timm_model_that_is_named(tmp_path):
    model = timm.create_model("test_vit", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = open_images(ImageConfig(size=160)).images[:24]
    with torch.no_grad():
        features = model((images.float() / 255 - 0.5) / 0.5)  # (24, 64)
    latents = Latents("latents", features.unsqueeze(1), (1,), images=images)
    config = ReportConfig(features="test_vit", features_weights=str(tmp_path / "model.safetensors"), resamples=2)
    results = measure(latents, config, {"semantics": measure_semantics})
    assert results.figures["cka"].value == pytest.approx(1, abs=1e-4)
    expected = cknna(normalised(latents.latents).flatten(1), features)
    assert results.figures["cknna"].value == pytest.approx(expected, abs=1e-4) and expected > 0.5
    assert results.weights == {"features": tensors_fingerprint(model.state_dict())}


def test_the_best_and_its_like_are_marked_where_others_differ_by_more_than_chance():
    lower, open_ = Figure("flow", "a", "A.", "lower"), Figure("flow", "a", "A.")
    far = [{"value": 1.0, "error": 0.1}, {"value": 2.0, "error": 0.1}, None]
    near = [{"value": 1.0, "error": 0.5}, {"value": 2.0, "error": 0.5}]
    assert best_of(lower, far) == {0} and best_of(lower, near) == best_of(open_, far) == set()
    assert best_of(lower._replace(better="higher"), far) == {1}
    alike = [{"value": value, "error": 0.01} for value in (3.0, 1.0, 1.02, 1.0)]
    assert best_of(lower, alike) == {1, 2, 3}
    assert number(lower._replace(form=".1%"), {"value": 0.5, "error": 0.01}) == "50.0% ± 1.0%"
    assert number(lower, None) == "-"
    assert [number(lower, {"value": v, "error": None}) for v in (-1e-9, -0.02)] == ["0.000", "-0.020"]


def test_tokenizers_are_called_by_what_tells_them_apart():
    assert short_names(["runs/a/ae/autoencoder", "runs/b/ae/autoencoder"]) == ["a", "b"]
    assert short_names(["runs/a"]) == ["a"] and short_names(["x/one.npz", "user/name"]) == ["x/one.npz", "user/name"]
    assert short_names(["a", "a/b"]) == ["a", "a/b"]
    assert short_names(["/tmp/run", "/data/a/ae"]) == ["/tmp/run", "/data/a/ae"]  # as they can be typed again


def test_a_plot_leaves_out_what_its_axis_cannot_show_and_is_empty_where_nothing_is_left():
    plot = line_plot([Line("a", [0, 1, 2], [1.0, 0.0, 10.0])], "x", "y", log=True)
    [points] = re.findall(r'<polyline points="([^"]+)"', plot)
    assert len(points.split()) == 2 and "nan" not in plot
    assert line_plot([Line("a", [0.0], [float("nan")])], "x", "y") == ""


def test_a_plot_ends_at_the_tick_above_its_values_so_that_every_value_can_be_read_off():
    def labels(plot: str) -> list[str]:
        return re.findall(r'text-anchor="end">([^<]+)<', plot)

    assert labels(line_plot([Line("a", [0, 1], [3.0, 29.0])], "x", "y")) == ["0", "10", "20", "30"]
    assert labels(line_plot([Line("a", [0, 1], [0.04, 3.0])], "x", "y", log=True))[::6] == ["0.02", "2"]
    assert labels(line_plot([Line("a", [0, 1], [0.04, 3.0])], "x", "y", log=True))[-1] == "5"


def test_two_bounds_of_one_curve_are_one_plot_with_the_lower_one_dashed(reported):
    folder, _ = reported
    [plot] = [part for part in (folder / "report.html").read_text().split("<figure>") if "Irreducible variance" in part]
    assert plot.count("stroke-dasharray") == 3 == plot.count("<polyline") - 3


def test_words_of_a_command_line_are_tokenizers_and_options_in_any_order():
    names, config = parse(["runs/a", "images=70", "user/name", "flow.steps=9"])
    assert names == ["runs/a", "user/name"] and (config.images, config.flow.steps) == (70, 9)
    for words, said in (
        ([], "name a tokenizer"),
        (["a", "a"], "named twice"),
        (["a", "imagez=7"], "'imagez'"),
        (["a", "images=7"], "20 or more, or 0 for all"),
        (["a", "flow.steps=0"], "steps"),
        (["a", "held_out=1"], "held_out"),
        (["a", "--bogus"], "--help lists"),
    ):
        with pytest.raises(UserError, match=said):
            parse(words)


def test_latents_that_have_no_spectrum_leave_out_that_group_and_no_other(tmp_path):
    alike = torch.randn(40, 1, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    np.savez(tmp_path / "alike.npz", latents=alike.numpy())
    config = ReportConfig(out=str(tmp_path), flow=SMALL, resamples=2)
    [one] = write_report([str(tmp_path / "alike.npz")], config)["tokenizers"]
    assert "no spectrum" in one["left_out"]["spectral_entropy"] and "irreducible_variance" in one["figures"]
    assert "total_correlation" in one["figures"] and "total_correlation" not in one["left_out"]
    assert one["figures"]["variance_images"]["value"] == pytest.approx(1, abs=1e-5)


def test_latents_of_one_token_and_few_images_say_of_every_figure_that_is_missing_why(tmp_path):
    latents = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    latents[:, 3] = 0
    np.savez(tmp_path / "z.npz", latents=latents.numpy(), labels=np.zeros(30, np.int64))
    config = ReportConfig(out=str(tmp_path), flow=SMALL, resamples=2)
    [one] = write_report([str(tmp_path / "z.npz")], config)["tokenizers"]
    reasons = {
        "there is one token per image": {
            *named_in("dependence"),
            *(f"variance_{part}" for part in ("images", "tokens", "within")),
        },
        "30 images do not tell the spectrum of 40 dimensions": {"effective_rank_images", "spectrum"},
        "30 images do not tell the covariance of 40 dimensions": {"irreducible_variance_gaussian"},
        "1 of 40 channels never vary": {"channel_std_ratio"},
        "all training images have one label: there is nothing to tell apart": {"knn_accuracy", "probe_accuracy"},
        "bare latents have no images": {"cka", "cknna"},
        "bare latents have no decoder": {*named_in("reconstruction")},
        "no prior is named: prior= takes one": {*named_in("alignment")},
    }
    assert one["left_out"] == {name: reason for reason, names in reasons.items() for name in names}
    shown = html.unescape((tmp_path / "report.html").read_text())
    for reason in reasons:
        assert shown.count(f"since {reason}") == 1
    assert ("all of Reconstruction", "bare latents have no decoder") in by_reason(one["left_out"])


def test_images_of_one_class_keep_the_likeness_to_features_which_needs_no_label(tmp_path):
    small_autoencoder().save(tmp_path / "model")
    np.save(tmp_path / "labels.npy", np.zeros(len(open_images(ImageConfig())), np.int64))
    config = ReportConfig(out=str(tmp_path), images=40, flow=SMALL, resamples=2, labels=str(tmp_path / "labels.npy"))
    [one] = write_report([str(tmp_path / "model")], config)["tokenizers"]
    assert {"cka", "cknna"} <= one["figures"].keys()
    for name in ("knn_accuracy", "probe_accuracy"):
        assert "all training images have one label" in one["left_out"][name] and name not in one["figures"]


def test_an_autoencoder_of_other_images_is_said_to_be_measured_on_these(tmp_path):
    model = small_autoencoder()
    model.about["data"] = {"source": "mnist"}
    model.save(tmp_path / "model")
    config = ReportConfig(out=str(tmp_path), images=40, flow=SMALL, resamples=2)
    [one] = write_report([str(tmp_path / "model")], config)["tokenizers"]
    assert "trained on mnist, and all figures here are of digits: data.source=mnist" in one["remarks"]["psnr"]


def test_weights_of_lpips_that_are_not_there_leave_out_lpips_alone_and_name_the_reports_option(tmp_path):
    small_autoencoder().save(tmp_path / "model")
    config = ReportConfig(out=str(tmp_path), images=40, flow=SMALL, resamples=2, lpips_weights=str(tmp_path / "x.pth"))
    [one] = write_report([str(tmp_path / "model")], config)["tokenizers"]
    assert one["left_out"]["lpips"].endswith("name it with lpips_weights=<path>") and "rfid" in one["figures"]
    assert "extractor was" not in json.dumps(one["remarks"])


def test_weights_of_the_extractor_that_are_not_there_are_named_by_the_reports_option_in_every_group(tmp_path):
    small_autoencoder().save(tmp_path / "model")
    weights = {"extractor": "inception", "extractor_weights": str(tmp_path / "x.pth")}
    config = ReportConfig(out=str(tmp_path), images=40, flow=SMALL, resamples=2, **weights)
    [one] = write_report([str(tmp_path / "model")], config)["tokenizers"]
    for name in ("rfid", "cka"):
        assert "extractor_weights" in one["left_out"][name] and "evaluate." not in one["left_out"][name]


@pytest.mark.parametrize("extractor, kind, count, told", [
    ("digits", "digits", 65, ""),
    ("digits", "digits", 64, "it is of 64 images on features of 64 dimensions"),
    ("digits", "files", 65, "metrics of other images by it mean little"),
    ("", "mnist", 65, ""),
])  # fmt: skip
def test_distances_of_few_images_or_by_an_extractor_of_others_are_to_be_read_with_care(extractor, kind, count, told):
    latents = Latents("latents", torch.zeros(count, 1, 1), (1,), about={"image_kind": kind})
    config, rows = ReportConfig(extractor=extractor), torch.arange(count)
    results, seen = (
        Results(),
        Features(torch.zeros(count, 64), torch.zeros(count, 10), torch.zeros(count, 64), extractor or kind),
    )
    remark_on_extractor(Measured(latents, latents.latents, rows, rows, config), results, seen)
    assert bool(results.remarks) == bool(told) and told in results.remarks.get("rfid", "")
    assert ("midpoints_sure" in results.remarks) == ("mean little" in told)


def test_a_figure_without_an_error_has_no_best():
    figure, known = FIGURES["rfid"], {"value": 1.0, "error": 0.01}
    assert best_of(figure, [known, {"value": 2.0, "error": 0.01}]) == {0}
    assert best_of(figure, [known, {"value": 2.0, "error": None}]) == set()


def test_a_map_of_two_by_two_has_no_high_frequencies():
    latents = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0))
    results = measure(Latents("latents", latents, (2, 2)), ReportConfig(resamples=2), {"dependence": measure_places})
    assert (
        "2 x 2 places have too few" in results.left_out["high_frequency_ratio"]
        and "spectral_entropy" in results.figures
    )


def test_tokenizers_of_other_numbers_of_images_are_told_to_be_measured_on_as_many(reported):
    _, report = reported
    first, second, _ = report["tokenizers"]
    alike, unlike = ({**report, "tokenizers": [first, other]} for other in (second, {**second, "images": 39}))
    assert ["The numbers of images differ" in page(one, [{}, {}]) for one in (alike, unlike)] == [False, True]
