import zipfile

import numpy as np
import pytest
import torch

from flowprior.data.image_archive import ImageArchive, archive_has_images, write_image_archive
from flowprior.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def joined(tmp_path):
    parts = [tmp_path / f"{number}.npy" for number in range(3)]
    for part, rows in zip(parts, np.split(IMAGES, [9, 18])):
        np.save(part, rows)
    write_image_archive(tmp_path / "all.npz", parts, np.arange(23) % 4)
    return tmp_path / "all.npz"


def test_joined_parts_are_what_numpy_reads(joined):
    with np.load(joined, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["arr_0"], IMAGES) and arrays["labels"].tolist() == [i % 4 for i in range(23)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_an_archive_is_read_a_batch_at_a_time(tmp_path, save, size):
    save(tmp_path / "a.npz", IMAGES, np.arange(23))  # arr_0 and arr_1, as ADM names them
    archive = ImageArchive(tmp_path / "a.npz")
    assert (archive.count, archive.size, archive.labels.tolist()) == (23, (6, 5), list(range(23)))
    batches = list(archive.batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), IMAGES)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_processes_share_the_batches(joined, parts):
    archive = ImageArchive(joined)
    whole = list(archive.batches(4))
    for part in range(parts):
        own = list(archive.batches(4, part, parts))
        assert len(own) == len(whole[part::parts])
        assert all(torch.equal(a, b) for a, b in zip(own, whole[part::parts]))


BAD = {
    "no array 'arr_0'": dict(images=IMAGES),
    "must be uint8": dict(arr_0=IMAGES.astype(np.float32)),
    "must be uint8 (N, H, W, 3)": dict(arr_0=IMAGES[..., :1]),
    "labels of shape": dict(arr_0=IMAGES, labels=np.zeros(3, int)),
    "Fortran": dict(arr_0=np.asfortranarray(IMAGES)),
    "is no array": dict(arr_0=np.array([{}], dtype=object)),
}


@pytest.mark.parametrize("words", BAD)
def test_what_holds_no_images_is_refused_in_one_line(tmp_path, words):
    np.savez(tmp_path / "bad.npz", **BAD[words])
    try:
        ImageArchive(tmp_path / "bad.npz")
    except UserError as error:
        assert words in str(error) or words == "is no array" and "must be uint8" in str(error)
        assert str(tmp_path / "bad.npz") in str(error) and "\n" not in str(error)
    else:
        pytest.fail("it was read")


def test_a_file_that_is_missing_cut_short_or_no_archive_is_refused(tmp_path, joined):
    with pytest.raises(UserError, match="no file of images"):
        ImageArchive(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="text.npz"):
        ImageArchive(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive, zipfile.ZipFile(joined) as whole:
        archive.writestr("arr_0.npy", whole.read("arr_0.npy")[:-50])
    with pytest.raises(UserError, match="ends within its images"):
        list(ImageArchive(tmp_path / "short.npz").batches(5))
    assert archive_has_images(joined) and not archive_has_images(tmp_path / "text.npz")
