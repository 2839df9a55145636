"""CIFAR-10 in the form that torchvision reads, made here with its checksums."""

import hashlib
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.metrics import Extractor, Statistics

NAMES = ["airplane", "automobile", "bird"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four training images in two files and two test images, whose checksums count as the published ones."""
    place, pixels = tmp_path / CIFAR10.base_folder, np.random.default_rng(0)
    place.mkdir()

    def file(name, entry):
        content = pickle.dumps(entry)
        (place / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    def batch(name, labels):
        return file(name, {"data": pixels.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "labels": labels})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", [0, 1]), batch("data_batch_2", [2, 1])])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", [2, 0])])
    name, checksum = file("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return tmp_path


def source(folder, **options):
    return open_images(ImageConfig(source="cifar10", path=str(folder), **options))


def test_training_and_test_set_are_the_subsets_and_pixels_are_the_files_own(folder):
    counts = {subset: len(source(folder, subset=subset)) for subset in ("all", "train", "val")}
    assert counts == {"all": 6, "train": 4, "val": 2}
    train = source(folder, subset="train")
    assert train.class_names == NAMES and train.num_classes == 3 and train.kind == "cifar10"
    batch = train.batch([SampleKey(2, -1), SampleKey(0, -1)])
    stored = pickle.loads((folder / CIFAR10.base_folder / "data_batch_2").read_bytes())
    assert batch["label"].tolist() == [2, 0]
    assert torch.equal(batch["image"][0], torch.from_numpy(stored["data"][0]).view(3, 32, 32))
    assert train.fingerprint() != source(folder, subset="val").fingerprint()


def test_other_sizes_show_the_same_pictures(folder):
    small, large = source(folder).images.double(), source(folder, size=64).images.double()
    assert large.shape == (6, 3, 64, 64)
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 20  # of noise, whose edges overshoot


def test_files_that_are_missing_or_damaged_are_a_line_that_names_where_from_and_where_to(folder, tmp_path):
    with pytest.raises(UserError, match=r"is not there at .*cifar-10-python.tar.gz into .*data.download=true"):
        source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="data.source=cifar10 needs data.path="):
        source("")
    (folder / CIFAR10.base_folder / "test_batch").write_bytes(b"other")
    with pytest.raises(UserError, match="is damaged or not whole"):
        source(folder, subset="train")


def test_what_cannot_be_fetched_is_a_line_and_several_processes_do_not_fetch_at_once(folder, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"could not be fetched \(no network\)"):
        source(tmp_path / "nowhere", download=True)
    assert len(source(folder, download=True)) == 6  # there already
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="NPROC=1"):
        source(tmp_path / "nowhere", download=True)


def test_reference_statistics_are_of_the_training_images_or_of_the_subset_that_is_named(folder, tmp_path):
    compute = runpy.run_path(str(Path(__file__).parents[2] / "fid_stats" / "compute.py"), run_name="compute")
    out, extractor = tmp_path / "cifar10.npz", Extractor("digits")
    words = [str(folder), "--cifar10", "--extractor", "digits", "--out", str(out), "--device", "cpu"]
    for more, subset, counts in (([], "train", (1, 2, 1)), (["val"], "val", (1, 0, 1)), (["all"], "all", (2, 2, 2))):
        compute["compute"](compute["parse"](words + ["--subset"] * bool(more) + more))
        made, features = Statistics.load(out), extractor(source(folder, subset=subset).images).fid.double()
        assert (made.count, made.crop, made.class_counts, made.class_names) == (sum(counts), "centre 32", counts, None)
        np.testing.assert_allclose(made.mu, features.mean(0).numpy(), atol=1e-5)
    with pytest.raises(UserError, match="--cifar10 takes the folder of CIFAR-10 in place of digits"):
        compute["parse"](["digits", "--cifar10"])
    with pytest.raises(UserError, match="--subset chooses among CIFAR-10's images"):
        compute["parse"](["digits", "--subset", "all"])
