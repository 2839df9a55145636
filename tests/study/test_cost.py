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


def test_the_arithmetic_of_an_opening_counts_in_its_steps(plan):
    handed, ramped = (
        count_tflop(plan.stages_of(Cell(row, "trained", 1)), "autoencoder")
        for row in ("distribution", "distribution_ramped")
    )
    plain, none = (
        count_tflop(plan.stages_of(Cell(row, "trained", 1)), "autoencoder") for row in ("flow_semantic", "none")
    )
    assert handed - ramped == pytest.approx((plain - none) * 799 / 3600, rel=1e-3)


def test_an_opening_that_outlasts_the_training_counts_once_in_each_of_its_steps(plan):
    steps = 5
    handed, ramped = (
        count_tflop(
            Plan(plan.table, plan.runs, (f"train.steps={steps}",)).stages_of(Cell(row, "trained", 1)), "autoencoder"
        )
        for row in ("distribution", "distribution_ramped")
    )
    plain, none = (
        count_tflop(plan.stages_of(Cell(row, "trained", 1)), "autoencoder") for row in ("flow_semantic", "none")
    )
    assert handed - ramped == pytest.approx((plain - none) * steps / 3600, rel=1e-3)
