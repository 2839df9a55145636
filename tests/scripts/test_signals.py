"""Signals to the scripts themselves, as a supervisor sends them that knows of no other process."""

import os
import signal
import subprocess
import sys
import time

import pytest

# Interpreters of their own, torchrun's processes too: signals are for them.
PLAIN = {"PYTHON": sys.executable, "PYTHON_EXEC": sys.executable}
ENDLESS = ["train.steps=1000000", "train.checkpoint_steps=2", "train.eval_steps=0", "train.log_steps=1"]


def begun(process, checkpoints):
    """The newest whole checkpoint's step, once there is one."""
    deadline = time.monotonic() + 240
    while True:
        steps = [int(p.parent.name[5:]) for p in checkpoints.glob("step_*/manifest.json")]
        if steps:
            return max(steps)
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def alive(group):
    """Whether any process of the group is left; those that only wait to be read do not count."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


def stopped(scripts, run_dir, processes, send):
    """Start an endless run, let ``send`` signal it, and see it end well; what was on stderr, and the step that it stopped after."""
    command = scripts.command("train_flowhead", *ENDLESS, run_dir=run_dir, NPROC=processes, **PLAIN)
    process = subprocess.Popen(**command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoints = run_dir / "flowhead" / "checkpoints"
    before = begun(process, checkpoints)
    while begun(process, checkpoints) == before:
        time.sleep(0.05)
    send(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 143, errors
    assert "stopping after this step" in errors and "Traceback" not in errors
    step = max(int(p.parent.name[5:]) for p in checkpoints.glob("step_*/manifest.json"))
    said = f"stopped after step {step}; run the same command again to go on"
    # The last line, behind the bar; torchrun has more to say.
    assert errors.splitlines()[-1] == said if processes == "1" else said in errors
    deadline = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)
    return step


@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_saves_the_step_under_way_and_leaves_no_process_behind_also_where_it_comes_twice(
    processes, scripts, tmp_path
):
    # The script hands on what its processes have had as well, as when timeout ends it.
    first = stopped(scripts, tmp_path, processes, os.killpg)
    assert stopped(scripts, tmp_path, processes, os.kill) > first


def test_sigterm_to_a_script_of_scripts_ends_the_stage_under_way_and_starts_no_other(scripts, tmp_path):
    words = " ".join([*(w.replace(", ", ",") for w in scripts.tiny_options["train_flowhead"]), *ENDLESS])
    variables = {"RUNS": str(tmp_path), "SEEDS": "0", "REGULARISERS": "none", "JOBS": "1", "PRIOR_WORDS": words}
    command = scripts.command("compare_digits", tiny=False, **PLAIN, **variables)
    process = subprocess.Popen(**command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    begun(process, tmp_path / "prior_seed0" / "flowhead" / "checkpoints")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 143 and not alive(process.pid)
    assert "stopped after step" in (tmp_path / "prior_seed0.log").read_text() and not (tmp_path / "none_seed0").exists()
