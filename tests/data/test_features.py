import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowprior.data.features import FeatureRows, read_features
from flowprior.data.order import SampleKey
from flowprior.errors import UserError

TABLE = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
FORMATS = ["npy", "npz", "pt", "pth", "safetensors"]


def write(folder: Path, extension: str, array: np.ndarray = TABLE) -> Path:
    path = folder / f"features.{extension}"
    if extension == "npy":
        np.save(path, array)
    elif extension == "npz":
        np.savez(path, features=array)
    elif extension == "safetensors":
        save_file({"features": torch.from_numpy(array)}, path)
    else:
        torch.save(torch.from_numpy(array), path)
    return path


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_format_gives_the_same_table(tmp_path, extension, dtype):
    assert np.array_equal(read_features(write(tmp_path, extension, TABLE.astype(dtype))).numpy(), TABLE.astype(dtype))


@pytest.mark.parametrize("extension", FORMATS)
def test_leading_dimensions_are_flattened(tmp_path, extension):
    assert np.array_equal(read_features(write(tmp_path, extension, TABLE.reshape(3, 3, 5))).numpy(), TABLE)


def write_several(folder: Path, extension: str) -> Path:
    path = folder / f"several.{extension}"
    arrays = {"one": TABLE, "two": 2 * TABLE}
    if extension == "npz":
        np.savez(path, **arrays)
    else:
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        save_file(tensors, path) if extension == "safetensors" else torch.save(tensors | {"note": "words"}, path)
    return path


@pytest.mark.parametrize("extension", ["npz", "pt", "safetensors"])
def test_of_several_arrays_one_is_chosen_by_name(tmp_path, extension):
    path = write_several(tmp_path, extension)
    assert np.array_equal(read_features(path, "two").numpy(), 2 * TABLE)
    for key in ("", "three", "note"):
        with pytest.raises(UserError, match="one, two"):
            read_features(path, key)


@pytest.mark.parametrize("extension", FORMATS)
def test_whole_numbers_are_not_features(tmp_path, extension):
    with pytest.raises(UserError, match="floating-point"):
        read_features(write(tmp_path, extension, np.arange(6).reshape(2, 3)))


@pytest.mark.parametrize("extension", FORMATS)
def test_a_vector_is_not_a_table(tmp_path, extension):
    with pytest.raises(UserError, match=r"shape \(N, d\)"):
        read_features(write(tmp_path, extension, TABLE[0]))


def test_missing_files_and_unknown_formats_are_named(tmp_path):
    (tmp_path / "features.csv").write_text("1,2\n")
    for name in ("features.csv", "nowhere.npy"):
        with pytest.raises(UserError, match=name):
            read_features(tmp_path / name)


def test_foreign_byte_order_is_refused_or_read_right(tmp_path):
    path = write(tmp_path, "npy", TABLE.astype(">f4"))
    try:
        assert np.array_equal(read_features(path).numpy(), TABLE)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("extension", FORMATS)
def test_mutated_files_are_read_or_refused_in_one_sentence(tmp_path, extension):
    path = write(tmp_path, extension)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for trial in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        if trial % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        path.write_bytes(data)
        try:
            read_features(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 60


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("extension", ["npy", "npz", "pt", "pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_never_run(tmp_path, extension, legacy):
    marker, path = tmp_path / "ran", tmp_path / f"hostile.{extension}"
    hostile = Hostile(marker)
    if extension == "npy":
        path.write_bytes(pickle.dumps(hostile)) if legacy else np.save(
            path, np.array([hostile, None], dtype=object), allow_pickle=True
        )
    elif extension == "npz":
        np.savez(path, features=np.array([[hostile]], dtype=object))
    else:
        torch.save({"features": hostile}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=path.name):
        read_features(path, "features")
    assert not marker.exists()
    pickle.load(io.BytesIO(pickle.dumps(hostile)))
    assert marker.exists()  # the file would have done it


def test_rows_are_read_by_key_as_float32(tmp_path):
    rows = FeatureRows(read_features(write(tmp_path, "npy", TABLE.astype(np.float16))))
    batch = rows.batch([SampleKey(4, 0), SampleKey(0, 1), SampleKey(4, 7)])["features"]
    assert len(rows) == 9 and batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), TABLE.astype(np.float16).astype(np.float32)[[4, 0, 4]])


def test_a_table_larger_than_the_memory_is_mapped_and_only_the_rows_asked_for_are_read(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory // 4000
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, 1000)}
    with open(tmp_path / "large.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + count * 4000)  # a hole: it takes no room on the disk
        file.seek(start + (count - 3) * 4000)
        file.write(np.arange(1000, dtype=np.float32).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_features(tmp_path / "large.npy")
    assert table.shape == (count, 1000)
    assert np.array_equal(table[torch.tensor([5, count - 3])].numpy(), [np.zeros(1000), np.arange(1000)])


def test_dictionaries_within_dictionaries_are_searched_by_dotted_names(tmp_path):
    nested = {"model": {"quantize.weight": torch.from_numpy(TABLE), "deeper": {"x": torch.ones(2, 2)}}, "step": 3}
    torch.save(nested, tmp_path / "checkpoint.pt")
    assert np.array_equal(read_features(tmp_path / "checkpoint.pt", "model.quantize.weight").numpy(), TABLE)
    assert read_features(tmp_path / "checkpoint.pt", "model.deeper.x").sum() == 4
    with pytest.raises(UserError, match="model.quantize.weight, model.deeper.x"):
        read_features(tmp_path / "checkpoint.pt", "model")


def test_of_many_arrays_those_with_the_nearest_names_are_offered(tmp_path):
    tensors = {f"model.layers.{i}.mlp.weight": torch.ones(2, 2) for i in range(300)}
    save_file(tensors | {"model.embed_tokens.weight": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.embed_tokens.weight"):
        read_features(tmp_path / "model.safetensors", "model.embed_token.weight")


def test_a_file_without_arrays_says_so(tmp_path):
    torch.save({"step": 3}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match="holds no arrays"):
        read_features(tmp_path / "empty.pt")


def test_rows_can_be_some_of_a_table():
    rows = FeatureRows(torch.from_numpy(TABLE), torch.tensor([2, 7]))
    assert len(rows) == 2
    assert np.array_equal(rows.batch([SampleKey(1, 0), SampleKey(0, 0)])["features"].numpy(), TABLE[[7, 2]])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_table_without_numbers_is_refused(shape, tmp_path):
    np.save(tmp_path / "empty.npy", np.zeros(shape, dtype=np.float32))
    with pytest.raises(UserError, match="empty.npy must hold"):
        read_features(tmp_path / "empty.npy")


def test_a_key_for_a_file_without_names_is_refused(tmp_path):
    np.save(tmp_path / "table.npy", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(UserError, match="none called 'other'"):
        read_features(tmp_path / "table.npy", "other")


@pytest.mark.parametrize(
    "kind, make",
    [
        ("sparse", lambda: torch.eye(4).to_sparse()),
        ("sparse", lambda: torch.eye(4).to_sparse_csr()),
        ("sparse", lambda: {"inside": {"of": torch.eye(4).to_sparse()}}),
        ("nested", lambda: torch.nested.nested_tensor([torch.eye(3), torch.ones(2, 3)])),
        ("meta", lambda: torch.empty(4, 4, device="meta")),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_plain_table_is_refused_in_one_line_with_what_makes_one_of_it(tmp_path, kind, make):
    path = tmp_path / "features.pt"
    torch.save(make(), path)
    with pytest.raises(UserError, match=f"features.pt holds a {kind} tensor.*save") as refusal:
        read_features(path)
    assert "\n" not in str(refusal.value)


def test_a_parameter_is_read_as_the_table_that_it_is(tmp_path):
    torch.save(torch.nn.Parameter(torch.from_numpy(TABLE)), tmp_path / "features.pt")
    table = read_features(tmp_path / "features.pt")
    assert np.array_equal(table.numpy(), TABLE) and not table.requires_grad
