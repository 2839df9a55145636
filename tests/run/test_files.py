import ast
import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from flowprior.errors import UserError
from flowprior.run import files
from flowprior.run.files import (
    json_text,
    load_weights,
    read_json,
    read_tensors,
    tensors_fingerprint,
    write_bytes,
    write_json,
    write_tensors,
)

WRITERS = {
    "bytes": lambda path, number: write_bytes(path, b"%d" % number * 1000),
    "json": lambda path, number: write_json(path, {"number": number}),
    "tensors": lambda path, number: write_tensors(path, {"x": torch.full((100,), float(number))}),
}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_failure_before_the_rename_leaves_the_old_file_and_nothing_else(kind, failing, tmp_path, monkeypatch):
    path = tmp_path / "file"
    WRITERS[kind](path, 1)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        WRITERS[kind](path, 2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_it_writes_leaves_one_of_the_whole_contents(tmp_path):
    path, lengths = tmp_path / "file", set()
    write_bytes(path, b"0" * 1_000_000)
    for instant in range(20):
        child = os.fork()
        if child == 0:
            try:
                for number in itertools.count(instant + 1):
                    write_bytes(path, b"%d" % (number % 10) * (1_000_000 + number % 10))
            finally:
                os._exit(1)
        before, deadline = path.stat().st_mtime_ns, time.monotonic() + 60
        while path.stat().st_mtime_ns == before and time.monotonic() < deadline:  # a busy disk takes its time
            time.sleep(0.001)
        assert path.stat().st_mtime_ns != before
        time.sleep(0.002 * instant)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = path.read_bytes()
        lengths.add(len(content))
        assert len(content) == 1_000_000 + int(content[:1]) and len(set(content)) == 1
    assert len(lengths) > 1 and len(list(tmp_path.iterdir())) > 1  # kills did fall inside writes


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b'{"a": 1'])
def test_json_that_is_no_object_is_a_user_error_that_names_the_file(content, tmp_path):
    file = tmp_path / "thing.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_json(file, "thing")
    assert "thing" in str(refusal.value) and str(file) in str(refusal.value)
    file.unlink()
    with pytest.raises(UserError, match="there is no thing at"):
        read_json(file, "thing")


def test_tensors_come_back_as_they_were_with_their_dtypes_and_shared_memory_or_not(tmp_path):
    x = torch.arange(6, dtype=torch.float64).view(2, 3)
    tensors = {
        "x": x,
        "view": x[:, 1],
        "half": x.bfloat16(),
        "whole": x.long(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    again = read_tensors(tmp_path / "t.safetensors", "tensors")
    assert tensors_fingerprint(again) == tensors_fingerprint(tensors)
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)


def test_a_fingerprint_tells_names_dtypes_shapes_and_values_apart_and_not_orders():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    variants = [
        {"x": x},
        {"y": x},
        {"x": x.double()},
        {"x": x.view(4)},
        {"x": x.T},
        {"x": x + 1e-7},
        {"x": x, "y": x},
        {"x": x.view(torch.int32)},
    ]
    assert len({tensors_fingerprint(tensors) for tensors in variants}) == len(variants)
    assert tensors_fingerprint({"x": x, "y": x.T}) == tensors_fingerprint({"y": x.T.contiguous(), "x": x.clone()})


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": torch.zeros(2, 2)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "more": torch.zeros(1)},
    ],
)
def test_weights_that_do_not_fit_are_a_user_error_in_one_line(tensors):
    with pytest.raises(UserError, match="^the thing does not fit") as refusal:
        load_weights(torch.nn.Linear(2, 2), tensors, "the thing")
    assert "\n" not in str(refusal.value)


def test_json_is_written_as_json(tmp_path):
    write_json(tmp_path / "deep" / "er" / "x.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "deep" / "er" / "x.json").read_text()) == {"a": [1, 2.5, None]}


def test_a_number_that_is_not_finite_becomes_null_and_is_named(tmp_path):
    value = {"a": {"b": [1.0, float("nan")]}, "c": float("-inf"), "d": 0.5}
    write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": {"b": [1.0, None]}, "c": None, "d": 0.5, "not_finite": {"a.b[1]": "nan", "c": "-inf"}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"x": float("inf")})


def test_no_other_place_writes_json_that_could_hold_what_json_has_not():
    """Everything goes through ``json_text``, or states ``allow_nan=False`` where a script stands alone."""
    root = Path(__file__).resolve().parents[2]
    loose = []
    for file in [
        f
        for part in ("flowprior", "tokenizer", "generation", "mar", "sit", "simflow", "toy_examples")
        for f in (root / part).rglob("*.py")
    ] + [
        *(root / "scripts").glob("*.py"),
        root / "tests" / "soak" / "__main__.py",
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                strict = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
                loose += [] if strict else [f"{file.relative_to(root)}:{node.lineno}"]
    assert loose == []
