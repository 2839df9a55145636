"""The one place where image files are opened: whatever mode a file has, it becomes RGB by a stated rule or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from flowprior.errors import UserError, one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # by content; others, such as EPS, would start other programs
BACKGROUND = 255  # white, which transparency lets through
SHOWN_AS_THEY_ARE = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
NO_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 256, 257, 258, 262, 274, 339  # tags of TIFF and EXIF
WHITE_IS_ZERO, SIGNED = 0, 2
EXCHANGES = {5, 6, 7, 8}  # orientations that exchange height and width
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file: Path | BinaryIO, name: str = "") -> Image.Image:
    """The picture in ``file`` as a viewer shows it: upright by its EXIF orientation, on white, 8-bit RGB.

    16-bit values count by their high byte, gray ones as Pillow does with those of colours. CMYK is converted without a colour
    profile, and profiles of RGB images are not applied.

    Args:
        file: of the image, or the file opened.
        name: of the image in messages; the file's path if there is none.

    Raises:
        UserError: the file is damaged or none of :data:`FORMATS`, holds several frames, or values without a range of their own.
    """
    name = name or str(file)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            frames = getattr(opened, "n_frames", 1)
            if frames > 1 and opened.format != "MPO":  # whose first frame is the photograph
                raise UserError(f"the image {name} holds {frames} frames: save the one that is meant, or remove it")
            deep_colours = "16" in _raw_mode(opened)
            opened.load()
            # Pillow turns a TIFF when it loads it, and older versions leave its orientation as it was.
            turn = TURNS.get(_orientation(opened)) if opened.format != "TIFF" else None
            image = _rgb(opened, name, deep_colours)
    except UserError:
        raise
    except Exception as error:  # of a damaged file: Pillow's decoders have a dozen; of a bomb: its own
        raise UserError(f"the image {name} cannot be read ({_reason(error)}): mend or remove it") from error
    return image if turn is None else image.transpose(turn)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose own words would name an object in memory
        return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return one_line(error)


def conversions(file: Path | BinaryIO, size: int = 0) -> list[str]:
    """What :func:`read_image` does to the image besides decoding it, by its header; nothing for a file that cannot be read.

    Args:
        file: of the image, or the file opened.
        size: pixels on a side that it is shown with; 0: its own.
    """
    try:
        with Image.open(file, formats=FORMATS) as opened:
            rules = {
                "16-bit values shown by their high byte": "16" in _raw_mode(opened) or opened.mode.startswith("I;16"),
                "an alpha channel shown on white": opened.mode in WITH_ALPHA or "transparency" in opened.info,
                "an EXIF orientation turned upright": _orientation(opened) in TURNS,
                "CMYK converted without a colour profile": opened.mode == "CMYK",
                "CIELAB converted to sRGB": opened.mode == "LAB",
                f"fewer than {size} pixels on a side, enlarged": min(opened.size) < size,
            }
    except Exception:  # whoever reads it names it
        return []
    return [rule for rule, holds in rules.items() if holds]


def read_by_earlier_versions(file: Path) -> bool:
    """Whether :func:`read_image` shows what earlier versions showed, which was each file converted to RGB by Pillow."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            usual = opened.mode in SHOWN_AS_THEY_ARE and "transparency" not in opened.info and _orientation(opened) == 1
            if usual and opened.format != "TIFF":
                return opened.format == "MPO" or getattr(opened, "n_frames", 1) == 1
            shown = np.asarray(opened.convert("RGB"))
    except Exception:  # nor did they read it
        return True
    try:
        return np.array_equal(shown, np.asarray(read_image(file)))
    except UserError:
        return False


def _raw_mode(opened: Image.Image) -> str:
    """How the file's samples are packed, ``RGB;16B`` say; empty where Pillow does not tell."""
    return str(opened.tile[0][3]) if getattr(opened, "tile", None) and len(opened.tile[0]) > 3 else ""


def _orientation(opened: Image.Image) -> int:
    try:
        return int(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # an EXIF block that cannot be read turns nothing, here as in viewers
        return 1


def _tag(opened: Image.Image, number: int) -> int | None:
    """A TIFF's tag, the first of its values."""
    value = opened.tag_v2.get(number) if opened.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value


def _rgb(opened: Image.Image, name: str, deep_colours: bool) -> Image.Image:
    mode = opened.mode
    if mode.startswith("I;16") or (mode == "I" and opened.format == "PNG"):  # I: as Pillow 10 opens 16-bit PNG
        return _from_16_bits(opened)
    if mode in NO_RANGE or _tag(opened, SAMPLE_FORMAT) == SIGNED:
        what = NO_RANGE.get(mode, "signed numbers")
        raise UserError(
            f"the image {name} holds {what} (mode {mode}), whose black and white are not known: save it with 8 or 16 bits per channel"
        )
    if mode == "LAB":
        return _from_lab(opened)
    if mode in WITH_ALPHA or "transparency" in opened.info:
        if deep_colours and mode == "RGB":
            raise UserError(
                f"the image {name} has 16-bit colours, one of which is transparent: save it with an alpha channel"
            )
        whole = opened.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert("RGBA")
        ground = Image.new("RGBA", whole.size, (BACKGROUND,) * 4)
        return Image.alpha_composite(ground, whole).convert("RGB")
    if mode in SHOWN_AS_THEY_ARE:
        return opened.convert("RGB")
    raise UserError(f"the image {name} has mode {mode}, which is not read: save it as RGB")


def _from_16_bits(opened: Image.Image) -> Image.Image:
    values = np.asarray(opened).astype(np.uint16)  # (H, W)
    shown = (values >> ((_tag(opened, BITS) or 16) - 8)).astype(np.uint8)
    if _tag(opened, PHOTOMETRIC) == WHITE_IS_ZERO:
        shown = 255 - shown
    if isinstance(opened.info.get("transparency"), int):
        shown = np.where(values == opened.info["transparency"], np.uint8(BACKGROUND), shown)
    return Image.fromarray(shown).convert("RGB")


def _from_lab(opened: Image.Image) -> Image.Image:
    from PIL import ImageCms

    return ImageCms.profileToProfile(
        opened.copy(), ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def read_size(file: Path | BinaryIO, name: str = "") -> tuple[int, int]:
    """(height, width) of the picture in ``file`` as :func:`read_image` shows it, from its header alone; arguments as there.

    Raises:
        UserError: the file is damaged or none of :data:`FORMATS`.
    """
    name = name or str(file)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            # A TIFF's own numbers: newer versions of Pillow exchange them in size, older ones do not.
            width, height = (_tag(opened, WIDTH) or opened.width, _tag(opened, HEIGHT) or opened.height)
            turned = _orientation(opened) in EXCHANGES
    except Exception as error:  # of a damaged file: Pillow's decoders have a dozen; of a bomb: its own
        raise UserError(f"the image {name} cannot be read ({_reason(error)}): mend or remove it") from error
    return (width, height) if turned else (height, width)
