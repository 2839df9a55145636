import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowprior.data.crops import centre_crop, random_resized_box
from flowprior.data.embedded import digit_images
from flowprior.data.images import ImageConfig, open_images, to_model, to_uint8
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config, changed_options, to_dict
from flowprior.training.config import TrainConfig


def noise_image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes whose names sort against the order in which they are made, with files of three formats, one of them nested."""
    root = tmp_path / "pictures"
    for seed, name in enumerate(["zebra/b.png", "zebra/a.JPG", "ant/deep/c.webp", "ant/d.png", "ant/e.bmp"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(seed, 40 + seed, 36).save(root / name)
    (root / "zebra" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    return root


def folder_images(root: Path, seed: int = 0, **options):
    return open_images(ImageConfig(source="folder", path=str(root), size=16, **options), seed)


def test_every_uint8_value_survives_the_models_range_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    model = to_model(values)
    assert model.min() == -1 and model.max() == 1
    assert torch.equal(to_uint8(model), values)


def test_overshooting_reconstructions_are_clamped():
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_folder_is_still_called_so_in_configs_of_earlier_versions(folder):
    kept = {"source": "folder", "path": str(folder), "size": 16}
    config = build_config(ImageConfig, kept)
    assert config == ImageConfig("folder", str(folder), 16) == ImageConfig("files", str(folder), 16)
    assert changed_options(ImageConfig, kept, to_dict(config)) == [] and len(open_images(config)) == 5


def test_a_path_beside_embedded_images_is_refused_since_it_would_not_be_read(folder):
    with pytest.raises(
        UserError, match=f"path names {folder}, and source=digits reads no files: write data.source=files"
    ):
        build_config(ImageConfig, {"path": str(folder)}, "data")


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_column_of_a_folder_is_refused_since_there_is_none(folder, option):
    with pytest.raises(
        UserError, match="whose labels are its sub-folders' names: leave out data.image_column and data.label"
    ):
        folder_images(folder, **{option: "label"})


def test_a_folder_read_without_labels_has_the_same_images_in_one_class(folder, capsys):
    plain, without = folder_images(folder), folder_images(folder, label_column="none")
    assert "5 images, read without labels" in capsys.readouterr().err
    assert without.num_classes == 1 and without.class_names == [folder.name]
    keys = [SampleKey(i, -1) for i in range(5)]
    one, other = plain.batch(keys), without.batch(keys)
    assert torch.equal(one["image"], other["image"]) and other["label"].tolist() == [0] * 5
    assert plain.fingerprint() != (kept := without.fingerprint())
    (folder / "zebra" / "a.JPG").rename(folder / "zebra" / "c.JPG")
    assert folder_images(folder, label_column="none").fingerprint() != kept


def test_labels_are_the_places_of_the_sorted_sub_folders(folder):
    images = folder_images(folder)
    assert images.class_names == ["ant", "zebra"] and images.num_classes == 2 and len(images) == 5
    batch = images.batch([SampleKey(i, -1) for i in range(5)])
    assert batch["label"].tolist() == [0, 0, 0, 1, 1] and batch["index"].tolist() == list(range(5))
    assert batch["image"].shape == (5, 3, 16, 16) and batch["image"].dtype == torch.uint8


def test_images_straight_in_the_folder_are_one_class(tmp_path):
    for seed in range(3):
        noise_image(seed, 20, 20).save(tmp_path / f"{seed}.png")
    images = folder_images(tmp_path)
    assert images.class_names == [tmp_path.name] and len(images) == 3
    assert images.batch([SampleKey(2, -1)])["label"].tolist() == [0]


def test_a_png_of_the_right_size_comes_back_pixel_by_pixel(tmp_path):
    pictures, _ = digit_images(16)
    for i in range(4):
        Image.fromarray(pictures[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    assert torch.equal(folder_images(tmp_path).batch([SampleKey(i, -1) for i in range(4)])["image"], pictures[:4])


def test_a_missing_folder_and_one_without_images_are_named(tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(UserError, match=path.name):
            folder_images(path)
    with pytest.raises(UserError, match="DATA="):
        open_images(ImageConfig(source="folder"))


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no image", lambda data: data[:20]]
)
@pytest.mark.parametrize("name", ["zebra/b.png", "zebra/a.JPG", "ant/deep/c.webp", "ant/e.bmp"])
def test_a_truncated_or_unreadable_image_is_named(folder, name, damage):
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))
    images = folder_images(folder)
    with pytest.raises(UserError, match=str(file)):
        images.batch([SampleKey(i, -1) for i in range(5)])


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "tif"])
def test_mutated_images_are_read_or_refused_in_one_sentence(tmp_path, extension):
    file = tmp_path / f"image.{extension}"
    noise_image(0, 24, 20).save(file)
    whole, rng, images = file.read_bytes(), np.random.default_rng(0), folder_images(tmp_path)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 400), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        file.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        try:
            assert images.batch([SampleKey(0, -1)])["image"].shape == (1, 3, 16, 16)
        except UserError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > 10


def test_png_chunks_that_break_in_the_decoder_are_refused(tmp_path):
    file = tmp_path / "image.png"
    noise_image(0, 24, 20).save(file)
    data = bytearray(file.read_bytes())
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    data[start + 5 : start + 60] = bytes(55)
    data[start + length : start + length + 4] = zlib.crc32(data[start - 4 : start + length]).to_bytes(4, "big")
    file.write_bytes(data)
    with pytest.raises(UserError, match="image.png"):
        folder_images(tmp_path).batch([SampleKey(0, -1)])


def test_augmentation_is_a_function_of_seed_epoch_and_index(folder):
    def read(seed, epoch, order=range(5)):
        source = folder_images(folder, seed, crop="random_resized", min_area=0.2, flip=True)
        batch = source.batch([SampleKey(i, epoch) for i in order])
        return batch["image"][torch.tensor(order).argsort()]

    first = read(0, 3)
    assert torch.equal(first, read(0, 3, [4, 2, 0, 1, 3]))
    assert not torch.equal(first, read(1, 3)) and not torch.equal(first, read(0, 4))
    assert torch.equal(read(0, -1), folder_images(folder).batch([SampleKey(i, -1) for i in range(5)])["image"])


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_loader_workers_change_nothing(folder, source):
    path = str(folder) if source == "folder" else ""
    config = ImageConfig(source=source, path=path, size=16, crop="random_resized", flip=True)

    def read(loaders: int) -> list[dict[str, torch.Tensor]]:
        stream = iter(
            training_batches(
                open_images(config, 5), TrainConfig(global_batch=4, loader_workers=loaders), World(), start_step=2
            )
        )
        return [next(stream) for _ in range(4)]

    for here, there in zip(read(0), read(2)):
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_half_of_the_digits_are_mirrored_in_training_and_none_in_evaluation():
    plain, mirrored = (open_images(ImageConfig(flip=flip)) for flip in (False, True))
    keys = [SampleKey(i, 0) for i in range(1797)]
    original, drawn = plain.batch(keys)["image"], mirrored.batch(keys)["image"]
    same, turned = ((drawn == x).flatten(1).all(1) for x in (original, original.flip(-1)))
    assert (same | turned).all()
    assert 0.45 < turned.float().mean() < 0.55
    evaluation = [SampleKey(i, -1) for i in range(1797)]
    assert torch.equal(mirrored.batch(evaluation)["image"], original)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_random_resized_boxes_lie_inside_the_image(height, width, min_area, seed):
    top, left, h, w = random_resized_box(height, width, min_area, np.random.default_rng(seed))
    assert 0 <= top and 0 <= left and h >= 1 and w >= 1 and top + h <= height and left + w <= width


def test_random_resized_boxes_have_the_area_and_aspect_that_are_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box(1000, 1000, 0.3, rng) for _ in range(2000)], dtype=float)
    area, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert area.min() > 0.295 and 0.745 < aspect.min() and aspect.max() < 1.34
    assert abs(np.log(aspect).mean()) < 0.02


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 200), st.integers(2, 200), st.integers(8, 64), st.booleans())
def test_the_centre_crop_has_the_size_and_keeps_the_centre(width, height, size, upright):
    along = np.linspace(0, 255, height if upright else width)
    ramp = np.broadcast_to(along[:, None] if upright else along[None], (height, width)).astype(np.uint8)
    crop = np.asarray(centre_crop(Image.fromarray(ramp), size), dtype=float)
    assert crop.shape == (size, size)
    assert abs(crop.mean() - 127.5) < 1.5 * 255 / size


def test_the_fingerprint_tells_other_images_crops_and_names_apart(folder):
    before = folder_images(folder).fingerprint()
    assert before == folder_images(folder, flip=True).fingerprint()
    other_size = open_images(ImageConfig(source="folder", path=str(folder), size=32)).fingerprint()
    (folder / "ant" / "d.png").rename(folder / "ant" / "f.png")
    renamed = folder_images(folder).fingerprint()
    (folder / "ant" / "f.png").unlink()
    assert len({before, other_size, renamed, folder_images(folder).fingerprint()}) == 4


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_unreadable_image_is_one_sentence_from_any_loader_process(folder, loaders):
    (folder / "ant" / "d.png").write_bytes(b"no image")
    stream = iter(training_batches(folder_images(folder), TrainConfig(global_batch=5, loader_workers=loaders), World()))
    with pytest.raises(UserError, match=str(folder / "ant" / "d.png")) as caught:
        next(stream)
    if loaders:
        stream._shutdown_workers()  # left to the garbage collector, it would wait five seconds for the process
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_sub_folders_that_are_splits_are_not_taken_for_classes(folder):
    for name, renamed in (("ant", "train"), ("zebra", "val")):
        (folder / name).rename(folder / renamed)
    with pytest.raises(UserError, match=f"DATA={folder}/train"):
        folder_images(folder)
    (folder / "val").rename(folder / "zebra")  # train is also something on rails
    assert folder_images(folder).class_names == ["train", "zebra"]


def test_nested_files_come_folder_by_folder_as_sorted_paths_do(folder):
    for seed, name in enumerate(["ant/a-b/x.png", "ant/a/y.png", "ant/é.png"]):
        (folder / name).parent.mkdir(exist_ok=True)
        noise_image(seed, 20, 20).save(folder / name)
    images = folder_images(folder)
    expected = [p for name in ("ant", "zebra") for p in sorted((folder / name).rglob("*.*")) if p.suffix != ".txt"]
    assert [images.store.file(i) for i in range(len(images))] == expected
