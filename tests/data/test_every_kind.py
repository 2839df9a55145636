"""Images are the same bits wherever they lie, and what is said of them is said of every kind of place."""

import importlib.util
import io
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowprior.data.image_sizes import ImageSize, stored_sizes
from flowprior.data.images import ImageConfig, StoredImages, open_images
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.training.config import TrainConfig
from image_sets import (
    Picture,
    encoded,
    pictures,
    write_folder,
    write_hub,
    write_parquet,
    write_saved,
    write_shards,
    write_zip,
)

SOME = pictures(10, ("ant", "bee", "cat"), "jpg", size=(40, 52))


def write_list(folder, images):
    write_folder(folder, images)
    (folder / "list.csv").write_text("".join(f"{image.file},{image.label}\n" for image in images))
    return folder / "list.csv"


KINDS = {
    "folder": lambda root, images: write_folder(root / "folder", images),
    "tar": lambda root, images: write_shards(root / "tar", images, label="txt"),
    "zip": lambda root, images: write_zip(root / "stored.zip", images),
    "deflated zip": lambda root, images: write_zip(root / "deflated.zip", images, zipfile.ZIP_DEFLATED),
    "list": lambda root, images: write_list(root / "list", images),
}
if importlib.util.find_spec("pyarrow"):
    KINDS["parquet"] = lambda root, images: write_parquet(root / "parquet", images)
if importlib.util.find_spec("datasets"):
    KINDS["saved data set"] = lambda root, images: write_saved(root / "saved", images)
    KINDS["data set of the hub"] = lambda root, images: write_hub(root / "hub", images)


def images_of(place, seed: int = 0, **options) -> StoredImages:
    return open_images(ImageConfig("files", str(place), 16, **options), seed)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return {kind: write(root, SOME) for kind, write in KINDS.items()}


@pytest.mark.parametrize("crop", ["centre", "random", "random_resized"])
def test_every_kind_gives_the_same_bits_labels_and_classes(places, crop):
    keys = [SampleKey(index, epoch) for epoch in (-1, 0, 3) for index in (7, 0, 9, 4)]
    wanted, names = None, set()
    for place in places.values():
        images = images_of(place, 5, crop=crop, flip=True)
        batch = images.batch(keys)
        wanted = wanted or batch
        assert batch.keys() == wanted.keys() and all(torch.equal(batch[name], wanted[name]) for name in batch)
        assert batch["label"].dtype == torch.int64 and images.num_classes == 3
        names.add(tuple(images.class_names))
    assert names == {("ant", "bee", "cat")}


@pytest.mark.parametrize("kind", KINDS)
def test_loader_processes_read_what_the_training_process_reads(places, kind):
    def read(loaders: int) -> list[dict[str, torch.Tensor]]:
        config = TrainConfig(global_batch=4, loader_workers=loaders)
        images = images_of(places[kind], 5, flip=True)
        images.batch([SampleKey(0, 0)])  # files are open already when the processes begin
        stream = iter(training_batches(images, config, World(), start_step=2))
        found = [next(stream) for _ in range(4)]
        if loaders:
            stream._shutdown_workers()
        return found

    assert all(torch.equal(a[name], b[name]) for a, b in zip(read(0), read(2), strict=True) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_copy_is_small_and_reads_the_same(places, kind):
    images = images_of(places[kind], 5, flip=True)
    images.batch([SampleKey(0, 0)])
    keys = [SampleKey(index, 2) for index in range(10)]
    packed = pickle.dumps(images)
    assert len(packed) < 4000
    assert torch.equal(pickle.loads(packed).batch(keys)["image"], images.batch(keys)["image"])


def test_the_fingerprint_tells_kinds_images_labels_and_places_apart(places, tmp_path):
    found = {kind: images_of(place).fingerprint() for kind, place in places.items()}
    # How they are packed and called says nothing of the images.
    assert found.pop("deflated zip") == found["zip"]
    assert found.pop("data set of the hub", "none") == found.get("saved data set", "none")
    assert len(set(found.values())) == len(found)
    assert {kind: images_of(place).fingerprint() for kind, place in places.items()}.items() >= found.items()
    for kind, place in places.items():
        if kind in ("list", "data set of the hub"):  # which name what lies elsewhere
            continue
        copy = tmp_path / kind.replace(" ", "_") / place.name
        copy.parent.mkdir()
        (shutil.copytree if place.is_dir() else shutil.copy)(place, copy)
        assert images_of(copy).fingerprint() == images_of(place).fingerprint(), kind


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_one_label_or_one_class_more_makes_other_images(kind, tmp_path):
    def fingerprint(number: int, images: list[Picture]) -> str:
        (tmp_path / str(number)).mkdir()
        return images_of(KINDS[kind](tmp_path / str(number), images)).fingerprint()

    few = SOME[:4] + SOME[-2:]
    other = Picture(few[1].key, few[1].label, encoded(99, (40, 52), "jpg"), "jpg")
    assert len(other.data) != len(few[1].data) or other.data != few[1].data
    changed = [
        few,
        [few[0], other, *few[2:]],
        few[:-1],
        [few[0]._replace(label="bee"), *few[1:]],
        [few[0], few[0]._replace(key="x"), *few[1:]],
    ]
    assert len({fingerprint(number, images) for number, images in enumerate(changed)}) == len(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_counted_between_any_two_kinds(kind, places, tmp_path):
    mixed = [*SOME[2:5], *pictures(4, ("ant",), "jpg", size=(30, 30))]
    renamed = [image._replace(key=f"n{number}", label="ant") for number, image in enumerate(mixed)]
    held_out = images_of(KINDS[kind](tmp_path, renamed))
    for place in places.values():
        assert held_out.copies_of(images_of(place)) == 3 and images_of(place).copies_of(held_out) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_conversions_are_told_of_every_kind(kind, tmp_path, capsys):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.new("RGBA", (70, 30)).save(buffer, "PNG", exif=exif)
    images = images_of(KINDS[kind](tmp_path, [*SOME[:3], Picture("z", "cat", buffer.getvalue())]))
    assert stored_sizes(images) == {ImageSize(40, 52): 3, ImageSize(70, 30): 1}
    capsys.readouterr()
    images.fingerprint()
    said = [line for line in capsys.readouterr().err.splitlines() if "looked at" in line]
    assert said == [
        f"note: of 4 images looked at in {images.store.where}: 1 with an alpha channel shown on white, 1 with an EXIF orientation turned upright"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_cannot_be_decoded_is_named_with_its_place(kind, tmp_path):
    cut = SOME[1]._replace(data=SOME[1].data[:300])
    images = images_of(KINDS[kind](tmp_path, [SOME[0], cut, *SOME[2:]]))
    with pytest.raises(
        UserError, match=r"the image .* cannot be read \(.*\): write data.skip_bad=true, .*, or mend"
    ) as refusal:
        images.batch([SampleKey(1, -1)])
    assert images.store.name(1) in str(refusal.value) and "object at" not in str(refusal.value)
    name = images.store.name(1)
    assert name.endswith((f"{SOME[1].key}.jpg", ": row 1", ": row 1 of row group 0")) and str(tmp_path) in name


def test_no_more_than_a_few_shards_are_open_at_once(tmp_path, monkeypatch):
    from flowprior.data.stores import shard_files

    images = images_of(write_shards(tmp_path / "tar", SOME, per_shard=1))
    monkeypatch.setattr(shard_files, "MOST_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    for index in np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5)).tolist():
        assert images.store.read(index) == SOME[index].data
        assert len(os.listdir("/proc/self/fd")) <= before + 3
