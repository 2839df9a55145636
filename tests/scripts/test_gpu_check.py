"""The check of a GPU, rehearsed on a CPU: every part at toy size, and what becomes of parts that go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from flowprior.errors import UserError
from flowprior.training.compilation import compile_parts
from scripts.gpu_check import (
    agreement,
    autoencoder_steps,
    digits,
    few_step_sampling,
    generator_steps,
    mar_steps,
    sampling,
)
from scripts.gpu_check.__main__ import done_before, parse
from scripts.gpu_check.cuda_lines import cuda_only_lines, project_lines, sort_lines
from scripts.gpu_check.measuring import by_kind, largest_batch
from scripts.gpu_check.parts import PARTS, Context
from scripts.gpu_check.runner import disagreements, end, report_to, reported
from scripts.gpu_check.study_cells import multi_process_service
from scripts.gpu_check.table import END, PAGE, RESULTS, START, agreement_rows, keep, page_tables, speed_rows, summary

ROOT = Path(__file__).resolve().parents[2]


def check(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", "scripts/gpu_check.sh", "--tiny", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", [name for name in PARTS if name != "digits end to end"])
def test_every_part_runs_at_toy_size_and_agrees_with_itself_on_a_cpu(name, tmp_path, monkeypatch, warm_python):
    torch._dynamo.reset()
    monkeypatch.setattr(sys, "executable", warm_python)  # of the processes that it starts
    for module in (agreement, autoencoder_steps, few_step_sampling, generator_steps, mar_steps, sampling):
        monkeypatch.setattr(module, "compile_parts", partial(compile_parts, backend="aot_eager"))
    monkeypatch.setattr("flowprior.training.loop.compile_parts", partial(compile_parts, backend="aot_eager"))
    report = report_to(tmp_path)
    with torch._functorch.config.patch(donated_buffer=True):  # puts back what compile_parts sets
        PARTS[name].run(Context(torch.device("cpu"), True, tmp_path, report))
    torch.use_deterministic_algorithms(False)
    results = reported(tmp_path)
    values = [value for value in results.values() if isinstance(value, dict)]
    assert values and not disagreements(results)
    assert all(value["seconds"] > 0 for value in values if "samples_per_second" in value)
    recomputed = [value["recomputed_tflop"] for value in values if "recomputed_tflop" in value]
    assert len(recomputed) == (name == "autoencoder step") and all(flop > 0 for flop in recomputed)
    assert len(summary({**EMPTY, "parts": {name: {"status": "done", "results": results}}}).splitlines()) > len(values)


EMPTY = {"machine": {"device": "a card", "cores": 2}, "versions": {"torch": "2", "python": "3"}, "tiny": True}


def test_a_part_that_fails_hangs_or_runs_out_of_memory_costs_the_others_nothing_and_a_second_call_does_what_is_left(
    tmp_path,
):
    wrong = ["a part that fails", "a part that hangs", "a part that runs out of memory"]
    done = check("--only", *wrong, "numbers of sampling", "--out", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "first" / "gpu_check.json").read_text())
    parts = result["parts"]
    assert [parts[name]["status"] for name in wrong] == ["failed", "stopped", "failed"]
    assert "on purpose" in parts[wrong[0]]["why"] and "Traceback" in parts[wrong[0]]["traceback"]
    assert "allocate" in parts[wrong[2]]["why"] and "20 s" in parts[wrong[1]]["why"]
    assert all(
        parts[name]["results"] == {"before": how} for name, how in zip(wrong, ("fails", "hangs", "runs out of memory"))
    )
    assert parts["numbers of sampling"]["status"] == "done" and "CUDA graphs against plain, float32" in done.stdout
    (tmp_path / "first" / "gpu_check.json").write_text(json.dumps(result))
    again = check("--only", wrong[0], "numbers of sampling", "--done", tmp_path / "first", "--out", tmp_path / "second")
    both = json.loads((tmp_path / "second" / "gpu_check.json").read_text())
    assert (
        both["parts"]["numbers of sampling"] == parts["numbers of sampling"]
        and "a part that fails: failed" in again.stdout
    )
    # What was not to run again stands, and what it had found before it was stopped with it.
    assert all(both["parts"][name] == parts[name] for name in wrong[1:])


def test_a_check_ends_by_itself_and_names_what_it_had_no_time_for(tmp_path):
    done = check("--minutes", 0.3, "--only", "a part that hangs", "numbers of sampling", "MAR step", "--out", tmp_path)
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert done.returncode == 0 and parts["MAR step"] == {"status": "left out", "why": "the time was over"}
    assert "MAR step: left out: the time was over" in done.stdout


def test_kernels_count_as_what_they_do():
    kinds = {
        "void cudnn::fusion::compute_dot_do_o_specialized<true, 256>": "attention",
        "void pytorch_flash::flash_bwd_kernel<Flash_traits<64, cutlass::bfloat16_t>>": "attention",
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT": "products",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>": "products",
        "sm90_xmma_fprop_implicit_gemm_conv2d": "products",
        "void conv2d_grouped_direct_kernel<float>": "convolutions",
    }
    for name, kind in kinds.items():
        assert by_kind({name: 1.0}) == {kind: 1.0}


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--only", "nothing"], "MAR sampling"), (["--minutes", "0"], "--minutes"), (["--done"], "--done")],
)
def test_a_persons_mistake_is_one_line(words, told):
    with pytest.raises(UserError, match=told) as caught:
        parse(words)
    assert "\n" not in str(caught.value)


def test_a_result_of_another_device_or_of_toy_sizes_is_not_gone_on_with_or_kept(tmp_path):
    with pytest.raises(UserError, match="no result of the check|gpu_check.json"):
        done_before(tmp_path, EMPTY)
    (tmp_path / "gpu_check.json").write_text(json.dumps(EMPTY | {"parts": {}}))
    assert done_before(tmp_path, EMPTY)["parts"] == {}
    for other in (EMPTY | {"tiny": False}, EMPTY | {"machine": {"device": "another"}}):
        with pytest.raises(UserError, match="a card, toy sizes"):
            done_before(tmp_path, other)
    with pytest.raises(UserError, match="--tiny"):
        keep(EMPTY | {"parts": {}}, tmp_path)


def test_the_pages_tables_are_those_of_the_results_that_are_kept():
    kept = list((ROOT / RESULTS).glob("*.json"))
    assert kept and page_tables(ROOT) in (ROOT / PAGE).read_text()


def test_a_gradient_that_differs_by_more_than_it_may_is_a_disagreement_that_names_the_tensor():
    expected = {"loss": torch.tensor(2.0), "a": torch.ones(100), "b": torch.ones(4)}
    found = {"loss": torch.tensor(2.0), "a": torch.ones(100), "b": torch.tensor([1.0, 1.0, 1.0, 2.0])}
    result = agreement.difference(found, expected, bound=1e-3)
    assert result["largest"] == {"tensor": "b", "difference": 0.5} and not result["agree"]
    assert result["gradient"] == pytest.approx((1 / 104) ** 0.5)
    assert disagreements({"x": result, "size": "8", "y": {"agree": True}}) == ["x"]
    assert agreement.difference(expected, expected, bound=1e-3)["agree"]
    with pytest.raises(RuntimeError, match="other tensors"):
        agreement.difference({"loss": found["loss"], "a": found["a"]}, expected, bound=1e-3)


def test_a_gradient_that_vanishes_is_measured_against_the_whole_gradient():
    expected = {"loss": torch.tensor(1.0), "a": 1000 * torch.ones(1), "key bias": torch.zeros(1)}
    found = expected | {"key bias": torch.full((1,), 1e-6)}
    assert agreement.difference(found, expected, bound=1e-3)["largest"]["difference"] == pytest.approx(1e-6)


def test_the_largest_batch_that_fits_is_taken():
    def step(size: int) -> None:
        if size > 16:
            raise torch.OutOfMemoryError

    context = Context(torch.device("cpu"), True, Path(), lambda name, value: None)
    assert largest_batch(context, [64, 32, 16, 8], step) == 16
    with pytest.raises(torch.OutOfMemoryError):
        largest_batch(context, [64, 32], step)


def test_kernels_are_counted_by_what_they_do():
    times = {"nvjet_sm90_x": 3.0, "triton_poi_fused_add": 2.0, "cudnn_sdpa_flash_bprop": 1.0, "something": 2.0}
    assert by_kind(times) == {"products": 3 / 8, "compiled": 2 / 8, "other": 2 / 8, "attention": 1 / 8}


def test_rates_are_shares_of_the_rate_that_the_same_part_has_measured():
    row = {"samples": 4, "seconds": 0.5, "samples_per_second": 8.0, "tflop_per_second": 300.0, "mfu": 0.3033}
    parts = {"MAR step": {"status": "done", "results": {"matmul_tflop_per_second": 600.0, "compiled": row}}}
    assert speed_rows({"parts": parts}) == [("MAR step: compiled", "4", "0.5", "8", "300", "30 %", "50 %", "")]
    assert agreement_rows({"parts": parts}) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('if device.type == "cuda":\n    a()\n    b()\nelse:\n    c()\nd()', {2, 3}),
        ('if device.type != "cuda":\n    a()\nelse:\n    c()', {4}),
        ('def f():\n    if x.type != "cuda" or small:\n        return 1\n    go()\n    return 2', {4, 5}),
        ("def f():\n    torch.cuda.set_device(0)\n    with torch.cuda.stream(s):\n        a()", {2, 3}),
        ("if torch.cuda.is_available():\n    torch.cuda.manual_seed(1)\na()", {2}),
        ('x = best("cuda" if torch.cuda.is_available() else "cpu")', set()),
        ("def f(x: torch.cuda.CUDAGraph):\n    return x", set()),
    ],
)
def test_what_runs_on_a_gpu_only_is_found_in_the_syntax(source, lines):
    assert cuda_only_lines(source) == lines


def test_cuda_only_lines_that_were_executed_in_either_of_two_checks_are_not_listed():
    lines = project_lines(ROOT)
    assert {"mar/cuda_graphs.py", "flowprior/distributed.py"} <= lines.keys()
    every = sort_lines(ROOT, {})["not_executed"]
    assert sort_lines(ROOT, lines)["not_executed"] == [] and len(every) == sum(map(len, lines.values()))
    first = sort_lines(ROOT, {"mar/cuda_graphs.py": lines["mar/cuda_graphs.py"]})
    assert first["executed"] and not any(row.startswith("mar/cuda_graphs.py") for row in first["not_executed"])
    rest = {file: numbers for file, numbers in lines.items() if file != "mar/cuda_graphs.py"}
    assert sort_lines(ROOT, rest, first)["not_executed"] == []
    # A statement that the earlier check does not know is not taken for one that it has executed.
    moved = {
        "executed": [row.replace("mar/cuda_graphs.py", "elsewhere.py") for row in first["executed"]],
        "not_executed": [],
    }
    assert sort_lines(ROOT, rest, moved)["not_executed"] == first["executed"]


def test_the_digits_part_reads_what_the_stages_leave(pipeline):
    metrics = [digits.found(pipeline.run_dir, stage) for stage in digits.TINY]
    assert all(found["training_seconds"] > 0 for found in metrics)
    assert metrics[1]["psnr"] > 0 and metrics[2]["fid_by_guidance"].keys() == {"1", "2"}


def test_a_part_that_must_end_what_it_started_has_seconds_for_it_and_no_more(tmp_path):
    script = "import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit({}))\n"
    script += f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(600)"

    def ended(body, seconds):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", script.format(body)], start_new_session=True)
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        end(process, seconds)
        return process.returncode

    saved = tmp_path / "saved"
    assert ended(f"pathlib.Path({str(saved)!r}).touch() or 7", 30) == 7 and saved.exists()
    assert ended("time.sleep(600)", 1) == -signal.SIGKILL  # it does not follow
    assert ended("7", 0) == -signal.SIGKILL  # it is not asked


def test_cells_of_the_study_are_kept_with_those_that_are_finished_and_not_in_the_result(tmp_path):
    page = tmp_path / PAGE
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n{START}\nold\n{END}\nbehind\n")
    cell = {"study": "mnist", "row": "none"}
    parts = {
        "study": {"status": "stopped", "why": "x", "results": {"none_1": {"cell": cell}, "all cells": {"finished": 1}}}
    }
    said = keep(EMPTY | {"tiny": False, "parts": parts}, tmp_path)
    assert "1 cells in docs/results/study" in said and "study.sh --docs" in said
    assert json.loads((tmp_path / "docs/results/study/mnist/none_1.json").read_text()) == cell
    result = json.loads((tmp_path / RESULTS / "a_card.json").read_text())
    assert result["parts"]["study"]["results"] == {"all cells": {"finished": 1}}
    assert "finished 1" in page.read_text() and "none_1" not in page.read_text()


@pytest.mark.parametrize("works", [True, False])
def test_a_multi_process_service_that_starts_is_used_and_ended_and_one_that_does_not_costs_nothing(
    works, tmp_path, monkeypatch
):
    daemon, said = tmp_path / "nvidia-cuda-mps-control", tmp_path / "said"
    start = "sleep 30 &" if works else "exit 1"  # the daemon holds the output that it was started with
    daemon.write_text(f'#!/bin/sh\nif [ "$1" = -d ]; then {start}\nelse cat > {said}; fi\n')
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    reports = {}
    with multi_process_service(Context(torch.device("cuda"), False, tmp_path, reports.__setitem__)):
        assert ("CUDA_MPS_PIPE_DIRECTORY" in os.environ) == works
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert reports == {"multi-process service": {"started": works}}
    assert said.is_file() == works and (not works or said.read_text() == "quit\n")
