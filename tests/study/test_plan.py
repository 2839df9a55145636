"""What a study plans, keeps and shows, without a run."""

from dataclasses import replace

import pytest

from finished_cells import kept_of
from flowprior.data.images import open_images
from flowprior.errors import UserError
from flowprior.run.files import write_json
from study import page
from study.__main__ import check_data, make_plan, parse
from study.estimate import estimate, known_rate
from study.kept import cell_file, differences, read_cell
from study.left import cells_left
from study.plan import Cell, Plan
from study.table import TABLES, read_table

STUDIES = sorted(file.stem for file in TABLES.glob("*.yaml"))


@pytest.fixture
def plan(tmp_path):
    return Plan(read_table(TABLES / "mnist.yaml"), tmp_path / "runs")


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_a_study_is_words_that_its_stages_take(name, tmp_path):
    plan = Plan(read_table(TABLES / f"{name}.yaml"), tmp_path, ("data.path=somewhere",) * (name == "emoji"))
    cells = plan.cells(["all", "grid"], list(plan.table.lengths), 0)
    assert {cell.row for cell in cells} == set(plan.table.rows)
    for cell in cells:
        configs = {stage.name: stage.config() for stage in plan.stages_of(cell)}
        assert {config.train.seed for config in configs.values()} == {cell.seed}
        assert configs["autoencoder"].evaluate.latent_noise_shares == (0.2,)
        assert configs["sit"].sample.cfg == (1, 1.25, 1.5, 2) and configs["sit"].sample.seed == cell.seed
        assert configs["sit"].evaluate.extractor == configs["autoencoder"].evaluate.extractor != ""
        needs = any(section.needs_prior for section in configs["autoencoder"].regulariser.chosen)
        assert needs == ("prior" in configs)
        if needs:
            assert configs["prior"].channels == configs["autoencoder"].model.channels


def test_cells_come_seed_by_seed_and_the_selection_seed_and_its_grids_first_and_only_where_they_belong(plan):
    cells = plan.cells(["none", "flow_semantic", "flow_semantic_0.01"], ["trained", "short"], 2)
    rows = ("none", "flow_semantic")
    assert cells == [
        *(Cell(row, "trained", 0) for row in (*rows, "flow_semantic_0.01")),
        *(Cell(row, length, 1) for length in ("trained", "short") for row in rows),
        *(Cell(row, "trained", 2) for row in rows),
    ]
    assert plan.cells(["none"], ["short"], 0) == []


def test_a_grid_has_every_weight_but_the_rows_own_and_its_words_win_over_the_rows(plan):
    row = plan.table.rows["flow_semantic"]
    entries = [name for name in plan.table.groups["grid"] if name.startswith("flow_semantic_")]
    assert entries == [f"flow_semantic_{w:g}" for w in row.weights if w != 0.003]
    assert {plan.table.rows[name].variant_of for name in entries} == {"flow_semantic"} != {row.variant_of}
    [stage] = [s for s in plan.task(Cell(entries[0], "trained", 0)).stages if s.name == "autoencoder"]
    assert stage.config().regulariser.flow.weight == row.weights[0] != 0.003


def test_the_lengths_share_their_prior_and_the_generators_their_autoencoder(plan):
    cells = plan.cells(["flow_semantic", "flow_noise"], ["trained", "short"], 1)
    tasks = plan.tasks(cells)
    priors = [task for task in tasks if task.cell is None]
    assert [task.name for task in priors] == ["prior_semantic_seed0", "prior_semantic_seed1"]
    for task in tasks:
        if task.cell:
            assert tasks.index(next(t for t in tasks if t.name == task.after)) < tasks.index(task)
            assert [stage.name for stage in task.stages] == ["autoencoder", "sit", "mar"]
            assert {stage.run_dir for stage in task.stages} == {plan.runs / task.cell.name}
            [prior] = [word for word in task.stages[0].words if word.startswith("prior=")]
            assert prior == f"prior={plan.runs / task.after / 'flowhead' / 'prior'}"


def test_a_simflow_row_is_trained_by_its_own_commands(plan):
    commands = [command.words[0] for command in plan.task(Cell("simflow", "trained", 1)).commands]
    assert commands[:2] == ["simflow.train_simflow", "simflow.evaluate_ae"] and commands[2:] == ["sit"] * 5


@pytest.mark.parametrize(
    "rows, said", [(["nun"], "no row or group 'nun'"), (["flow_semantic_0.003"], "flow_semantic_0.003")]
)
def test_a_row_that_is_not_there_is_named_beside_those_that_are(plan, rows, said):
    with pytest.raises(UserError, match=said) as error:
        plan.cells(rows, ["trained"], 1)
    assert "minimum" in str(error.value) and "flow_noise" in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("rows: {a: {target: moon}}", "wants the target 'moon'"),
        ("rows: {a: {generators: [gan]}}", "rows.a.*sit, mar"),
        ("rows: {a: {words: x}}", "rows.a.words"),
        ("rows: {a: {}}\ngroups: {minimum: b}", "names b"),
        ("rows: {a: {}}\ncolumns: 3", "'columns'"),
        ("preset: digits", "no rows"),
        (
            "rows: {a: {}}\noptions: {ae: train.steps=1}",
            "options of 'ae': its stages are autoencoder, mar, prior, report, sit",
        ),
        ("rows: {a: {}}\ngroups: {g: [a]}", "groups of the study .* are lines of words"),
        ("rows: {a: {}}\ngroups: [a]", "groups of the study .* are lines of words"),
        ("rows: {a: {}}\nselection_seed: x", "selection_seed .* not 'x'"),
        ("rows: {a: {variant_of: b}}", "row a .* variant_of 'b': name a row of it"),
        ("rows: {a: {}, b: {variant_of: a}, c: {variant_of: b}}", "row c .* no variant itself"),
        ("rows: {a/b: {}}", "'a/b' among the rows"),
        ("rows: {a: {options: 'x=\"1', weight: y, weights: [1]}}", "cannot be read .No closing quotation"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{text}\ntargets: {{t: {{preset: digits}}}}\nlengths: {{l: {{}}}}\n")
    with pytest.raises(UserError, match=said):
        read_table(file)


def test_a_kept_cell_that_was_made_from_the_same_options_differs_in_nothing(plan):
    cell = Cell("flow_semantic", "trained", 1)
    assert differences(kept_of(plan, cell), plan.stages_of(cell)) == []


def test_what_a_kept_cell_was_made_from_otherwise_is_named_option_by_option(plan):
    cell = Cell("flow_semantic", "trained", 1)
    kept = kept_of(plan, cell)
    kept["made_from"]["autoencoder"]["optim"]["lr"] = 0.5
    kept["made_from"]["prior"]["projection"] = "pca"
    kept["measured"]["sit"]["sample"]["count"] = 7
    del kept["made_from"]["mar"], kept["measured"]["mar"]
    told = "; ".join(differences(kept, plan.stages_of(cell)))
    for part in (
        "no mar",
        "autoencoder optim.lr: 0.5 -> 0.003",
        "prior projection: pca -> random",
        "sit sample.count: 7 -> 5000",
    ):
        assert part in told, part
    assert differences(kept_of(plan, cell), plan.stages_of(Cell("flow_semantic", "trained", 2)))
    without = plan.stages_of(Cell("none", "trained", 1))
    assert "a prior more" in differences(kept_of(plan, cell), without)


def test_an_option_that_a_kept_cell_does_not_know_yet_counts_as_its_default(plan):
    cell = Cell("none", "trained", 1)
    kept = kept_of(plan, cell)
    del kept["made_from"]["autoencoder"]["loss"]["latent_noise_kind"], kept["measured"]["sit"]["sample"]["exact"]
    assert differences(kept, plan.stages_of(cell)) == []


def test_a_file_that_is_no_finished_cell_is_refused(tmp_path):
    file = cell_file(tmp_path, Cell("none", "trained", 1))
    write_json(file, {"format": 99})
    with pytest.raises(UserError, match="none_trained_seed1.json is no finished cell"):
        read_cell(file, "mnist")


def test_a_file_under_another_cells_name_or_of_another_study_is_refused(tmp_path, plan):
    kept = kept_of(plan, Cell("none", "trained", 1))
    own, copied = (cell_file(tmp_path, Cell("none", "trained", seed)) for seed in (1, 3))
    for file in (own, copied):
        write_json(file, kept)
    assert read_cell(own, "mnist") == kept
    with pytest.raises(UserError, match="seed3.json holds the cell none_trained_seed1 of the study mnist"):
        read_cell(copied, "mnist")
    with pytest.raises(UserError, match="of the study mnist"):
        read_cell(own, "emoji")


def test_a_table_shows_what_it_would_make_again_and_names_the_rest(plan, capsys):
    cells = [kept_of(plan, Cell("none", "trained", seed)) for seed in (1, 2)]
    cells[1]["made_from"]["autoencoder"]["optim"]["lr"] = 0.5
    gone = kept_of(plan, Cell("none", "trained", 3), row="forgotten")
    made = page.markdown(plan.table, [*cells, gone])
    assert "| none | 1 | 28.0 |" in made and "forgotten" not in made
    said = capsys.readouterr().err
    assert "none_trained_seed2 was made from other options" in said and "optim.lr: 0.5 ->" in said
    assert "forgotten_trained_seed3" in said and "no such row" in said


def test_cells_of_different_images_are_no_table_and_none_of_other_images_counts_as_finished(plan, tmp_path):
    cells = [kept_of(plan, Cell("none", "trained", seed), data=f"images {seed}") for seed in (1, 2)]
    with pytest.raises(UserError, match="none_trained_seed1 and none_trained_seed2 .* made from different images"):
        page.markdown(plan.table, cells)
    cell = Cell("none", "trained", 1)
    write_json(cell_file(tmp_path, cell), cells[0])
    with pytest.raises(UserError, match=r"seed1.json \(other images\)"):
        cells_left(plan, [cell], tmp_path, anew=False)
    assert cells_left(plan, [cell], tmp_path, anew=True) == [cell]
    now = open_images(plan.stages_of(cell)[0].config().data).fingerprint()
    write_json(cell_file(tmp_path, cell), cells[0] | {"data": now})
    assert cells_left(plan, [cell], tmp_path, anew=False) == []


def test_seconds_are_shown_of_one_device_alone_and_a_figure_that_not_all_seeds_have_says_how_many(plan):
    cells = [kept_of(plan, Cell("none", "trained", seed)) for seed in (1, 2)]
    assert "CPU seconds" in page.markdown(plan.table, cells) and "on 2 cores" in page.markdown(plan.table, cells)
    cells[1] |= {"device": "NVIDIA H100", "device_type": "cuda"}
    cells[1]["figures"]["autoencoder"]["psnr"] = None
    made = page.markdown(plan.table, cells)
    assert "seconds" not in made and "on 2 cores and NVIDIA H100" in made and "| none | 2 | 28.0 (1 of 2) |" in made
    assert known_rate(cells, "NVIDIA H100", "sit", "none") * 4400 == pytest.approx(90 * 4400 / _steps(cells[1], "sit"))


def _steps(kept, stage):
    return kept["made_from"][stage]["train"]["steps"]


def test_a_study_of_ones_own_is_not_called_as_one_of_the_projects(tmp_path):
    (tmp_path / "mnist.yaml").write_text((TABLES / "mnist.yaml").read_text())
    with pytest.raises(UserError, match="has the name of a study that comes with the project"):
        make_plan(parse(["--data", str(tmp_path / "mnist.yaml")]))


def test_what_is_left_takes_what_finished_cells_of_this_device_took_of_its_own_row_where_there_is_one(plan):
    cells = [Cell("none", "trained", 1), Cell("kl", "trained", 1)]
    kept = [kept_of(plan, cell) for cell in cells]
    kept[1]["spent"]["autoencoder"]["cpu_seconds"] = 72.0
    steps = kept[0]["made_from"]["autoencoder"]["train"]["steps"]
    assert known_rate(kept, "2 cores", "autoencoder", "none") == pytest.approx(36 / steps)
    assert known_rate(kept, "2 cores", "autoencoder", "softvq") == pytest.approx((36 + 72) / 2 / steps)
    assert known_rate(kept, "another", "autoencoder", "none") is None

    def nothing(*_):
        raise AssertionError("measured")

    left = plan.tasks([Cell("kl", "trained", 2), Cell("kl", "short", 1)])
    stages_of = lambda task: plan.stages_of(task.cell)  # noqa: E731
    seconds, source = estimate(left, kept, "2 cores", stages_of, nothing)
    assert seconds == pytest.approx(72 + 72 / 3 + 2 * 36) and source == "2 finished cells of this device"


def test_what_no_finished_cell_tells_is_measured_once_a_stage_and_scaled_by_its_steps(plan):
    asked = []

    def measure(stages, name):
        asked.append(name)
        return 600.0

    left = plan.tasks([Cell("none", "trained", 1), Cell("none", "short", 1)])
    seconds, source = estimate(left, [], "2 cores", lambda task: plan.stages_of(task.cell), measure)
    assert asked == ["autoencoder", "sit", "mar"] and seconds == pytest.approx(600 + 200 + 4 * 600)
    assert source == "a few steps of autoencoder, mar, sit on this machine, without evaluations"


def test_the_tables_have_mean_and_spread_over_the_reported_seeds_and_guidance_from_the_selection_seed(plan):
    cells = [kept_of(plan, Cell("none", "trained", seed)) for seed in (0, 1, 2)]
    cells[0]["figures"]["sit"]["by_guidance"]["2"]["fid"] = 0.05
    cells[2]["figures"]["sit"]["by_guidance"]["2"]["fid"] = 0.5
    made = page.markdown(plan.table, cells)
    psnr = next(line for line in made.splitlines() if line.startswith("| none | 2 | 28.5"))
    assert "28.5 ± 0.7" in psnr
    sit = next(line for line in made.splitlines() if line.startswith("| none | 2 | 0.200"))
    assert "| 2.00 | 0.400 ± 0.141 |" in sit and "90.0 %" in sit
    assert "MAR" not in made and "weights" not in made


def test_a_rows_guidance_is_left_open_until_its_selection_seed_is_there_and_grids_have_a_table_of_their_own(plan):
    alone = page.markdown(plan.table, [kept_of(plan, Cell("none", "trained", 1))])
    assert "guidance" not in alone and "FID with it" not in alone
    tried = [kept_of(plan, Cell(row, "trained", 0)) for row in ("flow_semantic", "flow_semantic_0.01")]
    made = page.markdown(plan.table, tried)
    assert "autoencoders" not in made
    shown = plan.table.rows["flow_semantic"].shown
    assert f"| {shown} | 0.003 | 27.0 | 0.200 |" in made and f"| {shown} | 0.01 | 27.0 | 0.200 |" in made


def test_the_tables_of_the_page_are_those_of_the_kept_cells():
    text = page.PAGE.read_text()
    assert text[text.index(page.START) : text.index(page.END) + len(page.END)] == page.page_tables()


def test_a_study_of_files_asks_for_them_and_another_refuses_them(monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(UserError, match="DATA=<folder> bash scripts/study.sh --data emoji"):
        check_data(*make_plan(parse(["--data", "emoji"])))
    check_data(*make_plan(parse([])))
    monkeypatch.setenv("DATA", "/data/images")
    check_data(*make_plan(parse(["--data", "emoji"])))
    with pytest.raises(UserError, match="reads mnist"):
        check_data(*make_plan(parse([])))


def test_the_page_is_written_between_its_marks_alone(tmp_path, plan):
    file = tmp_path / "study.md"
    file.write_text(f"before\n\n{page.START}\nold\n{page.END}\n\nbehind\n")
    results = tmp_path / "results"
    write_json(results / "mnist" / "none_trained_seed1.json", kept_of(plan, Cell("none", "trained", 1)))
    page.put_into(file, results)
    written = file.read_text()
    assert written.startswith("before\n\n" + page.START) and written.endswith(page.END + "\n\nbehind\n")
    assert "old" not in written and "| none | 1 | 28.0 |" in written
    file.write_text("no marks")
    with pytest.raises(UserError, match="study.md has not one"):
        page.put_into(file, results)
    assert file.read_text() == "no marks"


def test_a_cell_that_was_measured_on_other_images_is_not_as_the_study_wants_it(plan):
    cell = Cell("none", "trained", 1)
    stages = plan.stages_of(cell)
    [autoencoder] = [stage for stage in stages if stage.name == "autoencoder"]
    held_out = replace(autoencoder, words=(*autoencoder.words, "held_out=/data/val"))
    now = [held_out if stage is autoencoder else stage for stage in stages]
    assert differences(kept_of(plan, cell), now) == ["autoencoder images.held_out:  -> /data/val"]
