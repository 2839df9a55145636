"""Row 17: the same pictures in every kind of file, mode, size and crop, as samples and as reference; and classes in unlike shares."""

from __future__ import annotations

import functools
import json
import runpy
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey
from flowprior.metrics import Extractor, ImageSet, evaluate_generation
from image_sets import write_tar
from soak.evaluation import refusal
from soak.processes import Process, alone
from soak.sizes import TOLERANCE
from soak.stages import Soak, Trial, stage_folder

COUNT, SIDES = 24, (24, 48)
COMPUTE = Path(__file__).resolve().parents[2] / "fid_stats" / "compute.py"
ORIENTATION, UPRIGHT_AFTER_A_QUARTER = 0x0112, 6
TURN_BACK = Image.Transpose.ROTATE_90  # what orientation 6 undoes


class Form(NamedTuple):
    """Pictures as somebody has them: where, as words of the command say it, what they are when read rightly, and whether their size is free."""

    place: str
    pictures: Tensor  # uint8 (N, 3, S, S); of photographs, which are cropped to any size, at the first of SIDES
    words: tuple[str, ...] = ()  # as the reference, where that takes more than its place
    free: bool = False
    moments_only: bool = False


def alike(soak: Soak) -> Iterator[Trial]:
    """Equal to the same pictures measured one way, or refused in one line where they are not alike."""
    folder = soak.folder / "alike"
    samples, references = sample_forms(folder / "samples", soak.quick), reference_forms(folder / "real", soak.quick)
    for one, sample in samples.items():
        for other, reference in references.items():
            yield f"samples {one}, reference {other}", _compared(soak, folder, sample, reference)
    yield from _shares(soak)


def grey_pictures(seed: int) -> np.ndarray:
    """Grey pictures with fine detail, uint8 ``(N, 24, 24)``: what a resize would change, and every colour mode can hold."""
    return np.random.default_rng(seed).integers(0, 256, (COUNT, SIDES[0], SIDES[0])).astype(np.uint8)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _tensor(grey: np.ndarray) -> Tensor:
    return torch.from_numpy(_rgb(grey)).permute(0, 3, 1, 2).contiguous()


def _enlarged(grey: np.ndarray) -> np.ndarray:
    return grey.repeat(2, axis=1).repeat(2, axis=2)


def _deep(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.astype(np.uint16) * 257)  # 16 bits, black and white where they were


def _with_alpha(mode: str, picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture).convert(mode)
    image.putalpha(255)
    return image


MODES: dict[str, tuple[str, Callable[[np.ndarray], Image.Image]]] = {
    "PNG": ("png", lambda grey: Image.fromarray(_rgb(grey))),
    "BMP": ("bmp", lambda grey: Image.fromarray(_rgb(grey))),
    "TIFF": ("tif", lambda grey: Image.fromarray(_rgb(grey))),
    "WebP": ("webp", lambda grey: Image.fromarray(_rgb(grey))),
    "grey PNG": ("png", Image.fromarray),
    "palette PNG": ("png", lambda grey: Image.fromarray(grey).convert("P")),
    "RGBA PNG": ("png", functools.partial(_with_alpha, "RGBA")),
    "grey PNG with alpha": ("png", functools.partial(_with_alpha, "LA")),
    "grey TIFF": ("tiff", Image.fromarray),
    "16-bit PNG": ("png", _deep),
    "16-bit TIFF": ("tif", _deep),
}


def write_folder(folder: Path, grey: np.ndarray, mode: str = "PNG", classes: int = 1, turned: bool = False) -> Path:
    """``folder`` with a lossless file for every picture, below as many class folders."""
    extension, make = MODES[mode]
    for number, picture in enumerate(grey):
        below = folder / f"class{number * classes // len(grey)}" if classes > 1 else folder
        below.mkdir(parents=True, exist_ok=True)
        image, options = make(picture), {"lossless": True, "exact": True} if extension == "webp" else {}
        if turned:
            image, exif = image.transpose(TURN_BACK), Image.Exif()
            exif[ORIENTATION] = UPRIGHT_AFTER_A_QUARTER
            options["exif"] = exif
        image.save(below / f"{number:03d}.{extension}", **options)
    return folder


def _archive(file: Path, grey: np.ndarray, save: Callable = np.savez, **others: np.ndarray) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file, arr_0=_rgb(grey), **others)
    return str(file)


def sample_forms(folder: Path, quick: bool) -> dict[str, Form]:
    """The samples, at both sizes."""
    small, large = grey_pictures(0), _enlarged(grey_pictures(0))
    forms = {
        "npz 24": Form(_archive(folder / "npz24.npz", small), _tensor(small)),
        "PNG 24": Form(str(write_folder(folder / "png24", small)), _tensor(small)),
        "npz 48": Form(_archive(folder / "npz48.npz", large), _tensor(large)),
    }
    if quick:
        return forms
    packed = [(f"{n:03d}.png", (folder / "png24" / f"{n:03d}.png").read_bytes()) for n in range(COUNT)]
    forms["tar 24"] = Form(str(write_tar(folder / "tar24.tar", packed)), _tensor(small))
    forms["compressed npz 24"] = Form(_archive(folder / "z24.npz", small, np.savez_compressed), _tensor(small))
    forms["PNG 48 in class folders"] = Form(str(write_folder(folder / "png48", large, classes=3)), _tensor(large))
    forms["PNG 24, turned by EXIF"] = Form(str(write_folder(folder / "exif24", small, turned=True)), _tensor(small))
    for mode in list(MODES)[1:]:
        forms[f"{mode} 24"] = Form(str(write_folder(folder / mode.replace(" ", "_"), small, mode)), _tensor(small))
    return forms


def reference_forms(folder: Path, quick: bool) -> dict[str, Form]:
    """The real pictures: others than the samples, in every kind of reference."""
    small, large = grey_pictures(1), _enlarged(grey_pictures(1))
    png24, png48 = (write_folder(folder / f"png{len(grey[0])}", grey) for grey in (small, large))
    photographs = write_folder(folder / "photographs", np.pad(small, ((0, 0), (3, 9), (20, 4)), "symmetric"))
    stated, unstated = folder / "stated24.npz", folder / "unstated24.npz"
    _compute(png24, SIDES[0], stated)
    with np.load(stated) as arrays:
        moments = {name: arrays[name] for name in ("mu", "sigma")}
    np.savez(unstated, **moments)
    forms = {
        "data 24": Form("data", _tensor(small), _data(png24, SIDES[0])),
        "PNG 24": Form(str(png24), _tensor(small)),
        "npz 48": Form(_archive(folder / "npz48.npz", large), _tensor(large)),
        "statistics 24": Form(str(stated), _tensor(small), moments_only=True),
        "photographs": Form(str(photographs), _tensor(small), free=True),
    }
    if quick:
        return forms
    _compute(png48, SIDES[1], folder / "stated48.npz")
    with zipfile.ZipFile(folder / "zip24.zip", "w") as archive:
        for file in sorted(png24.iterdir()):
            archive.write(file, file.name)
    forms |= {
        "npz 24": Form(_archive(folder / "npz24.npz", small), _tensor(small)),
        "npz 24 with moments": Form(_archive(folder / "both24.npz", small, **moments), _tensor(small)),
        "PNG 48": Form(str(png48), _tensor(large)),
        "zip 24": Form(str(folder / "zip24.zip"), _tensor(small)),
        "data in a zip 24": Form("data", _tensor(small), _data(folder / "zip24.zip", SIDES[0])),
        "data 48": Form("data", _tensor(large), _data(png48, SIDES[1])),
        "statistics 48": Form(str(folder / "stated48.npz"), _tensor(large), moments_only=True),
        "grey PNG 24": Form(str(write_folder(folder / "grey", small, "grey PNG")), _tensor(small)),
        "16-bit PNG 24": Form(str(write_folder(folder / "deep", small, "16-bit PNG")), _tensor(small)),
    }
    return forms


def _data(folder: Path, side: int) -> tuple[str, ...]:
    return "data.source=files", f"data.path={folder}", f"data.size={side}"


def _compute(folder: Path, side: int, out: Path) -> None:
    def work() -> None:
        sys.argv = ["compute.py", str(folder), "--extractor", "digits", "--size", str(side), "--out", str(out)]
        runpy.run_path(str(COMPUTE), run_name="__main__")

    process = alone(work, out.with_suffix(".output"))
    if process.code != 0:
        raise RuntimeError(process.said())


def _compared(soak: Soak, folder: Path, sample: Form, reference: Form) -> str | None:
    """What is wrong with the command's metrics, or with its refusal."""
    run = folder / "run"
    metrics = ("fid",) if reference.moments_only else ("fid", "precision_recall")
    words = [f"evaluate.samples={sample.place}", f"evaluate.reference={reference.place}", f"sample.count={COUNT}"]
    words += [f"evaluate.metrics=[{','.join(metrics)}]", "evaluate.half_half_splits=0", *reference.words]
    process = soak.start("evaluate", run, *words)
    side = sample.pictures.shape[-1]
    alike = reference.free or reference.pictures.shape[-1] == side
    try:
        if not alike:
            other = reference.pictures.shape[-1]
            crops = reference.place == "data" or reference.moments_only
            return refusal(process, f"{side} x {side}", "crop" if crops else f"{other} x {other}", str(other))
        if process.wait() != 0:
            return process.said()[-300:]
        file = stage_folder("evaluate", run) / f"evaluation_{Path(sample.place).stem}.json"
        result = json.loads(file.read_text())
    finally:
        shutil.rmtree(run, ignore_errors=True)
    [seen] = result["protocol"]["samples"].values()
    told = {seen["size"], result["protocol"]["reference"]["size"]}
    if told != {f"{side} x {side}"}:
        return f"the protocol says {told}"
    pictures = _photographs(reference.place, side) if reference.free else reference.pictures
    sets = [ImageSet(images, Extractor("digits")) for images in (sample.pictures, pictures)]
    [measured] = result["metrics"].values()
    for name, value in evaluate_generation(*sets, metrics).items():
        if abs(measured[name] - value) > TOLERANCE * max(1, abs(value)):
            return f"{name} {measured[name]} in place of {value}"
    return None


def _photographs(folder: str, side: int) -> Tensor:
    """The central crops that training would see."""
    images = open_images(ImageConfig(source="folder", path=folder, size=side))
    return images.batch([SampleKey(index, -1) for index in range(len(images))])["image"]


def _shares(soak: Soak) -> Iterator[Trial]:
    """Classes of 18 and 2 images: sampled so, and otherwise said; by one process and by two."""
    for label, words, wanted in (
        ("the data's", ["sample.class_shares=auto"], [18, 2]),
        ("equal", ["sample.class_shares=equal"], [10, 10]),
    ):
        sets = []
        for ranks in (1, 2) if not soak.quick or wanted == [18, 2] else (1,):
            run = _unbalanced(soak)
            process = soak.start("generate", run, *words, ranks=ranks)
            yield f"{label} shares, {ranks} processes", _drawn(process, run, wanted)
            with np.load(run / "mar" / "samples" / "cfg_2.npz") as arrays:
                sets.append((arrays["arr_0"], arrays["labels"]))
        if len(sets) > 1:
            same = all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(*sets))
            yield f"{label} shares, the same images by two processes", None if same else "other images"
        process = soak.start("evaluate", run, *words, data=_unbalanced_data(soak))
        code, said = process.wait(), process.said()
        noted = "in other shares than the reference's (class class0: 50.0% against 90.0%" in said
        fine = code == 0 and noted == (label == "equal")
        yield f"{label} shares against data of 18 and 2", None if fine else f"exit code {code}: {said[-300:]}"


def _drawn(process: Process, run: Path, wanted: list[int]) -> str | None:
    if process.wait() != 0:
        return process.said()[-300:]
    with np.load(run / "mar" / "samples" / "cfg_2.npz") as arrays:
        counts = np.bincount(arrays["labels"], minlength=2).tolist()
    return None if counts == wanted else f"classes of {counts} images"


def _unbalanced(soak: Soak) -> Path:
    """A run whose generator says that its data had 18 images of one class and 2 of the other."""
    run = soak.fresh("generate")
    file = run / "mar" / "generator" / "config.json"
    config = json.loads(file.read_text())
    config["about"]["class_counts"] = [18, 2]
    file.write_text(json.dumps(config))
    return run


def _unbalanced_data(soak: Soak) -> Path:
    folder = soak.folder / "data" / "unbalanced"
    if not folder.is_dir():
        for number, picture in enumerate(grey_pictures(2)[:20]):
            file = folder / f"class{int(number >= 18)}" / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_rgb(picture)).save(file)
    return folder
