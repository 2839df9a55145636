import json
from dataclasses import dataclass

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.run.reporting import RunLog, read_log
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig


@dataclass
class Config:
    train: TrainConfig = option(TrainConfig, "loop")
    optim: OptimConfig = option(OptimConfig, "optimiser")


@pytest.mark.parametrize("saved", ["checkpoints/step_00000001", "result.json"])
def test_a_folder_in_which_something_is_saved_refuses_a_run_of_other_options_and_keeps_its_config(saved, tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(Config(), World())
    before = (folder.path / "config.yaml").read_bytes()
    (folder.path / saved).parent.mkdir(exist_ok=True)
    (folder.path / saved).touch()
    with pytest.raises(UserError, match=r"optim.lr: 0.0001 -> 0.1.*write run_dir=") as refusal:
        folder.open(Config(optim=OptimConfig(lr=0.1)), World())
    assert str(folder.path) in str(refusal.value) and (folder.path / "config.yaml").read_bytes() == before


def test_a_folder_in_which_nothing_is_saved_takes_on_the_corrected_options(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(Config(), World())
    folder.open(Config(optim=OptimConfig(lr=0.1)), World())
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["optim"]["lr"] == 0.1


def test_a_folder_goes_on_with_other_options_of_logging_and_loading(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(Config(), World())
    folder.complete({"seconds": 1})
    begun = (folder.path / "config.yaml").read_text()
    folder.open(
        Config(
            train=TrainConfig(loader_workers=2, log_steps=1, checkpoint_steps=7, keep_checkpoints=5, tensorboard=False)
        ),
        World(),
    )
    assert (folder.path / "config.yaml").read_text() == begun and folder.read_result("")["seconds"] == 1


def test_the_resolved_config_lies_in_the_folder(tmp_path):
    RunFolder(tmp_path, "stage").open(Config(optim=OptimConfig(lr=3e-5)), World())
    assert yaml.safe_load((tmp_path / "stage" / "config.yaml").read_text())["optim"]["lr"] == 3e-5


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into"):
        RunFolder(tmp_path / "file", "stage").open(Config(), World())


def test_a_stage_is_complete_with_its_result_and_before_that_says_what_to_run(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    assert not folder.is_complete()
    with pytest.raises(UserError, match="run `make it` first"):
        folder.read_result("make it")
    folder.complete({"loss": 0.5})
    assert folder.is_complete() and folder.read_result("make it") == {"loss": 0.5}


def test_a_stopwatch_adds_up_over_the_runs_of_a_stage(tmp_path):
    watch = Stopwatch(tmp_path)
    watch.start -= 100
    watch.save()
    watch = Stopwatch(tmp_path)
    assert 100 <= watch.seconds() < 160
    watch.restart()
    assert watch.seconds() < 60


def test_a_run_that_gives_way_to_other_options_leaves_them_no_seconds(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(Config(), World())
    watch = Stopwatch(folder.path)
    watch.start -= 100
    watch.save()
    folder.open(Config(), World())
    assert Stopwatch(folder.path).seconds() >= 100
    folder.open(Config(optim=OptimConfig(lr=0.1)), World())
    assert Stopwatch(folder.path).seconds() < 60


@given(written=st.integers(0, 12), start=st.integers(0, 14))
def test_a_log_drops_the_lines_after_the_resumed_step_and_no_others(written, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    log = RunLog(folder, tensorboard=False)
    for step in range(1, written + 1):
        log.write(step, {"loss": step / 2})
    RunLog(folder, start, tensorboard=False).write(start + 1, {"loss": 9.0})
    kept = [{"step": step, "loss": step / 2} for step in range(1, min(written, start) + 1)]
    assert read_log(folder / "log.jsonl") == kept + [{"step": start + 1, "loss": 9.0}]


def test_an_unfinished_last_line_is_passed_over_wherever_it_ends(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.25})
    whole = log.file.read_text()
    for cut in range(whole.rindex("{"), len(whole) - 1):
        log.file.write_text(whole[:cut])
        assert [row["step"] for row in read_log(log.file)] == [1, 2]
        RunLog(tmp_path, 3, tensorboard=False).write(3, {"loss": 0.25})
        assert log.file.read_text() == whole


def test_a_damaged_line_inside_is_a_user_error_that_names_it(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 of .*log.jsonl"):
        read_log(file)


def test_every_line_is_strict_json_also_for_values_that_are_not_finite(tmp_path):
    RunLog(tmp_path, tensorboard=False).write(1, {"a": float("nan"), "b": float("-inf"), "c": 1.5})

    def refuse(constant):
        raise ValueError(constant)

    row = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": "nan", "b": "-inf", "c": 1.5}


def test_a_run_that_has_begun_goes_on_with_the_same_inputs_only(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(TrainConfig(), World(), {"prior": "aa", "data": "bb"})
    folder.complete({})
    folder.open(TrainConfig(), World(), {"prior": "aa", "data": "bb"})
    folder.open(TrainConfig(), World(), {"data": "bb"})  # an input that is not there any more cannot have changed
    with pytest.raises(UserError, match="another prior"):
        folder.open(TrainConfig(), World(), {"prior": "cc", "data": "bb"})


def test_a_run_that_saved_nothing_yet_takes_a_corrected_config(tmp_path):
    folder = RunFolder(tmp_path, "stage")
    folder.open(TrainConfig(steps=5), World())
    folder.open(TrainConfig(steps=6), World())
    assert "steps: 6" in (tmp_path / "stage" / "config.yaml").read_text()


@pytest.mark.parametrize("lost", ["config.yaml", "inputs.json"])
def test_a_run_killed_between_its_first_two_files_gets_both_from_the_next_and_goes_on(lost, tmp_path):
    folder, inputs = RunFolder(tmp_path, "stage"), {"data": "one"}
    folder.open(Config(), World(), inputs)
    (folder.path / lost).unlink()  # what the kill kept from being written, or the disk from keeping
    folder.open(Config(), World(), inputs)
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    folder.open(Config(), World(), inputs)
    with pytest.raises(UserError, match="another data"):
        folder.open(Config(), World(), {"data": "other"})


def test_a_stage_whose_product_is_gone_is_not_complete_and_still_refuses_other_options(tmp_path):
    folder = RunFolder(tmp_path, "stage", product="model")
    folder.open(Config(), World())
    (folder.path / "model").mkdir()
    (folder.path / "model" / "config.json").touch()
    folder.complete({})
    assert folder.is_complete()
    (folder.path / "model" / "config.json").unlink()
    assert not folder.is_complete()
    with pytest.raises(UserError, match="optim.lr"):
        folder.open(Config(optim=OptimConfig(lr=0.1)), World())


def test_a_model_that_was_made_elsewhere_is_not_written_over(tmp_path):
    model = tmp_path / "stage" / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    with pytest.raises(UserError, match="was made elsewhere, and this run would write over it"):
        RunFolder(tmp_path, "stage", product="model").open(Config(), World())
    assert [file.name for file in (tmp_path / "stage").iterdir()] == ["model"]
    (tmp_path / "stage" / "result.json").touch()  # of a run, then, whose config is lost
    with pytest.raises(UserError, match="holds a run without its config.yaml"):
        RunFolder(tmp_path, "stage", product="model").open(Config(), World())


@pytest.mark.parametrize("used", [True, False])
def test_the_peak_is_the_gpus_where_one_is_used_and_else_the_resident_memory(used, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 60_000_000_000)
    assert (peak_memory_gb() == 60) is used and peak_memory_gb() > 0.1
