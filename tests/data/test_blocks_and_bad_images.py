"""Training in blocks of shards or row groups, and without images that cannot be read: for every kind of place."""

import json

import numpy as np
import pytest
import torch

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.data.stores import verified
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.training.config import TrainConfig
from image_sets import pictures, write_folder, write_parquet, write_saved, write_shards, write_zip

SOME = pictures(24, ("ant", "bee", "cat"), "jpg", size=(20, 24))
# Cut within the picture, none, and other text.
BAD = {3: SOME[3].data[:200], 11: b"", 17: b"<html>not found</html>"}
MIXED = [image._replace(data=BAD.get(number, image.data)) for number, image in enumerate(SOME)]
LEFT = [image for number, image in enumerate(SOME) if number not in BAD]
WRITE = {
    "folder": lambda root, images: write_folder(root / "set", images),
    "tar": lambda root, images: write_shards(root / "set", images, per_shard=5, label="txt"),
    "zip": lambda root, images: write_zip(root / "set.zip", images),
    "parquet": lambda root, images: write_parquet(root / "set", images, per_file=10, per_group=2),
    "arrow": lambda root, images: write_saved(root / "set", images),
}


@pytest.fixture(params=WRITE)
def kind(request):
    if request.param in ("parquet", "arrow"):
        pytest.importorskip("datasets")
    return request.param


def opened(place, **options):
    return open_images(ImageConfig("files", str(place), 16, **options))


def first_epoch(images, size: int = 4, ranks: int = 1, **options) -> list[int]:
    """The images of one epoch in the order in which the ranks see them."""
    config = TrainConfig(global_batch=size * ranks, seed=3, **options)
    streams = [iter(training_batches(images, config, World(rank, ranks))) for rank in range(ranks)]
    steps = -(-len(images) // (size * ranks))
    seen = [next(stream)["index"].tolist() for _ in range(steps) for stream in streams]
    return [index for batch in seen for index in batch][: len(images)]


def test_with_a_block_size_shards_and_row_groups_come_a_few_at_a_time(kind, tmp_path):
    images = opened(WRITE[kind](tmp_path, SOME), shuffle_block=2)
    order, starts = first_epoch(images), images.store.starts
    assert sorted(order) == list(range(24)) and first_epoch(images, 2, 2) == order
    if kind in ("folder", "zip", "arrow"):  # of one part
        assert images.blocks is None and images.says_of_order() == ""
        assert order == first_epoch(opened(images.config.path))
        return
    assert starts.tolist() == list(range(0, 24, 5 if kind == "tar" else 2))
    part_of = np.searchsorted(starts, order, side="right") - 1
    begin, end = zip(
        *((np.flatnonzero(part_of == part).min(), np.flatnonzero(part_of == part).max()) for part in range(len(starts)))
    )
    assert max(sum(b <= place <= e for b, e in zip(begin, end)) for place in range(24)) == 2
    block = "2 shards; a block has about 9" if kind == "tar" else "2 row groups; a block has about 4"
    assert f"images are shuffled within blocks of {block} of the 24 images, from " in images.says_of_order()


def test_without_one_any_image_may_follow_any_but_in_parquet_which_says_so(kind, tmp_path):
    place = WRITE[kind](tmp_path, SOME)
    plain = opened(place)
    assert (plain.blocks is not None) == (kind == "parquet")
    whole = opened(place, shuffle_block=0)
    assert whole.blocks is None and (first_epoch(plain) == first_epoch(whole)) == (kind != "parquet")
    if kind == "parquet":
        assert plain.says_of_order().startswith(
            "images are shuffled within blocks of 4 row groups; a block has about 8 of the 24 images, from 3 of the 3 classes"
        )


def test_in_blocks_every_row_group_is_read_once_an_epoch(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    images, reads, read = opened(WRITE["parquet"](tmp_path, SOME)), [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **o: reads.append(group) or read(self, group, **o)
    )
    first_epoch(images)
    assert len(reads) == 12
    reads.clear()
    monkeypatch.setattr("flowprior.data.stores.parquet.KEPT_BYTES", 1)
    first_epoch(opened(images.config.path, shuffle_block=0))
    assert len(reads) > 18


def test_images_that_cannot_be_read_are_left_out_counted_and_listed(kind, tmp_path, capsys):
    images = opened(WRITE[kind](tmp_path, MIXED), skip_bad=True)
    keys = [SampleKey(index, -1) for index in range(21)]
    (tmp_path / "left").mkdir()
    wanted = opened(WRITE[kind](tmp_path / "left", LEFT))
    assert len(images) == 21 and torch.equal(images.batch(keys)["image"], wanted.batch(keys)["image"])
    assert (
        torch.equal(images.batch(keys)["label"], wanted.batch(keys)["label"])
        and images.class_names == wanted.class_names
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "leaves out" in line]
    assert len(said) == 1 and said[0].startswith(f"note: skip_bad leaves out 3 images of 24 in {images.store.where}")
    [file] = images.store.home.glob(".flowprior-*.bad.json")
    listed = json.loads(file.read_text())
    assert [entry["index"] for entry in listed["bad"]] == [3, 11, 17] and str(file) in said[0]
    store = images.store.store
    assert all(
        entry["name"] == store.name(entry["index"]) and entry["name"] in entry["reason"] for entry in listed["bad"]
    )
    assert sorted(first_epoch(images)) == list(range(21))


def test_all_images_are_looked_at_once_and_anew_when_something_changes(kind, tmp_path, monkeypatch, capsys):
    looks, find = [], verified.find_bad_images
    monkeypatch.setattr(verified, "find_bad_images", lambda store: looks.append(store) or find(store))
    place = WRITE[kind](tmp_path, MIXED)
    fingerprints = {opened(place, skip_bad=True).fingerprint() for _ in range(3)}
    assert len(looks) == 1 and len(fingerprints) == 1 and opened(place).fingerprint() not in fingerprints
    if kind == "folder":
        (place / SOME[3].file).write_bytes(SOME[3].data)
    elif kind != "zip":
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    if kind != "folder":
        WRITE[kind](tmp_path, [*MIXED[:3], SOME[3], *MIXED[4:]])
    assert len(opened(place, skip_bad=True)) == 22 and len(looks) == 2
    file = next(opened(place).store.home.glob(".flowprior-*.bad.json"))
    for damage in (
        "",
        "{",
        '{"bad": 3}',
        json.dumps(json.loads(file.read_text()) | {"bad": [{"index": 99, "reason": ""}]}),
    ):
        file.write_text(damage)
        assert len(opened(place, skip_bad=True)) == 22
    assert len(looks) == 6


def test_where_all_images_can_be_read_nothing_is_another(kind, tmp_path, capsys):
    place = WRITE[kind](tmp_path, SOME)
    assert opened(place, skip_bad=True).fingerprint() == opened(place).fingerprint()
    assert "left out" not in capsys.readouterr().err


def test_a_place_without_any_image_that_can_be_read_is_refused(kind, tmp_path):
    place = WRITE[kind](tmp_path, [image._replace(data=b"x") for image in SOME])
    with pytest.raises(UserError, match="none of the 24 images in .* can be read: the image .*") as refusal:
        opened(place, skip_bad=True)
    assert str(place) in str(refusal.value)


def test_it_is_off_by_default_and_named_where_an_image_cannot_be_read(kind, tmp_path):
    images = opened(WRITE[kind](tmp_path, MIXED))
    with pytest.raises(
        UserError, match="cannot be read .*: write data.skip_bad=true, which leaves such images out, or mend"
    ) as refusal:
        images.batch([SampleKey(3, -1)])
    assert images.store.name(3) in str(refusal.value)


def test_many_images_are_looked_at_by_several_processes(tmp_path):
    many = [
        image._replace(key=f"{number:04d}", data=b"x" if number % 50 == 7 else image.data)
        for number, image in enumerate(SOME[:1] * 300)
    ]
    images = opened(write_shards(tmp_path / "set", many, per_shard=70), skip_bad=True)
    assert len(images) == 294 and np.setdiff1d(np.arange(300), images.store.chosen).tolist() == [
        7,
        57,
        107,
        157,
        207,
        257,
    ]
