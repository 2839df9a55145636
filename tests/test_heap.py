import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flowprior.heap import OWN_SETTINGS, keep_freed_memory

ROOT, HUGE_PAGES = Path(__file__).parents[1], Path("/sys/kernel/mm/transparent_hugepage/enabled")
STEPS = """
import resource, sys
from pathlib import Path
import torch
from flowprior.heap import keep_freed_memory
from scripts.benchmarks.flow_cases import toy_step

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
step = toy_step("full", torch.device("cpu"), Path()).variants["a time for 8"]
for _ in range(3):
    step()
    large = torch.ones(10 << 20)  # 40 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
    large = None
    large = torch.ones(10 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


def faults_a_step(word):
    others = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment = {name: value for name, value in others.items() if name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    command = [sys.executable, "-c", STEPS, word]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's allocator")
@pytest.mark.skipif(
    HUGE_PAGES.is_file() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge: there are few to fetch"
)
def test_a_step_takes_the_memory_that_the_one_before_it_freed():
    assert 20 * faults_a_step("kept") < faults_a_step("given back")


@pytest.mark.parametrize("name", [*OWN_SETTINGS, "GLIBC_TUNABLES"])
def test_the_environments_own_settings_stand(name, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072")
    assert not keep_freed_memory()
