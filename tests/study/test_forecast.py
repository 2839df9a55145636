"""What reports foretell of FIDs, on made cells whose relation is known."""

import json
import math

import numpy as np
import pytest

from flowprior.data.images import ImageConfig
from flowprior.errors import UserError
from flowprior.run.files import write_json
from latent_report import forecast as read
from latent_report.__main__ import print_table
from latent_report.config import PROTOCOL_VERSION, ReportConfig
from latent_report.page import page as report_page
from study.fit import choose, left_out_errors, left_out_predictions
from study.forecast import LEAST_ROWS, make_forecast
from study.forecast_page import draw, in_words, out_of_date
from study.kept import cell_file, cell_of, measuring, result_options
from study.page import page_tables
from study.plan import Cell, Plan
from study.reports import report_file
from study.table import TABLES, read_table

ROWS = ("kl", "softvq", "flow_semantic", "flow_textual", "distribution", "flow_noise", "reals", "vavae", "noise")
# The planted relation: the FID ratio is (rFID ratio)^0.5 e^(-2 (change of the probe's accuracy)).
SLOPES = {"rfid": 0.5, "probe_accuracy": -2.0}
OTHERS = ("psnr", "kurtosis", "cka", "euler_steps")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return Plan(read_table(TABLES / "mnist.yaml"), tmp_path_factory.mktemp("runs"))


def made(plan, cell, figures, fids):
    """A finished cell and its report."""
    stages, of_report = plan.stages_of(cell), plan.report_stages(cell)
    identity = {"format": 1, "study": "mnist", "row": cell.row, "length": cell.length, "seed": cell.seed}
    identity |= {"data": "f00d", "device": "2 cores", "device_type": "cpu", "spent": {}}
    ofs = {name: {"by_guidance": {"1": {"fid": fid}}} for name, fid in fids.items()}
    kept = identity | {
        "figures": {"autoencoder": {"fingerprint": cell.name}, **ofs},
        "made_from": {stage.name: result_options(stage.config()) for stage in stages},
        "measured": {stage.name: how for stage in stages if (how := measuring(stage))},
    }
    report = identity | {
        "protocol_version": PROTOCOL_VERSION,
        "autoencoder": cell.name,
        "weights": {"extractor": "e1"},
        "figures": {name: {"value": value, "error": 0.1} for name, value in figures.items()},
        "made_from": {stage.name: result_options(stage.config()) for stage in of_report},
    }
    return json.loads(json.dumps([kept, report]))


@pytest.fixture(scope="module")
def planted(plan):
    """Three seeds of nine rows and of none: SiT's FIDs by the relation with noise of 1 %, MAR's of too few rows."""
    rng, pairs = np.random.default_rng(0), []
    centres = {row: rng.normal(size=6) for row in ROWS}
    for seed in (1, 2, 3):
        reference = {"rfid": 0.1 * (1 + 0.1 * seed), "probe_accuracy": 0.7, **dict.fromkeys(OTHERS, 10.0)}
        pairs.append(made(plan, Cell("none", "trained", seed), reference, {"sit": 0.2 + 0.05 * seed, "mar": 0.3}))
        for row in ROWS:
            away = centres[row] + 0.3 * rng.normal(size=6)
            figures = {"rfid": reference["rfid"] * math.exp(0.5 * away[0]), "probe_accuracy": 0.7 + 0.1 * away[1]}
            figures |= {name: 10 + away[place] for place, name in enumerate(OTHERS, 2)}
            log_ratio = 0.5 * 0.5 * away[0] - 2 * 0.1 * away[1] + 0.01 * rng.normal()
            fids = {"sit": (0.2 + 0.05 * seed) * math.exp(log_ratio)}
            if "mar" in {stage.name for stage in plan.stages_of(Cell(row, "trained", seed))}:
                fids["mar"] = 0.3
            pairs.append(made(plan, Cell(row, "trained", seed), figures, fids))
    cells, reports = map(list, zip(*pairs))
    return cells, reports


@pytest.fixture(scope="module")
def forecast(plan, planted):
    return make_forecast(plan, *planted)


def test_a_planted_relation_is_found_and_its_slopes_are_recovered(forecast):
    assert list(forecast["generators"]) == ["sit"]
    model = forecast["generators"]["sit"]
    assert model["figures"].keys() == SLOPES.keys()
    for name, slope in SLOPES.items():
        part = model["figures"][name]
        assert part["coefficient"] / part["scale"] == pytest.approx(slope, rel=0.05)
    assert model["autoencoders"] == 27 and model["error"] < 0.02 < 0.1 < model["error_of_none"]
    assert abs(model["correlations"]["rfid"]["spearman"]) > 0.5 and "alignment_loss" not in model["correlations"]


def test_left_out_errors_of_all_sets_are_those_of_a_plain_loop():
    rng = np.random.default_rng(1)
    x, y, groups = rng.normal(size=(30, 5)), rng.normal(size=30), np.repeat(np.arange(10), 3)
    sets = np.array([[0, 1], [1, 4], [2, 3]])
    errors = []
    for columns in sets:
        predicted = np.empty(30)
        for group in range(10):
            rest = groups != group
            slopes = np.linalg.lstsq(x[rest][:, columns], y[rest], rcond=None)[0]
            predicted[~rest] = x[~rest][:, columns] @ slopes
        errors.append(np.sqrt(np.mean((predicted - y) ** 2)))
    np.testing.assert_allclose(left_out_errors(x, y, groups, sets), errors, rtol=1e-7)


def test_figures_that_say_the_same_are_never_chosen_together_and_noise_chooses_none():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(24, 2))
    twins, groups = np.column_stack([x, x[:, 0] * 3]), np.repeat(np.arange(8), 3)
    y = x @ [1.0, -0.5]
    assert set(choose(twins, y, groups).columns) in ({0, 1}, {1, 2})
    assert np.isinf(left_out_errors(twins, y, groups, np.array([[0, 2]]))).all()
    assert choose(x, rng.normal(size=24), groups, most=1).columns == ()


def test_a_row_is_predicted_by_what_was_chosen_without_it():
    rng = np.random.default_rng(3)
    x, groups = rng.normal(size=(27, 4)), np.repeat(np.arange(9), 3)
    y = x[:, 0] + 0.1 * rng.normal(size=27)
    y[groups == 4] = 50.0  # what only the row itself could teach
    predicted = left_out_predictions(x, y, groups)
    rest = groups != 4
    columns = list(choose(x[rest], y[rest], groups[rest]).columns)
    slopes = np.linalg.lstsq(x[rest][:, columns], y[rest], rcond=None)[0]
    np.testing.assert_allclose(predicted[groups == 4], x[groups == 4][:, columns] @ slopes)
    assert np.abs(predicted[groups == 4]).max() < 10


def test_a_figure_that_moves_in_one_row_alone_is_never_chosen_without_it_and_hides_no_other():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(9), 3)
    own = np.where(groups == 4, rng.normal(size=27), 0.0)
    x = np.column_stack([own, rng.normal(size=27)])
    y, rest = 2 * x[:, 1], groups != 4
    with np.errstate(all="raise"):
        errors = left_out_errors(x[rest], y[rest], groups[rest], np.array([[0], [1]]))
        assert np.isinf(errors[0]) and errors[1] < 1e-6
        assert choose(x[rest], y[rest], groups[rest]).columns == (1,)
        np.testing.assert_allclose(left_out_predictions(x, y, groups), y)


def test_too_few_rows_are_refused_with_their_number_and_a_generator_of_few_is_left_out(plan, planted, capsys):
    cells, reports = planted
    few = {"none", *ROWS[: LEAST_ROWS - 1]}
    with pytest.raises(UserError, match="21 autoencoders of 7 rows for sit") as error:
        make_forecast(plan, [c for c in cells if c["row"] in few], [r for r in reports if r["row"] in few])
    assert "takes 20 autoencoders of 8 rows" in str(error.value) and "\n" not in str(error.value)
    make_forecast(plan, cells, reports)
    assert "9 autoencoders of 3 rows for mar" in capsys.readouterr().err


def test_variants_of_a_row_are_left_out_with_it_and_count_as_one_row(plan, planted, forecast):
    cells, reports = map(list, planted)
    own = {cell["seed"]: (cell, report) for cell, report in zip(cells, reports) if cell["row"] == "distribution"}
    for row in ("distribution_0.1", "distribution_ramped"):
        for seed in (1, 2, 3):
            cell, report = own[seed]
            figures = {name: of["value"] for name, of in report["figures"].items()}
            fid = cell["figures"]["sit"]["by_guidance"]["1"]["fid"]
            twin = made(plan, Cell(row, "trained", seed), figures, {"sit": fid, "mar": 0.3})
            cells, reports = [*cells, twin[0]], [*reports, twin[1]]
    few = {"none", "distribution_0.1", "distribution_ramped", *ROWS[: LEAST_ROWS - 1]}
    with pytest.raises(UserError, match="27 autoencoders of 7 rows for sit"):
        make_forecast(plan, [c for c in cells if c["row"] in few], [r for r in reports if r["row"] in few])
    model = make_forecast(plan, cells, reports)["generators"]["sit"]
    rows, usual = model["rows"], forecast["generators"]["sit"]["rows"]
    assert rows["distribution_0.1"]["family"] == rows["distribution_ramped"]["family"] == "distribution"
    # Twins of a row teach nothing of it: the others foretell all three alike.
    assert rows["distribution_0.1"]["left_out"] == pytest.approx(rows["distribution"]["left_out"])
    assert rows["distribution"]["left_out"] == pytest.approx(usual["distribution"]["left_out"])
    assert sum(row["ratio"] is not None for row in rows.values()) == len(usual) == 10
    assert "33 autoencoders of 9 rows and 2 variants of them" in in_words(
        {"study": "mnist", "reference": {"row": "none"}, "generators": {"sit": model}}
    )


def test_a_report_of_something_else_is_left_out_and_named(plan, planted, capsys):
    cells, reports = planted
    of_others = [json.loads(json.dumps(report)) for report in reports]
    by_name = {(r["row"], r["seed"]): r for r in of_others}
    by_name["kl", 1]["autoencoder"] = "another"
    by_name["reals", 2]["made_from"]["report"]["flow"]["steps"] = 5
    model = make_forecast(plan, cells, of_others)["generators"]["sit"]
    said = capsys.readouterr().err
    assert model["autoencoders"] == 25
    assert "kl_trained_seed1 is left out" in said and "another autoencoder than the finished cell's" in said
    assert "report flow.steps: 5 -> 600" in said


def test_reports_by_networks_of_different_weights_are_never_fitted_together(plan, planted):
    cells, reports = planted
    of_others = [json.loads(json.dumps(report)) for report in reports]
    of_others[3]["weights"] = {"extractor": "e2", "lpips": "v1"}
    with pytest.raises(
        UserError, match=f"none_trained_seed1 and {cell_of(reports[3]).name} .* the extractor's weights differ"
    ):
        make_forecast(plan, cells, of_others)
    for report in of_others:
        report["weights"] = {"extractor": "e2"}
    of_others[3]["weights"]["lpips"] = "v1"  # as where only one machine has them
    assert make_forecast(plan, cells, of_others)["weights"] == {"extractor": "e2", "lpips": "v1"}


def test_a_forecast_keeps_which_autoencoders_it_was_fitted_on_and_the_page_says_when_they_are_others(
    plan, planted, forecast, tmp_path, monkeypatch, capsys
):
    cells, reports = planted
    assert forecast["cells"]["kl_trained_seed2"] == {"autoencoder": "kl_trained_seed2"} and len(forecast["cells"]) == 30
    cells, reports = (json.loads(json.dumps(part)) for part in (cells, reports))
    monkeypatch.setattr("study.page.kept_forecasts", lambda: [forecast])
    results = tmp_path / "mnist"

    def said():
        for cell, report in zip(cells, reports):
            write_json(cell_file(results, cell_of(cell)), cell)
            write_json(report_file(results, cell_of(cell)), report)
        assert "over 27 autoencoders of 9 rows" in page_tables(tmp_path)
        return capsys.readouterr().err

    assert said() == ""
    again = next(place for place, cell in enumerate(cells) if cell_of(cell).name == "kl_trained_seed2")
    cells[again]["figures"]["autoencoder"]["fingerprint"] = reports[again]["autoencoder"] = "another"
    new = made(plan, Cell("noise_interpolated", "trained", 1), {"rfid": 0.1}, {"sit": 0.2})
    cells, reports = [*cells, new[0]], [*reports, new[1]]
    told = said()
    assert "trained again: kl_trained_seed2; new: noise_interpolated_trained_seed1): fit it again by" in told
    assert "--data mnist --forecast" in told and told.count("\n") == 1
    assert out_of_date(forecast, [])[0].startswith("gone: distribution_trained_seed1 and 29 more")


def entry_of(figures, images="f00d"):
    there = {name: {"value": value, "error": None} for name, value in figures.items()}
    return {"name": "mine", "about": {"images": images}, "weights": {"extractor": "e1"}, "figures": there}


def usual(forecast, **changes):
    return forecast["reference"]["figures"] | changes


def config(**changes):
    return ReportConfig(data=ImageConfig(source="mnist"), prior="somewhere", out="elsewhere", **changes)


def test_the_report_expects_what_the_relation_says_and_its_rank(forecast):
    reference = forecast["reference"]["figures"]
    own = usual(forecast, rfid=reference["rfid"] * 0.8, probe_accuracy=0.72)
    told = read.expected(entry_of(own), config(), [forecast])["generators"]["sit"]
    assert told["ratio"] == pytest.approx(0.8**0.5 * math.exp(-2 * 0.02), rel=0.02)
    known = [row["ratio"] for row in forecast["generators"]["sit"]["rows"].values()]
    assert len(known) == 10 and told["of"] == 11
    assert told["rank"] == 1 + sum(ratio < told["ratio"] for ratio in known)
    same = read.expected(entry_of(reference), config(), [forecast])["generators"]["sit"]
    assert same["ratio"] == 1 and same["factor"] == math.exp(forecast["generators"]["sit"]["error"])


def test_outside_of_what_was_fitted_the_report_refuses_and_names_the_figure(forecast):
    far = read.expected(entry_of(usual(forecast, rfid=5.0)), config(), [forecast])["generators"]["sit"]
    assert far["refused"].startswith("its rFID is 5.000, outside of what was fitted, 0.0")
    figures = usual(forecast)
    del figures["probe_accuracy"]
    gone = read.expected(entry_of(figures), config(), [forecast])["generators"]["sit"]
    assert gone["refused"] == "linear probe was not measured"
    nothing = read.expected(entry_of(usual(forecast, rfid=0.0)), config(), [forecast])["generators"]["sit"]
    assert nothing["refused"] == "rFID is not above 0"


def test_other_images_and_another_protocol_are_refused_in_one_line(forecast):
    for entry, options, said in (
        (entry_of(usual(forecast), "cafe"), {}, "its images are others than those of the study mnist"),
        (entry_of(usual(forecast)), {"images": 100}, "other options (images: 2000 -> 100)"),
    ):
        told = read.expected(entry, config(**options), [forecast])
        assert said in told["refused"] and "\n" not in told["refused"] and told.keys() == {"refused"}
    elsewhere = entry_of(usual(forecast)) | {"weights": {"extractor": "e2"}}
    refused = read.expected(elsewhere, config(), [forecast])["refused"]
    assert refused == "the forecast was fitted on figures by other networks: the extractor's weights differ"
    older = forecast | {"protocol_version": PROTOCOL_VERSION - 1}
    assert "figures of version" in read.expected(entry_of(usual(forecast)), config(), [older])["refused"]


def test_the_page_has_the_forecast_or_says_how_one_makes_it_and_nothing_else(forecast, capsys):
    head = {
        "kind": "",
        "path": "",
        "images": 1,
        "places": [1],
        "channels": 1,
        "curves": {},
        "left_out": {},
        "remarks": {},
    }
    one = head | entry_of(usual(forecast))
    report = {"protocol": {"options": {}}, "tokenizers": [one]}
    without = report_page(report, [{}]).partition("<h2>Forecast")[2].partition("<h2>")[0]
    assert "scripts/study.sh --forecast" in without and "<table" not in without
    one["forecast"] = read.expected(one, config(), [forecast])
    shown = report_page(report, [{}]).partition("<h2>Forecast")[2].partition("<h2>")[0]
    assert "1.00 (a factor of 1.0" in shown and "SiT" in shown and "study.sh" not in shown
    print_table(report)
    assert "expected of generators" in capsys.readouterr().out
    one["forecast"] = {"refused": "it is <odd>"}
    assert "none: it is &lt;odd&gt;" in report_page(report, [{}])


def test_a_file_that_is_no_forecast_is_refused(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match="mine.json is no forecast of this version"):
        read.kept_forecasts(str(tmp_path / "mine.json"))


def test_its_tables_and_picture_are_made_from_the_file_alone(forecast, tmp_path):
    text = in_words(json.loads(json.dumps(forecast)))
    assert "over 27 autoencoders of 9 rows" in text and "| rFID |" in text and "| flow_semantic |" in text
    assert "Chosen" in text and "rFID (+" in text and "linear probe (-" in text
    draw(forecast, tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
