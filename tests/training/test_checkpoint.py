import json
import os
import pickle
import shutil
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from flowprior.errors import NonFiniteLoss, UserError
from flowprior.run.files import file_sha256, tensors_fingerprint
from flowprior.training.checkpoint import Checkpoints
from flowprior.training.ema import EMA


class Run:
    """A model, its optimiser and its average, a few deterministic steps old."""

    def __init__(self, folder, keep=2):
        self.model = nn.Linear(2, 2)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(0.5)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.ema = EMA(self.model, 0.9)
        self.checkpoints = Checkpoints(
            folder, {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}, keep
        )

    def step(self, number):
        self.model(torch.full((1, 2), float(number))).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(number)

    def to(self, steps):
        for number in range(steps):
            self.step(number)
        return self

    def hash(self):
        tensors = {**self.model.state_dict(), **{f"ema.{k}": v for k, v in self.ema.state_dict().items()}}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": value for name, value in state.items()}
        return tensors_fingerprint(tensors)


@pytest.fixture
def saved(tmp_path):
    run = Run(tmp_path / "checkpoints").to(3)
    run.checkpoints.save(3)
    return tmp_path / "checkpoints"


def test_a_loaded_run_is_the_saved_one_and_goes_on_like_it(saved):
    original, resumed = Run(saved).to(3), Run(saved)
    assert resumed.checkpoints.load_latest() == 3 and resumed.hash() == original.hash()
    original.step(3)
    resumed.step(3)
    assert resumed.hash() == original.hash()


def test_without_a_checkpoint_nothing_is_loaded(tmp_path):
    run = Run(tmp_path / "none").to(1)
    before = run.hash()
    assert run.checkpoints.load_latest() == 0 and run.hash() == before


def test_pruning_keeps_the_newest(tmp_path):
    run = Run(tmp_path, keep=2)
    for step in (1, 5, 20, 100):
        run.checkpoints.save(step)
    assert run.checkpoints.steps() == [20, 100]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000020", "step_00000100"]


def test_an_unfinished_folder_does_not_count_and_does_not_hinder(saved):
    shutil.copytree(saved / "step_00000003", saved / ".step_00000009.tmp")
    (saved / "step_00000007").mkdir()
    (saved / "step_00000007" / "model.safetensors").write_bytes(b"")
    run = Run(saved)
    assert run.checkpoints.steps() == [3] and run.checkpoints.load_latest() == 3
    for step in (7, 9):
        run.checkpoints.save(step)
    assert (
        sorted(p.name for p in saved.iterdir()) == ["step_00000007", "step_00000009"]
        and Run(saved).checkpoints.load_latest() == 9
    )


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "manifest.json"]


def assert_refused(folder, name):
    run = Run(folder)
    with pytest.raises(UserError) as refusal:
        run.checkpoints.load_latest()
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name, saved):
    file = saved / "step_00000003" / name
    whole = file.read_bytes()
    for content in (b"", whole[:-4], whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]):
        file.write_bytes(content)
        if name != "manifest.json" or content != whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]:
            assert_refused(saved, str(file))
    if name != "manifest.json":
        file.unlink()
        assert_refused(saved, str(file))


@pytest.mark.parametrize("change", ["less", "more", "other"])
def test_a_run_that_saves_other_objects_is_refused_with_their_names(change, saved):
    run = Run(saved)
    if change != "more":
        del run.checkpoints.objects["ema"]
    if change != "less":
        run.checkpoints.objects["critic"] = nn.Linear(1, 1)
    with pytest.raises(UserError) as refusal:
        run.checkpoints.load_latest()
    assert ("ema" in str(refusal.value)) == (change != "more") and ("critic" in str(refusal.value)) == (
        change != "less"
    )


def rewrite_manifest(folder, **changes):
    """Sign whatever lies in the folder, as somebody who means harm would."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in manifest["files"]:
        manifest["files"][name] |= {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
    file.write_text(json.dumps(manifest | changes))


def test_a_checkpoint_of_another_model_is_refused(saved):
    run = Run(saved)
    run.checkpoints.objects["model"] = nn.Linear(2, 3)
    with pytest.raises(UserError, match="model.safetensors does not fit"):
        run.checkpoints.load_latest()


def edit(file, change):
    """Change a file's state and sign it; the manifest's list of entries stays."""
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    change(state)
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    rewrite_manifest(file.parent)


@pytest.mark.parametrize(
    "name, change, entry",
    [
        ("model.safetensors", lambda state: state.pop("bias"), "bias"),
        ("ema.safetensors", lambda state: state.update(more=torch.zeros(1)), "more"),
        ("optimizer.pt", lambda state: state["state"].pop(1), "state.1.exp_avg"),
        ("optimizer.pt", lambda state: state["state"][0].pop("exp_avg_sq"), "state.0.exp_avg_sq"),
        ("optimizer.pt", lambda state: state["param_groups"][0].pop("betas"), "param_groups.0.betas.0"),
        ("optimizer.pt", lambda state: state["param_groups"][0]["params"].pop(), "param_groups.0.params.1"),
    ],
)
def test_an_entry_too_few_or_too_many_is_named_even_when_the_checksum_fits(name, change, entry, saved):
    edit(saved / "step_00000003" / name, change)
    assert_refused(saved, f"{name} is not whole ({entry}")


def test_moments_of_another_shape_are_refused_which_torch_would_take(saved):
    edit(saved / "step_00000003" / "optimizer.pt", lambda state: state["state"][0].update(exp_avg=torch.zeros(3)))
    assert_refused(saved, "optimizer.pt does not fit this run")


@pytest.mark.parametrize("step", [2, None, "3"])
def test_a_checkpoint_under_the_name_of_another_step_is_refused(step, saved):
    rewrite_manifest(saved / "step_00000003", step=step)
    assert_refused(saved, f"manifest.json is of step {step}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["model", "optimizer", "ema"])
def test_a_state_that_is_not_finite_is_never_written(where, value, saved):
    run = Run(saved).to(4)
    tensors = {
        "model": run.model.weight,
        "ema": run.ema.average["bias"],
        "optimizer": run.optimizer.state[run.model.bias]["exp_avg"],
    }
    with torch.no_grad():
        tensors[where].view(-1)[1] = value
    with pytest.raises(NonFiniteLoss, match=f"after step 4 .* of '{where}' is not finite"):
        run.checkpoints.save(4)
    assert [p.name for p in saved.iterdir()] == ["step_00000003"]


def test_without_the_room_nothing_is_begun(saved, monkeypatch):
    usage = shutil.disk_usage(saved)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1 << 10))
    with pytest.raises(UserError, match="step_00000004 takes 0.0 MB and 0.0 MB are free in .*make room"):
        Run(saved).to(4).checkpoints.save(4)
    assert [p.name for p in saved.iterdir()] == ["step_00000003"]


def test_what_a_killed_save_left_is_swept(saved):
    (saved / ".step_00000009.tmp").mkdir()
    (saved / ".step_00000009.tmp" / "model.safetensors").touch()
    Run(saved).checkpoints.sweep()
    assert [p.name for p in saved.iterdir()] == ["step_00000003"]


class Trap:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_place_of_a_file_is_not_run_even_when_the_manifest_vouches_for_it(name, saved, tmp_path):
    file, sprung = saved / "step_00000003" / name, tmp_path / "sprung"
    for write in (
        lambda: torch.save({"state": Trap(sprung)}, file),
        lambda: file.write_bytes(pickle.dumps(Trap(sprung))),
    ):
        write()
        if name != "manifest.json":
            rewrite_manifest(saved / "step_00000003")
        assert_refused(saved, str(file))
        assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap does work


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans()
)
def test_any_mutation_is_read_or_refused_with_a_user_error_also_when_checksums_are_made_to_fit(
    name, place, byte, cut, saved
):
    folder = saved / "step_00000003"
    shutil.copytree(folder, saved / "kept")
    file = folder / name
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] = byte
    file.write_bytes(content[: int(place * len(content))] if cut else content)
    if name != "manifest.json":
        rewrite_manifest(folder)
    try:
        assert Run(saved).checkpoints.load_latest() == 3
    except UserError:
        pass
    finally:
        shutil.rmtree(folder)
        (saved / "kept").rename(folder)


def test_a_full_disk_leaves_the_checkpoint_before_and_no_remains(saved, monkeypatch):
    run, calls = Run(saved).to(4), []
    fsync = os.fsync
    for limit in range(6):
        calls.clear()

        def fail(descriptor, limit=limit):
            calls.append(descriptor)
            if len(calls) > limit:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(UserError, match="No space left"):
                run.checkpoints.save(4)
        assert not [p for p in saved.iterdir() if p.name.startswith(".")]
        again = Run(saved)
        assert again.checkpoints.load_latest() in ((3,) if limit < 5 else (3, 4))


def test_wherever_a_save_dies_the_newest_or_the_previous_checkpoint_loads(tmp_path):
    """A forked child saves step 2 over step 1 and dies, as by kill -9, before its k-th system call of interest; for every k."""
    start = tmp_path / "start"
    run = Run(start, keep=1).to(1)
    run.checkpoints.save(1)
    hashes, outcomes = {1: run.hash()}, []
    run.step(1)
    hashes[2] = run.hash()
    for limit in range(200):
        folder = tmp_path / f"{limit}"
        shutil.copytree(start, folder)
        run.checkpoints.folder = folder
        child = os.fork()
        if child == 0:
            try:
                die_at(limit)
                run.checkpoints.save(2)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        again = Run(folder, keep=1)
        step = again.checkpoints.load_latest()
        outcomes.append(step)
        assert again.hash() == hashes[step]
        again.checkpoints.save(3)
        assert Run(folder).checkpoints.load_latest() == 3
        if status == 0:
            break
        assert status == 9
    assert outcomes == sorted(outcomes) and outcomes[0] == 1 and outcomes[-1] == 2 and len(outcomes) > 15


def die_at(limit):
    calls = 0

    def count(event, *arguments):
        nonlocal calls
        if event in ("open", "fsync", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            if calls == limit:
                os._exit(9)
            calls += 1

    fsync = os.fsync
    os.fsync = lambda descriptor: (count("fsync"), fsync(descriptor))
    sys.addaudithook(count)  # in a child that never returns from it
