import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import small_run
from flowprior.data.loader import training_batches
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.reporting import TIMINGS, read_log
from flowprior.training.config import TrainConfig
from flowprior.training.loop import NonFiniteLoss, TrainingLoop
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig, learning_rate
from small_run import Points, make_loop, small_config, state_hash, train


class Stop(Exception):
    pass


def stop_before(step):
    """An ``after_optimizer_step`` that ends the run, its checkpoint of ``step`` in place."""

    def after_optimizer_step(output, done):
        if done == step:
            raise Stop
        return {}

    return after_optimizer_step


def metrics(folder):
    return [
        {name: value for name, value in row.items() if name not in TIMINGS} for row in read_log(folder / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    loop = train(folder, small_config())
    return folder, loop


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_that_stops_after_any_step_goes_on_bit_for_bit(step, uninterrupted, tmp_path):
    folder, whole = uninterrupted
    with pytest.raises(Stop):
        train(tmp_path, small_config(), after_optimizer_step=stop_before(step))
    resumed = train(tmp_path, small_config())
    assert state_hash(resumed) == state_hash(whole)
    assert resumed.objective.seen == whole.objective.seen[2 * step :]
    assert metrics(tmp_path) == metrics(folder)


def test_a_run_that_stops_many_times_goes_on_bit_for_bit(uninterrupted, tmp_path):
    for step in (2, 3, 7):
        with pytest.raises(Stop):
            train(tmp_path, small_config(), after_optimizer_step=stop_before(step))
    assert state_hash(train(tmp_path, small_config())) == state_hash(uninterrupted[1])


def test_loading_processes_change_nothing(uninterrupted):
    assert state_hash(train(None, small_config(loader_workers=2))) == state_hash(uninterrupted[1])


def test_the_seed_of_the_run_is_felt(uninterrupted):
    assert state_hash(train(None, small_config(seed=1))) != state_hash(uninterrupted[1])


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
def test_everything_that_a_checkpoint_holds_is_needed_to_go_on_exactly(name, uninterrupted, tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, small_config(), after_optimizer_step=stop_before(6))
    fresh = make_loop(None, small_config(), World())
    loop = make_loop(tmp_path, small_config(), World())
    {"model": loop.model, "ema": loop.ema, "optimizer": loop.optimizer}[name].load_state_dict(
        {"model": fresh.model, "ema": fresh.ema, "optimizer": fresh.optimizer}[name].state_dict()
    )
    loop.run(training_batches(Points(), loop.config, World(), loop.step))
    assert state_hash(loop) != state_hash(uninterrupted[1])


def test_the_log_holds_the_scheduled_rate_of_every_step(uninterrupted):
    folder, loop = uninterrupted
    rates = [row["lr"] for row in metrics(folder)]
    assert rates == pytest.approx([learning_rate(step, 12, loop.optim) for step in range(12)])


def start(python, folder, *options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [python, small_run.__file__, str(folder), *options],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def newest(folder):
    return max((int(p.parent.name[5:]) for p in folder.glob("checkpoints/step_*/manifest.json")), default=0)


def wait_for_step(folder, step, child):
    end = time.monotonic() + 120
    while newest(folder) < step:
        ended = child.exitcode if hasattr(child, "exitcode") else child.poll()
        assert ended is None and time.monotonic() < end, f"the process ended with {ended}, or is too slow"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def long_hash():
    return state_hash(train(None, small_config(40)))


def test_a_run_killed_at_random_instants_and_started_again_ends_with_the_same_bits(tmp_path, long_hash, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes = multiprocessing.get_context("forkserver")  # fresh processes that need not import torch each
    processes.set_forkserver_preload(["small_run_ready"])
    instants = []
    for _ in range(8):
        before = newest(tmp_path)
        child = processes.Process(target=small_run.run, args=(tmp_path, 40, 0.01, 0.005))
        child.start()
        wait_for_step(tmp_path, before + 1, child)
        instants.append(random.uniform(0, 0.15))
        time.sleep(instants[-1])
        assert child.is_alive(), instants
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert newest(tmp_path) < 40
    assert state_hash(train(tmp_path, small_config(40, keep_checkpoints=2))) == long_hash, instants
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 41))


def test_sigterm_saves_the_step_under_way_and_exits_143_and_the_run_goes_on_bit_for_bit(
    tmp_path, long_hash, warm_python
):
    child = start(warm_python, tmp_path, "--steps", "40", "--step-seconds", "0.05")
    wait_for_step(tmp_path, 3, child)
    child.terminate()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143, errors
    logged = metrics(tmp_path)[-1]["step"]
    resumed = make_loop(tmp_path, small_config(40), World())
    assert 3 <= resumed.step == logged < 40
    resumed.run(training_batches(Points(), resumed.config, World(), resumed.step))
    assert state_hash(resumed) == long_hash


def test_a_signal_before_a_far_checkpoint_still_saves_where_it_is(tmp_path):
    def signal_at_5(output, step):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(SystemExit) as end:
        train(tmp_path, small_config(checkpoint_steps=0), after_optimizer_step=signal_at_5)
    assert end.value.code == 143 and make_loop(tmp_path, small_config(), World()).checkpoints.steps() == [5]


@pytest.mark.parametrize("when", [5, 12])
def test_a_signal_during_an_evaluation_stops_the_run_behind_it_and_behind_the_last_one_too(when, tmp_path):
    def evaluate(step):
        if step == when:
            signal.raise_signal(signal.SIGINT)
        return {"score": float(step)}

    config = small_config(checkpoint_steps=0, eval_steps=5)
    loop = make_loop(tmp_path, config, World())
    with pytest.raises(SystemExit) as end:
        loop.run(training_batches(Points(), config, World()), evaluate)
    assert end.value.code == 130 and loop.checkpoints.steps() == [when]
    assert metrics(tmp_path)[-1] == {"step": when, "score": float(when)}
    again = train(tmp_path, config)
    assert again.step == 12 and state_hash(again) == state_hash(train(None, small_config()))


def test_a_signal_while_the_last_checkpoint_is_written_stops_what_would_follow(tmp_path, monkeypatch):
    loop, save = make_loop(tmp_path, small_config(3), World()), TrainingLoop.save

    def interrupted(self):
        save(self)
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingLoop, "save", interrupted)
    with pytest.raises(SystemExit) as end:
        loop.run(training_batches(Points(), loop.config, World()))
    assert end.value.code == 143 and 3 in loop.checkpoints.steps()


def test_the_signal_handlers_of_the_caller_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(tmp_path, small_config(2))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_to_the_whole_process_group_with_loader_processes_still_saves(tmp_path):
    command = [
        sys.executable,
        small_run.__file__,
        str(tmp_path),
        "--steps",
        "2000",
        "--step-seconds",
        "0.02",
        "--loaders",
        "2",
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(metrics(tmp_path)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors, errors
    assert metrics(tmp_path)[-1]["step"] == make_loop(tmp_path, small_config(2000), World()).step > 2


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, warm_python):
    folder = tmp_path_factory.mktemp("two")
    result = subprocess.run(
        [
            warm_python,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            small_run.__file__,
            str(folder),
            "--several",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def losses(folder):
    return torch.tensor([row["loss"] for row in metrics(folder)])


def test_one_process_two_processes_and_two_micro_batches_see_the_same_samples_and_losses(two_processes, tmp_path):
    folder, ranks = two_processes
    one = train(tmp_path / "one", small_config(accumulation=1), dropout=0.0)
    accumulated = train(tmp_path / "accumulated", small_config(accumulation=2), dropout=0.0)
    assert ranks[0]["hash"] == ranks[1]["hash"]
    by_two = [a + b for a, b in zip(ranks[0]["seen"], ranks[1]["seen"])]
    assert (
        by_two
        == one.objective.seen
        == [a + b for a, b in zip(accumulated.objective.seen[::2], accumulated.objective.seen[1::2])]
    )
    for other in (folder / "plain", tmp_path / "accumulated"):
        torch.testing.assert_close(losses(other), losses(tmp_path / "one"), rtol=1e-5, atol=0)


def test_a_run_of_two_processes_goes_on_in_one_with_two_micro_batches(two_processes, tmp_path):
    folder, _ = two_processes
    whole = losses(folder / "dropout")
    with pytest.raises(Stop):
        train(tmp_path, small_config(), after_optimizer_step=stop_before(5))
    train(tmp_path, small_config())
    torch.testing.assert_close(losses(tmp_path), whole, rtol=1e-5, atol=0)  # with dropout


def test_processes_that_find_different_checkpoints_do_not_go_on(two_processes):
    _, ranks = two_processes
    assert all("steps (0 to 2)" in rank["apart"] and "disk that all nodes share" in rank["apart"] for rank in ranks)


def test_a_checkpoint_of_two_processes_is_taken_up_by_one(two_processes, tmp_path):
    folder, _ = two_processes
    steps = folder / "dropout" / "checkpoints"
    for step in range(1, 6):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (steps / f"step_{step:08d}").rename(tmp_path / "checkpoints" / f"step_{step:08d}")
    loop = train(tmp_path, small_config())
    assert len(loop.objective.seen) == 2 * 7
    torch.testing.assert_close(losses(tmp_path), losses(folder / "dropout")[5:], rtol=1e-5, atol=0)


def test_a_value_that_is_not_finite_on_one_process_stops_all_of_them_before_the_step(two_processes):
    _, ranks = two_processes
    step = ranks[0]["poisoned_step"]
    met = [7 in rank["poisoned_seen"][-1] for rank in ranks]
    assert sorted(met) == [False, True] and step > 0 and step == ranks[1]["poisoned_step"]
    assert all(rank["unchanged"] and f"step {step}" in rank["message"] for rank in ranks)


class Constant(Objective):
    """A loss with gradient 2 whose value at the third step is what the test wants."""

    def __init__(self, value, slope):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.value, self.slope, self.calls = value, slope, 0

    def forward(self, batch, random):
        self.calls += 1
        special = self.calls == 3
        weights = self.net.weight.sum() + self.net.bias.sum()
        loss = weights * (self.slope if special else 2.0) + (self.value if special else 0.0)
        return StepOutput(loss, {"other": weights.detach()})


@pytest.mark.parametrize(
    "value, slope", [(float("nan"), 2.0), (float("inf"), 2.0), (0.0, float("nan")), (0.0, float("inf"))]
)
def test_a_loss_or_a_gradient_that_is_not_finite_stops_the_run_with_everything_untouched(value, slope, tmp_path):
    objective, config = Constant(value, slope), small_config(accumulation=1, non_finite_steps=1)
    loop = TrainingLoop(objective, objective.net, config, OptimConfig(lr=0.1), World(), tmp_path, progress=False)
    with pytest.raises(NonFiniteLoss, match="step 2 .*process 0: (loss|gradient of net.weight)"):
        loop.run(iter([{"x": torch.zeros(1)}] * 20))
    fresh = Constant(0.0, 0.0)
    resumed = TrainingLoop(
        fresh, fresh.net, small_config(accumulation=1), OptimConfig(lr=0.1), World(), tmp_path, progress=False
    )
    assert resumed.step == loop.step == 2 and state_hash(resumed) == state_hash(loop)


class Flawed(small_run.Denoise):
    """Its loss is not finite in some steps."""

    def __init__(self, steps):
        super().__init__()
        self.bad = steps

    def forward(self, batch, random):
        output = super().forward(batch, random)
        return replace(output, loss=output.loss * (float("nan") if random.step in self.bad else 1.0))


def flawed_loop(folder, steps, **options):
    objective = Flawed(steps)
    config, optim = small_config(**options), OptimConfig(lr=0.01, warmup_steps=4, weight_decay=0.01)
    return TrainingLoop(objective, objective.net, config, optim, World(), folder, progress=False)


def run_flawed(folder, steps, **options):
    loop = flawed_loop(folder, steps, **options)
    loop.run(training_batches(Points(), loop.config, World(), loop.step))
    return loop


def test_a_step_that_is_not_finite_is_skipped_whole_and_the_run_goes_on_with_the_next(tmp_path, capsys):
    loop = flawed_loop(tmp_path, [5, 6])
    hashes, seen = [], []

    def note(output, step):
        hashes.append(state_hash(loop))
        seen.append(step)
        return {}

    before = loop.train_step
    states = []
    loop.train_step = lambda *arguments: (states.append(state_hash(loop)), before(*arguments))[1]
    loop.run(training_batches(Points(), loop.config, World()), after_optimizer_step=note)
    assert seen == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11] and states[5] == states[6] == states[7] != states[8]
    assert [row.get("skipped_steps", 0) for row in metrics(tmp_path)] == [0] * 5 + [1] + [2] * 6
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in metrics(tmp_path))
    told = capsys.readouterr().err
    assert told.count(": skipped") == 2 and "step 6 is not finite (process 0: loss)" in told


@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_a_run_that_stops_among_skipped_steps_goes_on_as_if_it_had_not(stop, tmp_path):
    whole = run_flawed(tmp_path / "whole", [3, 4, 6])
    loop = flawed_loop(tmp_path / "parts", [3, 4, 6])
    loop.config.steps, steps = stop, loop.config.steps
    loop.run(training_batches(Points(), loop.config, World()))
    loop.config.steps = steps
    rates = {row["step"]: row.get("lr") for row in metrics(tmp_path / "whole")}
    resumed = flawed_loop(tmp_path / "parts", [3, 4, 6])
    assert (resumed.skipped.total, resumed.skipped.in_a_row) == {3: (0, 0), 4: (1, 1), 5: (2, 2), 6: (2, 0)}[stop]
    assert whole.skipped.total == 3 and rates[12] is not None


def test_too_many_skipped_steps_in_a_row_end_the_run_also_across_a_resumption(tmp_path):
    with pytest.raises(NonFiniteLoss, match="step 7 is not finite .process 0: loss., nor were the 2 before it"):
        run_flawed(tmp_path, [2, 3, 5, 6, 7])
    resumed = flawed_loop(tmp_path, [2, 3, 5, 6, 7])
    assert resumed.step == 7 and resumed.skipped.in_a_row == 2
    with pytest.raises(NonFiniteLoss, match="step 7"):
        resumed.run(training_batches(Points(), resumed.config, World(), resumed.step))


def test_a_network_beside_the_model_that_is_not_finite_keeps_the_model_still(tmp_path):
    loop, states = make_loop(tmp_path, small_config(), World()), []

    def train_auxiliary(output, step, autocast):
        states.append(state_hash(loop))
        if step == 4:
            raise NonFiniteLoss("process 0: the critic's loss")
        return {"critic": torch.tensor(float(step))}

    loop.objective.train_auxiliary = train_auxiliary
    loop.run(training_batches(Points(), loop.config, World()))
    assert states[4] == states[5] != states[6]
    assert [row.get("critic") for row in metrics(tmp_path)] == [0.0, 1.0, 2.0, 3.0, None, *map(float, range(5, 12))]


@pytest.mark.parametrize("clip, moved", [(0.5, 0.5), (0.0, 8**0.5), (100.0, 8**0.5)])
def test_gradients_are_clipped_to_the_norm_asked_for_and_0_switches_clipping_off(clip, moved):
    objective = Constant(0.0, 2.0)
    loop = TrainingLoop(
        objective,
        objective.net,
        small_config(1, accumulation=1),
        OptimConfig(lr=1.0, clip_norm=clip),
        World(),
        progress=False,
    )
    loop.optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)  # whose step is the gradient
    before = torch.nn.utils.parameters_to_vector(objective.parameters()).detach().clone()
    loop.run(iter([{"x": torch.zeros(1)}]))
    after = torch.nn.utils.parameters_to_vector(objective.parameters()).detach()
    assert (after - before).norm().item() == pytest.approx(moved * learning_rate(0, 1, loop.optim), rel=1e-4)


def test_evaluation_sees_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    seen = []

    def evaluate(step):
        seen.append((step, hashlib.sha256(loop.model[0].weight.numpy().tobytes()).hexdigest(), loop.model.training))
        assert torch.equal(loop.model[0].weight, loop.ema.average["0.weight"])
        return {"score": 1.0}

    config = small_config(eval_steps=5)
    loop = make_loop(tmp_path, config, World())
    loop.run(training_batches(Points(), config, World()), evaluate)
    assert [step for step, _, _ in seen] == [5, 10, 12] and not any(training for _, _, training in seen)
    assert state_hash(loop) == state_hash(train(None, small_config()))
    assert [row["step"] for row in metrics(tmp_path) if "score" in row] == [5, 10, 12]


def test_the_average_follows_the_weights_of_every_step():
    weights = []

    def note(output, step):
        weights.append(loop.model[0].weight.detach().double().clone())
        return {}

    loop = make_loop(None, small_config(), World())
    expected = loop.model[0].weight.detach().double().clone()
    loop.run(training_batches(Points(), loop.config, World()), after_optimizer_step=note)
    for step, weight in enumerate(weights):
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * weight
    assert len(weights) == 12
    torch.testing.assert_close(loop.ema.average["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_global_batch_that_does_not_divide_is_a_user_error():
    with pytest.raises(UserError, match="10 does not divide into 2 processes x 3"):
        TrainConfig(global_batch=10, accumulation=3).micro_batch(2)
    assert TrainConfig(global_batch=12, accumulation=3).micro_batch(2) == 2


class Sometimes(Objective):
    """A term that only some steps have, and rows of every micro-batch."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def forward(self, batch, random):
        loss = self.net(batch["x"]).square().mean()
        sometimes = {"sometimes": torch.tensor(float(random.step))} if random.step in (1, 2) else {}
        return StepOutput(loss, sometimes, {"rows": batch["index"].float()})


def test_a_term_that_not_every_step_has_is_logged_as_the_mean_of_the_steps_that_have_it(tmp_path):
    objective, config = Sometimes(), small_config(6, log_steps=3)
    loop = TrainingLoop(objective, objective.net, config, OptimConfig(), World(), tmp_path, progress=False)
    loop.run(training_batches(Points(), config, World()))
    assert [row.get("sometimes") for row in metrics(tmp_path)] == [1.5, None]


def test_after_a_step_the_rows_of_all_its_micro_batches_are_there_in_their_order():
    rows = {}
    for accumulation in (1, 2):
        objective, config = Sometimes(), small_config(3, accumulation=accumulation)
        loop = TrainingLoop(objective, objective.net, config, OptimConfig(), World(), progress=False)
        seen = rows[accumulation] = []
        loop.run(
            training_batches(Points(), config, World()),
            after_optimizer_step=lambda output, step, seen=seen: seen.append(output.samples["rows"].tolist()) or {},
        )
    assert rows[1] == rows[2] and all(len(step) == 8 for step in rows[1])


def test_the_log_says_which_share_of_the_time_went_by_waiting_for_batches(tmp_path):
    loop = make_loop(tmp_path, replace(small_config(), log_steps=2), World())

    def late():
        for batch in training_batches(Points(), loop.config, World()):
            time.sleep(0.02)
            yield batch

    loop.run(late())
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "waiting_for_data" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        seconds = 2 / row["steps_per_second"]
        assert 2 * loop.config.accumulation * 0.02 <= row["waiting_for_data"] * seconds <= seconds


def test_the_rate_in_the_log_is_that_of_the_steps_without_evaluations_between_them(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def pass_time(seconds):
        nonlocal now
        now += seconds

    loop = make_loop(tmp_path, replace(small_config(), log_steps=4, eval_steps=3), World())
    step = loop.train_step
    loop.train_step = lambda *words: (pass_time(0.5), step(*words))[1]
    loop.run(
        training_batches(Points(), loop.config, World()), evaluate=lambda step: pass_time(1000.0) or {"score": 1.0}
    )
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "steps_per_second" in row]
    assert [(row["step"], row["steps_per_second"]) for row in rows] == [(4, 2.0), (8, 2.0), (12, 2.0)]
