"""The benchmark at toy size, and the tables of docs/speed.md against the results that are kept."""

import json
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from flowprior.training import loop as training_loop
from flowprior.training.compilation import compile_parts
from scripts.benchmarks import flow_cases
from scripts.benchmarks.cases import CASES
from scripts.benchmarks.measure import Case, Effort, count_flop, data_sheet_rate, measure
from scripts.benchmarks.table import PAGE, RESULTS, left_out, of_plain, page_tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def benchmark(warm_python):
    def benchmark(*words: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHON": warm_python, "OMP_NUM_THREADS": "1"}
        command = ["bash", "scripts/benchmark.sh", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return benchmark


def test_every_case_is_measured_and_the_faster_way_of_each_does_less_arithmetic(tmp_path, benchmark):
    done = benchmark("--tiny", "--out", tmp_path / "tiny.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert result["cases"].keys() == CASES.keys() and all(name in done.stdout for name in CASES)
    for case in result["cases"].values():
        for metrics in case["variants"].values():
            assert metrics["seconds"] > 0 and metrics["samples_per_second"] > 0
            assert metrics.get("times_less_flop", 1) > 0.999
    compared = {name: list(case["variants"].values()) for name, case in result["cases"].items()}
    compared = {name: variants for name, variants in compared.items() if len(variants) > 1 and variants[0]["gflop"]}
    assert len(compared) == 7
    for name, variants in compared.items():
        assert (variants[-1]["times_less_flop"] > 1) == (name != "training from files")


def test_a_profile_names_the_operators_that_take_most_of_the_time(tmp_path, benchmark):
    done = benchmark("--tiny", "--profile", "--only", "flow prior step", "--out", tmp_path / "tiny.json")
    assert done.returncode == 0, done.stderr
    variants = json.loads((tmp_path / "tiny.json").read_text())["cases"]["flow prior step"]["variants"]
    for name, metrics in variants.items():
        shares = list(metrics["largest_costs"].values())
        assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
        assert f"flow prior step: {name}: {next(iter(metrics['largest_costs']))} " in done.stdout


def test_a_case_that_is_not_there_is_one_line_that_lists_those_that_are(benchmark):
    done = benchmark("--only", "nothing")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "MAR sampling" in done.stderr


def test_the_pages_tables_are_those_of_the_results_that_are_kept():
    kept = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
    assert kept and all(result["cases"].keys() <= CASES.keys() for result in kept)
    assert page_tables() in PAGE.read_text()


def test_what_is_left_of_the_plain_ways_seconds_is_written_as_a_share_or_as_a_multiple():
    assert [of_plain(times) for times in (2.35, 0.996, 0.885)] == ["1 / 2.35", "1 / 1.00", "1.13"]


@pytest.mark.parametrize("compiler", [True, False])
def test_the_toys_step_is_compiled_too_where_there_is_a_compiler(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(flow_cases, "TOY", flow_cases.TINY)

    def backend(graph, inputs):
        if not compiler:
            raise InvalidCxxCompiler
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(training_loop, "compile_parts", partial(compile_parts, backend=backend))
    case, name = flow_cases.toy_step("full", torch.device("cpu"), tmp_path), "a time for 8, compiled"
    assert (name in case.variants) == compiler and (name in case.left_out) != compiler
    assert len(case.variants) == 3 + compiler and all(call() is not None for call in case.variants.values())
    told = left_out({"cases": {"toy step": measure(case, torch.device("cpu"), Effort(1, 0.0))}})
    assert len(told) == 1 - compiler and all(
        f"toy step: {name}: left out: torch.compile failed" in line for line in told
    )


def test_the_arithmetic_of_attention_is_counted_forward_and_backward():
    batch, heads, tokens, width = 2, 3, 8, 4
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    product = (
        2 * batch * heads * tokens * tokens * width
    )  # scores and mean values forward, two gradients of each backward

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert count_flop(attend, torch.device("cpu")) == 2 * product
    assert count_flop(lambda: attend().sum().backward(), torch.device("cpu")) == 6 * product


def test_what_is_to_be_forgotten_is_forgotten_before_every_timed_call_however_short_it_is():
    made = []
    case = Case("", "calls", 1, {"cold": lambda: made.append("call")}, forget={"cold": lambda: made.append("forget")})
    measure(case, torch.device("cpu"), Effort(3, 1e-4))
    assert made[-6:] == ["forget", "call"] * 3 and made.count("forget") == 3


def test_the_cases_of_a_cold_disk_forget_every_variant(tmp_path):
    for number, name in enumerate(("places of images, cold", "reading files, cold")):
        (tmp_path / str(number)).mkdir()
        case = CASES[name]("tiny", torch.device("cpu"), tmp_path / str(number))
        assert case.forget.keys() == case.variants.keys() and not case.before


@pytest.mark.parametrize(
    "name, tflop_per_second",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100 80GB PCIe", 312),
    ],
)
def test_a_card_has_the_rate_of_its_own_data_sheet(name, tflop_per_second, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert data_sheet_rate(torch.device("cuda")) == tflop_per_second * 1e12


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "another"])
def test_a_slice_of_a_card_or_a_laptops_has_no_rate_of_the_full_one(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert data_sheet_rate(torch.device("cuda")) is None
