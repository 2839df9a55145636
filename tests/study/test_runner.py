"""Chains of processes, each of which takes no time: ``python -m this`` ends well, ``python -m json.tool`` of no file does not."""

import signal
from dataclasses import replace

import pytest
import torch

from flowprior.distributed import World
from flowprior.run.files import write_json
from flowprior.run.run_folder import RunFolder
from study import __main__ as study_main
from study import aside
from study.plan import Cell, Plan, PlannedStage, Task
from study.runner import LOG, Runner, forget_seconds, spent_on
from study.stages import Stage
from study.table import TABLES, read_table


def task(folder, name, *commands, after=""):
    stage = PlannedStage("stage", Stage("stage", tuple(commands), None), folder / name, ())
    return Task(name, folder / name, (stage,), after)


def test_tasks_wait_for_their_prior_and_one_that_fails_is_named_and_stops_those_behind_it_alone(tmp_path, capsys):
    good, bad = ("this",), ("json.tool",)
    tasks = [
        task(tmp_path, "bad prior", good, bad, good),
        task(tmp_path, "behind it", good, after="bad prior"),
        task(tmp_path, "prior", good),
        task(tmp_path, "cell", good, good, after="prior"),
    ]
    finished = []
    failed = Runner(tasks, 2, [], lambda done: finished.append(done.name)).run()
    assert finished == ["prior", "cell"] and failed.keys() == {"bad prior", "behind it"}
    assert "can't open" in failed["bad prior"] and "bad prior failed" in failed["behind it"]
    assert not (tmp_path / "behind it").exists()
    assert (tmp_path / "bad prior" / LOG).read_text().count("Zen of Python") == 1  # nothing runs behind what failed
    assert (tmp_path / "cell" / LOG).read_text().count("--- python -m this") == 2
    spent = spent_on(tmp_path / "cell")["stage"]
    assert 0 < spent["cpu_seconds"] and 0 < spent["seconds"]
    assert "failed: bad prior" in capsys.readouterr().err


def test_no_more_jobs_than_asked_for_go_on_at_a_time(tmp_path):
    tasks, at_work = [task(tmp_path, str(number), ("this",)) for number in range(4)], []
    runner = Runner(tasks, 2, [], lambda done: None)
    begin = runner._start

    def start(waiting, running):
        left = begin(waiting, running)
        at_work.append(len(running))
        return left

    runner._start = start
    assert runner.run() == {} and max(at_work) == 2


def test_what_ends_the_study_ends_its_processes_and_counts_their_seconds(tmp_path, monkeypatch):
    (tmp_path / "asleep.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sleeper = task(tmp_path, "sleeper", ("asleep",))
    runner = Runner([sleeper, task(tmp_path, "quick", ("this",))], 2, [], lambda done: 1 / 0)
    begun, begin = [], runner._next

    def remember(one):
        begin(one)
        begun.append(one.process)

    runner._next = remember
    with pytest.raises(ZeroDivisionError):
        runner.run()
    assert (before := spent_on(sleeper.run_dir)["stage"]["seconds"]) > 0
    assert Runner([task(tmp_path, "sleeper", ("this",))], 1, [], lambda done: None).run() == {}
    assert spent_on(sleeper.run_dir)["stage"]["seconds"] > before  # of both attempts
    both = spent_on(sleeper.run_dir)["stage"]
    forget_seconds(sleeper.run_dir, "stage", ["this"])
    assert both["seconds"] > spent_on(sleeper.run_dir)["stage"]["seconds"] == before  # of what is not run again
    forget_seconds(sleeper.run_dir, "stage", ["asleep"])
    assert spent_on(sleeper.run_dir) == {}
    assert begun and begun[0].returncode == -signal.SIGTERM


def test_jobs_are_dealt_out_over_the_gpus_and_have_a_thread_each_on_a_cpu():
    on_gpus = Runner([], 4, ["0", "3"], lambda done: None)
    assert [on_gpus._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "3", "0", "3"]
    assert Runner([], 4, [], lambda done: None)._environment(1) == {"OMP_NUM_THREADS": "1"}


def test_only_what_was_made_from_other_options_is_put_aside_and_nothing_is_lost(tmp_path):
    table = read_table(TABLES / "mnist.yaml")
    tasks = Plan(table, tmp_path / "runs").tasks([Cell("none", "trained", 1), Cell("kl", "trained", 1)])
    for number, each in enumerate(tasks):
        stage = each.stages[0]
        config = stage.config()
        config.optim.lr *= 1 + number  # the second run's is another
        folder = RunFolder(stage.run_dir, stage.stage.folder)
        folder.open(config, World())
        folder.complete({"psnr": number})
    file = tmp_path / "kl_trained_seed1.json"
    file.write_text("{}")
    aside.put_aside(tasks, [file, tmp_path / "nowhere.json"])
    there = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert there == ["kl_trained_seed1.before-1", "none_trained_seed1"]
    assert (tmp_path / "runs" / "kl_trained_seed1.before-1" / "ae" / "result.json").is_file()
    assert (tmp_path / "kl_trained_seed1.json.before-1").read_text() == "{}" and not file.exists()


def test_what_was_made_with_a_prior_that_is_put_aside_or_was_trained_again_goes_aside_as_well(tmp_path):
    tasks = Plan(read_table(TABLES / "mnist.yaml"), tmp_path / "runs").tasks([Cell("flow_semantic", "trained", 1)])
    prior, cell = tasks
    for task, inputs in ((prior, {}), (cell, {"prior": "before"})):
        stage = task.stages[0]
        config = stage.config()
        folder = RunFolder(stage.run_dir, stage.stage.folder)
        folder.open(config, World(), inputs)
        folder.complete({"fingerprint": "before"})
    aside.put_aside(tasks, [])
    assert prior.run_dir.is_dir() and cell.run_dir.is_dir()
    write_json(prior.run_dir / "flowhead" / "result.json", {"fingerprint": "after"})  # by another study's --anew
    aside.put_aside(tasks, [])
    assert prior.run_dir.is_dir() and not cell.run_dir.exists()
    (cell.run_dir.with_name(f"{cell.name}.before-1")).rename(cell.run_dir)
    config = prior.stages[0].config()
    config.optim.lr *= 2
    (prior.run_dir / "flowhead" / "result.json").unlink()
    RunFolder(prior.run_dir, "flowhead").open(config, World())
    write_json(prior.run_dir / "flowhead" / "result.json", {"fingerprint": "before"})
    aside.put_aside(tasks, [])
    assert not prior.run_dir.exists() and not cell.run_dir.exists()


def test_a_finished_task_whose_file_cannot_be_written_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    kept = []

    def keep(plan, cell, results, device):
        if cell.row == "full":
            raise OSError("no space left")
        kept.append(cell.row)

    monkeypatch.setattr(study_main, "keep", keep)
    tasks = [replace(task(tmp_path, row, ("this",)), cell=Cell(row, "trained", 0)) for row in ("full", "none", "kl")]
    failed = study_main.run_tasks(None, tasks, 1, [], tmp_path, torch.device("cpu"))
    assert failed == {"full": "no space left"} and kept == ["none", "kl"]
    assert capsys.readouterr().err.count("failed: full: its file was not written: no space left") == 1
