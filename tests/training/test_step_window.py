import time

import pytest
import torch

from flowprior.distributed import World
from flowprior.training.step_window import StepWindow


def test_a_figure_is_the_mean_over_the_steps_that_have_it_and_a_closed_window_starts_anew():
    window = StepWindow(World(), 0)
    window.add({"loss": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(2.0), "late": torch.tensor(5.0)})
    metrics = window.close(3)
    assert (metrics["loss"], metrics["late"]) == (1.5, 5.0)
    window.add({"loss": torch.tensor(7.0)})
    assert window.close(4)["loss"] == 7.0


def test_an_evaluation_counts_neither_among_the_steps_seconds_nor_as_waiting(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    window = StepWindow(World(), 10)
    window.waited += 1.0
    now = 134.0  # 4 seconds of steps, 30 of evaluation
    window.leave_out(30.0)
    metrics = window.close(18)
    assert metrics["steps_per_second"] == pytest.approx(2.0)
    assert metrics["waiting_for_data"] == pytest.approx(0.25)
    now = 135.0
    assert window.close(19)["steps_per_second"] == pytest.approx(1.0)
