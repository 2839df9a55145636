"""``scripts/slurm/train.sbatch`` on two "nodes" of this machine: real processes and signals, and SLURM's commands by a stand-in."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs import read

ROOT = Path(__file__).resolve().parents[3]
STEPS = ["train.steps=100", "train.eval_steps=0", "train.checkpoint_steps=10", "train.tensorboard=false"]


def free_job_number() -> str:
    """A job whose port of rendezvous nobody has."""
    for job in itertools.count(os.getpid()):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 20000 + job % 1000 * 10)):
                return str(job)


class Slurm:
    """A cluster of two nodes."""

    def __init__(self, scripts, folder: Path) -> None:
        self.scripts, self.folder, self.job = scripts, folder, free_job_number()
        for name in ("srun", "scancel", "scontrol"):
            command = folder / "bin" / name
            command.parent.mkdir(exist_ok=True)
            command.write_text(f"#!{sys.executable} -S\n" + Path(__file__).with_name("stand_in.py").read_text())
            command.chmod(0o755)
        # As SLURM does: what it runs is a copy elsewhere.
        (folder / "spool").mkdir()
        self.script = shutil.copy(ROOT / "scripts" / "slurm" / "train.sbatch", folder / "spool" / "slurm_script")

    def sbatch(self, name: str, *words: str, run_dir: Path, nodes: int = 2, submit_from: Path = ROOT, **variables: str):
        """Start the batch script as SLURM does on the first node."""
        command = self.scripts.command(
            name,
            *words,
            run_dir=run_dir,
            PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}",
            STAND_IN=str(self.folder),
            SLURM_SUBMIT_DIR=str(submit_from),
            SLURM_JOB_ID=self.job,
            SLURM_JOB_NUM_NODES=str(nodes),
            SLURM_JOB_NODELIST="node[0-1]",
            **variables,
        )
        command["args"] = ["bash", self.script, f"{name}.sh", *command["args"][2:]]
        return subprocess.Popen(
            **command, cwd=submit_from, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def run(self, *words: str, **options) -> tuple[int, str]:
        job = self.sbatch(*words, **options)
        output, _ = job.communicate(timeout=240)
        return job.returncode, output

    def asked(self, name: str) -> list[list[str]]:
        """What SLURM's command ``name`` has been asked for."""
        log = self.folder / "log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [words[1:] for words in lines if words[0] == name]

    def requeued(self) -> list[list[str]]:
        return [words for words in self.asked("scontrol") if words[0] == "requeue"]


@pytest.fixture
def slurm(scripts, tmp_path) -> Slurm:
    (tmp_path / "slurm").mkdir()
    return Slurm(scripts, tmp_path / "slurm")


@pytest.fixture(scope="module")
def undisturbed(scripts, tmp_path_factory) -> str:
    """The hash that two processes of one node end with."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = scripts.run("train_flowhead", *STEPS, run_dir=run_dir, NPROC="2")
    assert result.returncode == 0, result.stderr
    return read(run_dir / "flowhead" / "result.json")["fingerprint"]


def test_two_nodes_end_with_the_bits_of_two_processes_of_one_node(slurm, undisturbed, tmp_path):
    code, output = slurm.run("train_flowhead", *STEPS, run_dir=tmp_path / "run")
    assert code == 0, output
    assert read(tmp_path / "run" / "flowhead" / "result.json")["fingerprint"] == undisturbed
    assert "2 nodes with 1 process each" in output and not slurm.requeued()


def test_a_job_near_its_limit_saves_goes_into_the_queue_once_and_ends_with_the_same_bits(slurm, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    job = slurm.sbatch("train_flowhead", *STEPS, run_dir=run_dir)
    checkpoints = run_dir / "flowhead" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("step_*/manifest.json")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 143, output
    assert slurm.requeued() == [["requeue", slurm.job]] and slurm.asked("scancel") == [["--signal=TERM", slurm.job]]
    step = max(int(folder.name[5:]) for folder in checkpoints.glob("step_*"))
    assert f"stopped after step {step}; run the same command again to go on" in output and step < 100
    assert not (run_dir / "flowhead" / "result.json").exists() and not (run_dir / "flowhead" / ".lock").exists()

    code, output = slurm.run("train_flowhead", *STEPS, run_dir=run_dir, SLURM_RESTART_COUNT="1")
    assert code == 0, output
    assert f"going on from step {step}" in output and "start 2" in output
    assert read(run_dir / "flowhead" / "result.json")["fingerprint"] == undisturbed
    assert len(slurm.requeued()) == 1


def test_a_run_that_fails_is_not_requeued(slurm, tmp_path):
    code, output = slurm.run("train_flowhead", "train.steps=many", run_dir=tmp_path / "run", nodes=1)
    assert code == 2 and "error: " in output
    assert slurm.asked("srun") and not slurm.requeued()


def test_every_command_of_stage_3_runs_on_two_nodes(slurm, pipeline, tmp_path):
    run_dir = tmp_path / "run"
    for stage in ("ae", "mar"):  # the generator is trained already, which every node finds out by itself
        shutil.copytree(
            pipeline.run_dir / stage, run_dir / stage, ignore=shutil.ignore_patterns("samples", "evaluation.json")
        )
    code, output = slurm.run("train_mar", run_dir=run_dir)
    assert code == 0, output
    here, of_one_process = (read(run / "latents" / "manifest.json") for run in (run_dir, pipeline.run_dir))
    assert here["shards"] == of_one_process["shards"] and here["statistics"] == of_one_process["statistics"]
    assert read(run_dir / "mar" / "evaluation.json").keys() == read(pipeline.run_dir / "mar" / "evaluation.json").keys()


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("train_flowhead", {"submit_from": ROOT / "tests"}, "is not the root of the repository"),
        ("train_flow", {}, "say which script is to run"),
        ("train_flowhead", {"PYTHON": "/usr/bin/false"}, "is no interpreter with requirements.txt"),
    ],
)
def test_a_job_that_cannot_begin_says_so_in_one_line_and_starts_no_step(slurm, tmp_path, name, options, says):
    slurm.scripts.tiny_options.setdefault("train_flow", [])
    code, output = slurm.run(name, run_dir=tmp_path / "run", **options)
    [line] = output.splitlines()
    assert code == 2 and line.startswith("error: ") and says in line
    assert not slurm.asked("srun")


def test_several_nodes_do_not_make_the_environment_at_once(slurm, tmp_path):
    """In a copy of the repository that has none."""
    shutil.copytree(ROOT / "scripts", tmp_path / "copy" / "scripts")
    shutil.copy(ROOT / "requirements.txt", tmp_path / "copy")
    code, output = slurm.run("train_ae", run_dir=tmp_path / "run", submit_from=tmp_path / "copy", PYTHON="")
    [line] = output.splitlines()
    assert code == 2 and line.startswith("error: no environment: run 'bash scripts/train_ae.sh --help'")
    assert not slurm.asked("srun") and not (tmp_path / "copy" / ".venv").exists()
