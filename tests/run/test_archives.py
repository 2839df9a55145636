import io
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from safetensors.torch import save_file

from flowprior.data.features import read_array
from flowprior.errors import UserError
from flowprior.run.archives import archive_members, load_pt, read_arrays
from flowprior.run.files import damage, read_tensors

ARRAYS = numpy_strategies.arrays(
    st.sampled_from(["<f4", ">f8", "<i2", "|u1", "<U5", "|b1"]),
    numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@given(array=ARRAYS, compressed=st.booleans(), fortran=st.booleans())
def test_arrays_are_read_as_numpy_reads_them(array, compressed, fortran, tmp_path_factory):
    file = tmp_path_factory.mktemp("arrays") / "a.npz"
    array = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(file, first=array, other=np.arange(3))
    read = read_arrays(file, "file", ("first",))
    with np.load(file, allow_pickle=False) as whole:
        assert read["first"].dtype == whole["first"].dtype and read["first"].shape == whole["first"].shape
        assert read["first"].tobytes() == whole["first"].tobytes()
    assert read["other"] is None and archive_members(file) == ["first.npy", "other.npy"]


def packed(file, name: str, shape: tuple[int, ...], data: bytes) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", member.getvalue() + data)


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 33, 1 << 33), (3,), (1,)])
def test_an_array_that_is_not_as_large_as_its_header_says_is_refused_before_it_is_read(shape, tmp_path):
    packed(tmp_path / "a.npz", "mu", shape, bytes(16))
    with pytest.raises(UserError, match="a.npz cannot be read"):
        read_arrays(tmp_path / "a.npz", "file")


def test_an_archive_that_would_unpack_to_far_more_than_it_is_is_refused(tmp_path):
    packed(tmp_path / "bomb.npz", "mu", (1 << 24,), bytes(1 << 27))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="would unpack to 0.1 GB"):
        read_arrays(tmp_path / "bomb.npz", "file")
    torch.save(torch.zeros(1 << 25), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    with pytest.raises(UserError, match="would unpack"):
        load_pt(tmp_path / "bomb.pt", "file")
    assert load_pt(tmp_path / "plain.pt", "file").shape == (1 << 25,)


def test_an_archive_that_claims_several_disks_is_refused_in_one_sentence(tmp_path):
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2)
    (tmp_path / "a.pt").write_bytes(locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(UserError, match="a.pt is damaged"):
        load_pt(tmp_path / "a.pt", "file")


def test_what_is_no_archive_has_no_members_and_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x05\x06" + bytes(30))
    (tmp_path / "b.npz").write_bytes(b"text")
    for name in ("a.npz", "b.npz", "missing.npz"):
        assert archive_members(tmp_path / name) == []
        if name != "a.npz":
            with pytest.raises(UserError, match=name):
                read_arrays(tmp_path / name, "file")


@pytest.mark.parametrize("suffix", [".pt", ".old.pt", ".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize("left", ["half", "all but the end", "nothing"])
def test_a_file_that_was_cut_short_is_called_that_and_no_readers_words_are_quoted(suffix, left, tmp_path):
    file, tensor = tmp_path / f"a{suffix}", torch.arange(5000.0).view(50, 100)
    if suffix == ".npy":
        np.save(file, tensor.numpy())
    elif suffix == ".npz":
        np.savez(file, latents=tensor.numpy())
    elif suffix == ".safetensors":
        save_file({"latents": tensor}, file)
    else:
        torch.save({"latents": tensor}, file, _use_new_zipfile_serialization=suffix == ".pt")
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "all but the end": whole[:-10], "nothing": b""}[left])
    others = {".npz": read_arrays, ".npy": lambda path, _: read_array(path), ".safetensors": read_tensors}
    for reader in (others.get(suffix, load_pt), lambda path, _: read_array(path)):
        with pytest.raises(UserError, match=re.escape(str(file))) as refusal:
            reader(file, "file")
        said = "it is empty" if left == "nothing" else "it is cut short, or bytes of it have changed"
        assert f"({said})" in str(refusal.value)


def test_a_file_that_cannot_be_opened_is_not_called_damaged_by_the_words_of_its_path(tmp_path):
    file = tmp_path / "zip" / "magic.npz"
    with pytest.raises(FileNotFoundError) as missing:
        open(file)
    assert damage(file, missing.value).startswith("[Errno 2] No such file")
    assert damage(file, ValueError("bad magic number")) == "it is cut short, or bytes of it have changed"
