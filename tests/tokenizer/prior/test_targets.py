import numpy as np
import pytest
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from tokenizer.prior.targets import TARGETS, TargetConfig, load_target
from tokenizer.prior.targets.base import TargetContext, spread_rows


def load(folder, seed: int = 0, **values):
    return load_target(build_config(TargetConfig, values), TargetContext(seed, folder, World()))


@pytest.mark.parametrize("total", [1, 2, 5000, 20_000_000, 327_978_752])
def test_rows_spread_over_a_table_reach_from_its_first_to_its_last(total):
    rows = spread_rows(total, 4096)
    assert rows[0] == 0 and rows[-1] == total - 1 and len(rows.unique()) == min(4096, total)


def test_a_file_of_ones_own_is_the_target_as_it_is(tmp_path):
    table = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", a=table, b=table + 1)
    target = load(tmp_path, source="file", file={"path": str(tmp_path / "mine.npz"), "key": "b"})
    assert np.array_equal(target.features.numpy(), table + 1) and target.name == "mine.npz"


@pytest.mark.parametrize("path, message", [("", "target.file.path"), ("nowhere.npy", "nowhere.npy")])
def test_a_file_that_is_not_there_is_named(tmp_path, path, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, source="file", file={"path": path})


SMALL = {"steps": 3, "width": 8, "image_size": 16}


def test_the_semantic_target_of_the_digits_is_a_function_of_the_seed(tmp_path):
    first, again, other = (
        load(tmp_path / name, seed, source="digits_semantic", digits_semantic=SMALL)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.features.shape == (1797 * 4, 8) and torch.isfinite(first.features).all()
    assert torch.equal(first.features, again.features) and first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()


def test_a_computed_target_is_made_once_and_then_read_from_its_folder(tmp_path):
    first = load(tmp_path, source="digits_semantic", digits_semantic=SMALL)
    written = (tmp_path / "target.safetensors").stat().st_mtime_ns
    again = load(tmp_path, source="digits_semantic", digits_semantic=SMALL)
    assert torch.equal(first.features, again.features) and first.name == again.name
    assert (tmp_path / "target.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b""])
def test_a_kept_target_that_is_damaged_or_of_another_recipe_is_made_anew(tmp_path, damage):
    file = tmp_path / "target.safetensors"
    first = load(tmp_path, source="digits_semantic", digits_semantic=SMALL).fingerprint()
    file.write_bytes(damage(file.read_bytes()))
    assert load(tmp_path, source="digits_semantic", digits_semantic=SMALL).fingerprint() == first
    assert load(tmp_path, source="digits_semantic", digits_semantic=SMALL | {"width": 12}).features.shape[1] == 12


def test_an_unknown_source_is_refused_with_the_list_of_the_known():
    with pytest.raises(UserError, match=", ".join(TARGETS)):
        build_config(TargetConfig, {"source": "bogus"})


def test_the_fingerprint_sees_rows_and_shape(tmp_path):
    def fingerprint(array):
        np.save(tmp_path / "x.npy", array)
        return load(tmp_path, source="file", file={"path": str(tmp_path / "x.npy")}).fingerprint()

    table = np.random.default_rng(0).standard_normal((20, 6))
    changed = table.copy()
    changed[19, 5] += 1
    assert fingerprint(table) == fingerprint(table.copy())
    assert (
        len(
            {fingerprint(table), fingerprint(changed), fingerprint(table[:, :5]), fingerprint(table.astype(np.float32))}
        )
        == 4
    )
