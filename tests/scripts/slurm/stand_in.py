"""What ``srun``, ``scancel`` and ``scontrol`` do in ``scripts/slurm/train.sbatch``, with process groups of this machine for nodes.

Installed under these three names in one folder on PATH. ``STAND_IN`` is a folder: ``tasks`` in it holds the process ids of the step's tasks,
``log`` what the commands were asked for, one JSON list a line.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])


def srun(words: list[str]) -> int:
    """One task for each node; the highest exit code, or 128 + signal. A SIGTERM to srun itself kills the tasks, as SLURM's does."""
    command = words[next(i for i, word in enumerate(words) if not word.startswith("--")) :]
    step = f"{os.environ['SLURM_JOB_ID']}.{os.getpid()}"
    tasks = []
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
        variables = {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "STAND_IN_STEP": step}
        tasks.append(subprocess.Popen(command, env=os.environ | variables, start_new_session=True))
    (FOLDER / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    signal.signal(signal.SIGTERM, lambda number, frame: kill(step))
    while None in (codes := [task.poll() for task in tasks]):
        if "--kill-on-bad-exit=1" in words and any(codes):
            kill(step)
        time.sleep(0.02)
    return max(code if code >= 0 else 128 - code for code in codes)


def kill(step: str) -> None:
    """SIGKILL to every process of the step, wherever it has gone."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"STAND_IN_STEP={step}\0".encode() in (process / "environ").read_bytes() + b"\0":
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


def scancel(words: list[str]) -> int:
    """``--signal=NAME JOB``: to the tasks themselves, and neither to their children nor to the batch script."""
    [name, job] = words
    assert job == os.environ["SLURM_JOB_ID"]
    for task in (FOLDER / "tasks").read_text().split():
        os.kill(int(task), signal.Signals[f"SIG{name.removeprefix('--signal=')}"])
    return 0


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print(*["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"]), sep="\n")
    return 0


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    with (FOLDER / "log").open("a") as log:
        print(json.dumps([name, *words]), file=log)
    sys.exit({"srun": srun, "scancel": scancel, "scontrol": scontrol}[name](words))
