"""The counted arithmetic of a cell's stages."""

import pytest

from study.cost import count_tflop
from study.plan import Cell, Plan
from study.table import TABLES, read_table


@pytest.fixture
def plan(tmp_path):
    return Plan(read_table(TABLES / "mnist.yaml"), tmp_path / "runs")


def test_the_arithmetic_of_each_generator_is_its_own(plan):
    stages = plan.stages_of(Cell("none", "trained", 1))
    sit, mar = (count_tflop(stages, name) for name in ("sit", "mar"))
    assert 0 < sit != mar > 0


def test_the_arithmetic_of_an_opening_counts_once_in_its_steps_even_where_it_outlasts_the_training(plan):
    def counted(row, *words):
        stages = Plan(plan.table, plan.runs, words).stages_of(Cell(row, "trained", 1))
        return count_tflop(stages, "autoencoder")

    of_a_step = (counted("flow_semantic") - counted("none")) / 3600
    for words, steps in ([], 799), (["train.steps=5"], 5):
        opening = counted("distribution", *words) - counted("distribution_ramped", *words)
        assert opening == pytest.approx(of_a_step * steps, rel=1e-3)


@pytest.mark.parametrize("name", ["prior", "autoencoder", "sit"])
def test_micro_batches_have_together_the_arithmetic_of_the_whole_batch(name, plan):
    def counted(accumulation):
        words = [f"train.accumulation={accumulation}", "train.global_batch=64", "train.steps=2"]
        return count_tflop(Plan(plan.table, plan.runs, words).stages_of(Cell("flow_semantic", "trained", 1)), name)

    assert counted(2) == pytest.approx(counted(1), rel=1e-3)


def test_cells_that_differ_by_their_seeds_alone_are_counted_once(plan, monkeypatch):
    counts = []
    monkeypatch.setattr("study.cost._counted", {})
    monkeypatch.setattr("study.cost._count_tflop", lambda *_: counts.append(None) or float(len(counts)))
    found = {
        (row, seed): count_tflop(plan.stages_of(Cell(row, "trained", seed)), "sit")
        for row in ("none", "kl")
        for seed in (1, 2)
    }
    assert found == {("none", 1): 1, ("none", 2): 1, ("kl", 1): 2, ("kl", 2): 2}
    assert count_tflop(plan.stages_of(Cell("none", "short", 1)), "sit") == 3
