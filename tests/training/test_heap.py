import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.training.heap import keep_freed_memory

STEPS = """
import os, resource, sys
from pathlib import Path
import torch
from scripts.benchmarks.flow_cases import toy_step

torch.set_num_threads(1)
if sys.argv[1] == "given back":
    os.environ["MALLOC_ARENA_TEST_"] = ""  # as if the environment had settings of its own; the C library has read it by now
step = toy_step("full", torch.device("cpu"), Path()).variants["a time for 16"]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


def faults_a_step(word):
    command = [sys.executable, "-c", STEPS, word]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's allocator")
def test_a_step_takes_the_memory_that_the_one_before_it_freed():
    assert faults_a_step("kept") < 100 < 1000 < faults_a_step("given back")


def test_the_environments_own_settings_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
