"""The latent report of a cell's autoencoder: when it is made, and what its file is good for."""

import json

import pytest
import torch

from flowprior.errors import UserError
from flowprior.run.files import write_json
from study.__main__ import find_left, parse
from study.kept import cell_file, read_cells
from study.left import Left
from study.plan import Cell, Plan
from study.reports import read_report, read_reports, report_differences, report_file, reports_left, write_report
from study.table import TABLES, read_table

CELL = Cell("flow_semantic", "trained", 1)


@pytest.fixture
def plan(tmp_path):
    return Plan(read_table(TABLES / "mnist.yaml"), tmp_path / "runs")


def trained(plan, cell, fingerprint="f1"):
    """A run folder with an autoencoder, and its report as the report's command leaves it."""
    folder = plan.runs / cell.name
    write_json(folder / "ae" / "result.json", {"fingerprint": fingerprint})
    entry = {"figures": {"rfid": {"value": 0.1, "error": 0.01}}, "left_out": {"lpips": "no weights"}}
    entry |= {"about": {"images": "f00d"}, "weights": {"extractor": "e1"}}
    write_json(folder / "report" / "report.json", {"tokenizers": [entry]})


def finished(plan, cell, results, fingerprint="f1"):
    kept = {"format": 1, "study": "mnist", "row": cell.row, "length": cell.length, "seed": cell.seed}
    kept |= {"data": "f00d", "device": "2 cores", "device_type": "cpu"}
    write_json(cell_file(results, cell), kept | {"figures": {"autoencoder": {"fingerprint": fingerprint}}})


def reported(plan, cell, results):
    trained(plan, cell)
    file, spent = report_file(results, cell), {"seconds": 2.0, "cpu_seconds": 1.0}
    write_report(file, "mnist", cell, plan.report_stages(cell), spent, torch.device("cpu"))
    return file


def test_a_report_waits_for_its_cell_and_its_words_name_the_autoencoder_and_its_images(plan):
    task = plan.report_task(CELL)
    assert task.after == CELL.name and task.is_report and task.run_dir == plan.runs / CELL.name
    [(name, _, command)] = task.commands
    assert name == "report" and command[0] == "latent_report"
    assert str(plan.runs / CELL.name / "ae" / "autoencoder") in command and "data.source=mnist" in command
    config = task.stages[0].config()
    assert (config.data.source, config.images, config.flow.steps) == ("mnist", 2000, 600)
    assert config.out == str(plan.runs / CELL.name / "report") and config.prior == ""
    tasks = Left([CELL], [CELL]).tasks(plan)
    assert [t.name for t in tasks] == ["prior_semantic_seed1", CELL.name, f"{CELL.name}.report"]


def test_a_file_has_the_figures_and_what_they_were_made_from_and_is_no_cell(plan, tmp_path):
    file = reported(plan, CELL, tmp_path / "results")
    kept = read_report(file, "mnist")
    assert kept["figures"] == {"rfid": {"value": 0.1, "error": 0.01}} and kept["autoencoder"] == "f1"
    assert kept["weights"] == {"extractor": "e1"}
    assert kept["made_from"].keys() == {"prior", "autoencoder", "report"}
    assert "out" not in kept["made_from"]["report"] and kept["made_from"]["report"]["flow"]["steps"] == 600
    assert read_cells(tmp_path / "results", "mnist") == [] and len(read_reports(tmp_path / "results", "mnist")) == 1
    copied = report_file(tmp_path / "results", Cell("none", "trained", 1))
    copied.write_text(file.read_text())
    with pytest.raises(UserError, match="holds the cell flow_semantic_trained_seed1"):
        read_report(copied, "mnist")


def test_it_is_kept_where_the_plan_would_make_it_again_and_an_option_that_it_does_not_know_counts_as_its_default(
    plan, tmp_path
):
    kept = read_report(reported(plan, CELL, tmp_path), "mnist")
    of_cell = {"data": "f00d", "figures": {"autoencoder": {"fingerprint": "f1"}}}
    assert report_differences(kept, plan, CELL, of_cell) == [] == report_differences(kept, plan, CELL, None)
    other = {"data": "cafe", "figures": {"autoencoder": {"fingerprint": "f2"}}}
    said = ["other images than the finished cell's", "another autoencoder than the finished cell's"]
    assert report_differences(kept, plan, CELL, other) == said
    del kept["made_from"]["autoencoder"]["regulariser"]["flow"]["opening_weight"]
    assert report_differences(kept, plan, CELL, of_cell) == []
    kept["made_from"]["report"]["images"] = 7
    kept["made_from"]["autoencoder"]["optim"]["lr"] = 0.5
    told = "; ".join(report_differences(kept, plan, CELL, of_cell))
    assert "report images: 7 -> 2000" in told and "autoencoder optim.lr: 0.5 -> 0.003" in told
    assert report_differences(kept | {"protocol_version": 1}, plan, CELL, of_cell)[0].startswith("figures of version 1")


def test_finished_cells_get_theirs_later_where_the_run_folder_holds_their_autoencoder(plan, tmp_path, capsys):
    cells, results = [Cell("none", "trained", seed) for seed in range(1, 6)], tmp_path / "results"
    new, here, gone, other, done = cells
    for cell in (here, gone, other, done):
        finished(plan, cell, results)
    trained(plan, here)
    trained(plan, other, "of another training")
    reported(plan, done, results)
    assert reports_left(plan, cells, [new], results, anew=False) == [new, here]
    said = capsys.readouterr().err
    assert f"{gone.name} and 1 more cannot be reported on" in said


def test_a_report_of_something_else_is_refused_by_its_name_and_made_anew_on_demand(plan, tmp_path):
    results = tmp_path / "results"
    finished(plan, CELL, results)
    file = reported(plan, CELL, results)
    kept = json.loads(file.read_text())
    kept["made_from"]["report"]["flow"]["steps"] = 5
    write_json(file, kept)
    with pytest.raises(UserError, match=r"seed1.report.json \(report flow.steps: 5 -> 600\) .* write --anew"):
        reports_left(plan, [CELL], [], results, anew=False)
    assert reports_left(plan, [CELL], [], results, anew=True) == [CELL]


def test_a_cell_that_is_trained_again_gets_a_new_report_even_of_equal_options(plan, tmp_path):
    results = tmp_path / "results"
    reported(plan, CELL, results)
    assert reports_left(plan, [CELL], [CELL], results, anew=False) == [CELL]
    finished(plan, CELL, results)
    assert reports_left(plan, [CELL], [], results, anew=False) == []


def test_reports_are_made_where_they_are_asked_for_alone(plan, tmp_path):
    for words, expected in (([], []), (["--report"], [CELL])):
        left = find_left(plan, [CELL], tmp_path / "results", parse(words))
        assert left == ([CELL], expected)
