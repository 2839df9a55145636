"""How far it is from stage 2's command to its first ``backward()``."""

import subprocess

MOST = 39
WORDS = ["tokenizer.train_ae", "--preset", "digits", "regulariser.name=none"]


def test_a_reader_of_stage_2_meets_no_more_files_than_counted_before_its_first_backward(
    repository, tmp_path, warm_python
):
    command = [warm_python, "tests/helpers/files_run.py", *WORDS, f"run_dir={tmp_path / 'run'}"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert run.returncode == 0, run.stderr
    files = [
        line.split(": ")[0] for line in run.stdout.splitlines() if ".py: " in line and not line.startswith("tests/")
    ]
    assert {"tokenizer/train_ae.py", "flowprior/training/loop.py", "tokenizer/objective.py"} <= set(files)
    assert len(files) <= MOST, "\n".join(files)
