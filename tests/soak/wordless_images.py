"""Image folders of row 18: what files and folders there are, what modes the files have, and what is replaced in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey
from soak.wordless_cases import Case

SIZE = 16
DRAW = np.random.default_rng(0)
RGB = DRAW.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
GRAY = DRAW.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
ALPHA = np.where(DRAW.random((SIZE, SIZE)) < 0.5, 255, 0).astype(np.uint8)


def opened(root: Path):
    return open_images(ImageConfig("folder", str(root), SIZE))


def first_picture(root: Path) -> list[Any]:
    """The pixels of the first image, as plain numbers."""
    return opened(root).batch([SampleKey(0, -1)])["image"][0].permute(1, 2, 0).tolist()


def gray3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def modes() -> Iterator[Case]:
    """Images of every mode: shown by their range, on white, upright; or refused by name."""

    def of(image: Image.Image, name: str, **options: Any) -> Callable[[Path], list[Any]]:
        def act(folder: Path) -> list[Any]:
            image.save(folder / name, **options)
            return first_picture(folder)

        return act

    def bands(mode: str, *parts: np.ndarray) -> Image.Image:
        return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(part)) for part in parts])

    red, green, blue = RGB.transpose(2, 0, 1)
    on_white = np.where(ALPHA[..., None] == 255, RGB, 255)
    gray_on_white = gray3(np.where(ALPHA == 255, GRAY, 255))
    few = Image.fromarray(GRAY % 4)
    few.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.arange(10, 130, 10).reshape(4, 3)[GRAY % 4]
    clear = np.where((GRAY % 4 == 1)[..., None], 255, colours)
    key = tuple(int(v) for v in RGB[2, 3])
    deep = Image.fromarray(GRAY.astype(np.uint16) * 257)
    shown: dict[str, tuple[Image.Image, str, dict[str, Any], np.ndarray]] = {
        "RGB": (Image.fromarray(RGB), "a.png", {}, RGB),
        "RGB, TIFF": (Image.fromarray(RGB), "a.tif", {}, RGB),
        "RGB, BMP": (Image.fromarray(RGB), "a.bmp", {}, RGB),
        "RGB, WebP": (Image.fromarray(RGB), "a.webp", {"lossless": True}, RGB),
        "an extension in capitals": (Image.fromarray(RGB), "a.PNG", {"format": "PNG"}, RGB),
        "the contents of another kind": (Image.fromarray(RGB), "a.jpg", {"format": "PNG"}, RGB),
        "gray": (Image.fromarray(GRAY), "a.png", {}, gray3(GRAY)),
        "16-bit gray, PNG": (deep, "a.png", {}, gray3(GRAY)),
        "16-bit gray, TIFF": (deep, "a.tif", {}, gray3(GRAY)),
        "big-endian 16-bit gray": (Image.frombytes("I;16B", (SIZE, SIZE), (GRAY.astype(">u2") * 257).tobytes()), "a.tif", {}, gray3(GRAY)),
        "one bit": (Image.fromarray(GRAY > 99), "a.png", {}, gray3(np.where(GRAY > 99, 255, 0))),
        "RGBA, PNG": (bands("RGBA", red, green, blue, ALPHA), "a.png", {}, on_white),
        "RGBA, TIFF": (bands("RGBA", red, green, blue, ALPHA), "a.tif", {}, on_white),
        "RGBA, WebP": (bands("RGBA", red, green, blue, ALPHA), "a.webp", {"lossless": True}, on_white),
        "opaque RGBA": (bands("RGBA", red, green, blue, np.full_like(ALPHA, 255)), "a.png", {}, RGB),
        "gray with alpha": (bands("LA", GRAY, ALPHA), "a.png", {}, gray_on_white),
        "a palette": (few, "a.png", {}, colours),
        "a palette with a clear colour": (few, "a.png", {"transparency": 1}, clear),
        "a palette with alpha": (few, "a.png", {"transparency": bytes([255, 0, 255, 255])}, clear),
        "gray with a clear value": (Image.fromarray(GRAY), "a.png", {"transparency": 7}, gray3(np.where(GRAY == 7, 255, GRAY))),
        "RGB with a clear colour": (Image.fromarray(RGB), "a.png", {"transparency": key}, np.where((RGB == key).all(-1, keepdims=True), 255, RGB)),
        "CMYK": (Image.fromarray(RGB).convert("CMYK"), "a.tif", {}, np.asarray(Image.fromarray(RGB).convert("CMYK").convert("RGB"))),
    }  # fmt: skip
    for label, (image, name, options, pixels) in shown.items():
        yield Case(label, of(image, name, **options), used=pixels.tolist())
    for orientation, turned in (
        (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (4, RGB[::-1]), (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)), (7, np.rot90(RGB.transpose(1, 0, 2), 2)), (8, np.rot90(RGB)),
    ):  # fmt: skip
        exif = Image.Exif()
        exif[274] = orientation
        yield Case(
            f"EXIF orientation {orientation}", of(Image.fromarray(RGB), "a.png", exif=exif), used=turned.tolist()
        )
    frames = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}
    refused: dict[str, tuple[Image.Image, str, dict[str, Any], str]] = {
        "floating point": (Image.fromarray(GRAY.astype(np.float32)), "a.tif", {}, "floating-point"),
        "32-bit integers": (Image.fromarray(GRAY.astype(np.int32)), "a.tif", {}, "32-bit integers"),
        "two pages": (Image.fromarray(RGB), "a.tif", frames, "2 frames"),
        "an animated PNG": (Image.fromarray(RGB), "a.png", frames, "2 frames"),
        "an animated WebP": (Image.fromarray(RGB), "a.webp", frames, "2 frames"),
        "a GIF under another name": (Image.fromarray(RGB), "a.png", {"format": "GIF"}, "cannot be read"),
    }
    for label, (image, name, options, word) in refused.items():
        yield Case(label, of(image, name, **options), refused=(name, word))


def plain(root: Path, seed: int = 0) -> Path:
    """Two classes of three BMPs each, all of one length."""
    for number in range(6):
        file = root / "ab"[number % 2] / f"{number}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng([seed, number]).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return root


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        elif name.endswith(".png"):
            Image.fromarray(RGB).save(root / name)
        else:
            (root / name).write_bytes(b"something else")


def folders() -> Iterator[Case]:
    """Files and folders that are no images or no classes."""

    def with_(
        *names: str, change: Callable[[Path], object] | None = None
    ) -> Callable[[Path], tuple[list[str], list[int]]]:
        def act(folder: Path) -> tuple[list[str], list[int]]:
            put(plain(folder / "set"), *names)
            if change:
                change(folder / "set")
            images = opened(folder / "set")
            images.batch([SampleKey(index, -1) for index in range(len(images))])
            return images.class_names, images.labels.tolist()

        return act

    as_before = (["a", "b"], [0, 0, 0, 1, 1, 1])
    for name in (
        "._0.bmp", ".DS_Store", "Thumbs.db", "a/._0.bmp", "a/Thumbs.db", "a/desktop.ini", ".hidden/0.bmp", "a/.hidden/0.bmp", "__MACOSX/a/._0.bmp",
        "a/__MACOSX/0.bmp", "a/@eaDir/0.bmp", "lost+found/", "$RECYCLE.BIN/0.bmp", "System Volume Information/x", ".ipynb_checkpoints/0.bmp",
    ):  # fmt: skip
        yield Case(f"the system's {name}", with_(name), used=as_before)
    for names, said in (
        (["labels.csv"], "1 .csv"), (["a/0.txt", "a/1.txt", "b/x.gif"], "2 .txt, 1 .gif"), (["a/0.heic"], "1 .heic"), (["a/0.avif"], "1 .avif"),
        (["a/0.npy"], "1 .npy"), (["set.tar"], "1 .tar"), (["a/README"], "1 without extension"), (["a/0.png.part"], "1 .part"),
    ):  # fmt: skip
        yield Case(f"{', '.join(names)} beside images", with_(*names), used=as_before, said=(said, "are not read"))
    yield Case("an empty folder in a class", with_("a/deeper/"), used=as_before)
    yield Case("a class of one image more", with_("c/0.png"), used=(["a", "b", "c"], [0, 0, 0, 1, 1, 1, 2]))
    yield Case("images deeper in a class", with_("a/x/y/0.png"), used=(["a", "b"], [0, 0, 0, 0, 1, 1, 1]))
    yield Case(
        "class folders alike but for case",
        with_("A/0.png"),
        used=(["A", "a", "b"], [0, 1, 1, 1, 2, 2, 2]),
        said=("A and a",),
    )
    yield Case("an empty folder beside the classes", with_("annotations/"), refused=("annotations (no files)",))
    yield Case("two of them", with_("annotations/", "lists/"), refused=("annotations", "lists"))
    yield Case("a folder of lists beside the classes", with_("lists/a.txt"), refused=("lists (1 .txt)",))
    yield Case("a class of GIFs", with_("c/0.gif", "c/1.gif"), refused=("c (2 .gif)",))
    yield Case("a class of nothing but the system's", with_("c/._0.bmp"), refused=("c (no files)",))
    yield Case("one image beside the classes", with_("0.png"), refused=("1 image beside the class folders a, b",))
    yield Case("twenty of them", with_(*(f"{n}.png" for n in range(20))), refused=("20 images beside",))
    yield Case(
        "a class that is emptied",
        with_(change=lambda root: [f.unlink() for f in (root / "b").iterdir()]),
        refused=("b (no files)",),
    )
    yield Case(
        "a link to no file",
        with_(change=lambda root: (root / "a" / "9.bmp").symlink_to(root / "none")),
        refused=("9.bmp",),
    )
    yield Case(
        "a class that is a link to another",
        with_(change=lambda root: (root / "c").symlink_to(root / "a")),
        refused=("the same folder",),
    )
    yield Case(
        "a link in a circle",
        with_(change=lambda root: (root / "a" / "c").symlink_to(root / "a")),
        refused=("the same folder",),
    )
    yield Case(
        "a pipe under an image's name", with_(change=lambda root: os.mkfifo(root / "a" / "9.bmp")), refused=("9.bmp",)
    )
    yield Case("text under an image's name", with_("a/9.bmp"), refused=("9.bmp",))
    yield Case(
        "no classes but splits",
        with_(change=lambda root: [(root / o).rename(root / n) for o, n in (("a", "train"), ("b", "val"))]),
        refused=("train",),
    )
    yield Case(
        "no images at all",
        with_(change=lambda root: [f.rename(f.with_suffix(".gif")) for f in root.rglob("*.bmp")]),
        refused=("6 .gif",),
    )
    yield Case("no folder", lambda folder: opened(folder / "none"), refused=("none",))


def replaced() -> Iterator[Case]:
    """Whether a folder counts as other images when something in it is replaced."""

    def same(change: Callable[[Path], Path | None]) -> Callable[[Path], bool]:
        def act(folder: Path) -> bool:
            before = opened(plain(folder / "set")).fingerprint()
            return opened(change(folder / "set") or folder / "set").fingerprint() == before

        return act

    def one_picture(root: Path, keep_time: bool = False) -> None:
        status = (root / "a" / "2.bmp").stat()
        Image.fromarray(RGB).save(root / "a" / "2.bmp")
        if keep_time:
            os.utime(root / "a" / "2.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))

    def swapped(root: Path) -> None:
        one, two = root / "a" / "0.bmp", root / "a" / "2.bmp"
        data = one.read_bytes(), two.read_bytes()
        one.write_bytes(data[1])
        two.write_bytes(data[0])

    changes: dict[str, tuple[Callable[[Path], Path | None], bool]] = {
        "nothing": (lambda root: None, True),
        "other times": (lambda root: [os.utime(file, (1, 1)) for file in root.rglob("*")] and None, True),
        "a copy elsewhere": (lambda root: Path(shutil.copytree(root, root.with_name("copy"))), True),
        "the folder renamed": (lambda root: root.rename(root.with_name("other")), True),
        "the system's file more": (lambda root: put(root, ".DS_Store", "a/._x.bmp"), True),
        "one picture of the same length": (one_picture, False),
        "one picture of the same length and time": (lambda root: one_picture(root, keep_time=True), False),
        "all pictures": (lambda root: plain(root, 1) and None, False),
        "two pictures swapped": (swapped, False),
        "a picture renamed": (lambda root: (root / "a" / "0.bmp").rename(root / "a" / "00.bmp") and None, False),
        "a picture moved to the other class": (lambda root: (root / "a" / "0.bmp").rename(root / "b" / "0.bmp") and None, False),
        "a class renamed": (lambda root: (root / "b").rename(root / "c") and None, False),
        "a picture more": (lambda root: put(root, "a/9.png"), False),
        "a picture less": (lambda root: (root / "a" / "0.bmp").unlink(), False),
        "a byte behind a picture": (lambda root: open(root / "a" / "0.bmp", "ab").write(b"\0") and None, False),
    }  # fmt: skip
    for label, (change, equal) in changes.items():
        yield Case(f"replaced: {label}", same(change), used=equal)
