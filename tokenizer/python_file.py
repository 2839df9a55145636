"""A custom autoencoder, loaded from a Python file.

The file has a function ``load()``, which returns a ``torch.nn.Module``. Its ``encode`` takes images ``(B, 3, H, H)`` in [-1, 1] and gives tokens
``(B, T, C)`` or a map ``(B, C, h, w)``, or a pair of such, mean and log-variance of a posterior. Its ``decode`` takes latents of that form and
gives images. Naming the file runs it: it is the user's own code.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.errors import UserError, one_line
from flowprior.run.files import file_sha256, tensors_fingerprint
from flowprior.training.randomness import stream_seed
from tokenizer.autoencoder import Encoded
from tokenizer.latent_form import Sizes, as_map, as_tokens


def is_python_file(named: str | Path) -> bool:
    """Whether an autoencoder is named by a Python file."""
    return Path(named).suffix == ".py"


class PythonAutoencoder(nn.Module):
    """Images ``(B, 3, H, H)`` to tokens ``(B, T, C)`` and back by the module of a Python file; each place of a map is a token, row by row.

    Attributes:
        config: sizes, of images of the side that :meth:`at` has set.
        places: (h, w) of a map, (T,) of a sequence.
        latent_maps: none.
    """

    latent_maps = ()

    def __init__(self, model: nn.Module, file: Path) -> None:
        super().__init__()
        self.model, self.file = model, file
        # A module without weights has a device, too.
        self.device_marker = nn.Parameter(torch.empty(0), requires_grad=False)
        self.places: tuple[int, ...] = ()
        self.config = Sizes(0, 0, 0)
        weights = _called(file, "the fingerprint of state_dict()", lambda: tensors_fingerprint(model.state_dict()))
        self.fingerprint = f"{stream_seed(file_sha256(file), weights):016x}"

    @classmethod
    def load(cls, named: str | Path) -> PythonAutoencoder:
        """What the file's ``load()`` returns, frozen, in evaluation mode and on the CPU.

        Raises:
            UserError: there is no such file, it fails, it has no ``load``, or that returns no module with ``encode`` and ``decode``.
        """
        file = Path(named)
        if not file.is_file():
            raise UserError(f"there is no Python file at {file}")
        spec = importlib.util.spec_from_file_location(f"autoencoder_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        if (folder := str(file.resolve().parent)) not in sys.path:
            sys.path.append(folder)  # last, so that it hides none of this project's modules
        _called(file, "running the file", spec.loader.exec_module, module)
        _check_neighbours(file)
        load = getattr(module, "load", None)
        if not callable(load):
            raise UserError(
                f"{file} has no function load(): write one that returns a torch.nn.Module with encode and decode"
            )
        model = _called(file, "load()", load)
        if not isinstance(model, nn.Module) or not all(callable(getattr(model, n, None)) for n in ("encode", "decode")):
            raise UserError(
                f"load() of {file} returns {type(model).__name__}, and not a torch.nn.Module with encode and decode"
            )
        return cls(model.cpu().requires_grad_(False), file).eval()

    @torch.no_grad()
    def at(self, size: int) -> PythonAutoencoder:
        """Itself, for images of ``size`` pixels on a side: two black ones are tried.

        Raises:
            UserError: the module fails at them, gives latents or images of another form, or other latents at every call.
        """
        images = torch.full((2, 3, size, size), -1.0, device=self.device_marker.device)
        what = f"encode of images (2, 3, {size}, {size})"
        code, again = (_called(self.file, what, self.model.encode, images) for _ in range(2))
        parts, parts_again = (c if isinstance(c, (tuple, list)) else [c] for c in (code, again))
        whole = isinstance(code, Tensor) or len(parts) == 2
        whole = whole and all(isinstance(part, Tensor) and part.is_floating_point() for part in parts)
        shape = tuple(parts[0].shape) if whole and parts[0].shape == parts[-1].shape else ()
        if len(shape) not in (3, 4) or shape[0] != 2 or 0 in shape:
            raise UserError(
                f"{what} in {self.file} gives {_shown(code)}, and not floating-point tokens (2, T, C), a map (2, C, h, w), or a pair of such, "
                "mean and log-variance"
            )
        if not all(torch.allclose(*pair, equal_nan=True) for pair in zip(parts, parts_again)):
            raise UserError(
                f"{what} in {self.file} gives other latents at every call: return a pair, mean and log-variance, and leave the drawing to this "
                "project, or the mean alone"
            )
        self.places = shape[2:] if len(shape) == 4 else shape[1:2]
        tokens, channels = (shape[2] * shape[3], shape[1]) if len(shape) == 4 else shape[1:]
        self.config = Sizes(size, tokens, channels, gaussian=len(parts) == 2)
        what = f"decode of latents {shape}"
        # Through the tokens, as sampled latents come, and not as the module happens to lay its own out in memory.
        pictures = _called(self.file, what, self.decode, as_tokens(parts[0]).contiguous())
        if not isinstance(pictures, Tensor) or pictures.shape != images.shape or not pictures.is_floating_point():
            raise UserError(
                f"{what} in {self.file} gives {_shown(pictures)}, and not floating-point images {tuple(images.shape)} in [-1, 1]"
            )
        return self

    def posterior(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """The tokens, and of a posterior mean and log-variance ``(B, T, C)``; with ``noise`` of that shape its latents are drawn."""
        code = self.model.encode(images)
        if not self.config.gaussian:
            tokens = as_tokens(code)
            return Encoded(tokens, tokens, None)
        mean, logvar = map(as_tokens, code)
        return Encoded(mean if noise is None else mean + (0.5 * logvar).exp() * noise, mean, logvar)

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images).latents  # (B, T, C)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(as_map(latents, self.places))  # (B, 3, H, H)


def _check_neighbours(file: Path) -> None:
    """A :class:`UserError` where a module beside ``file`` has the name of another that is loaded, which an import in the file would have got."""
    folder = file.resolve().parent
    for place in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        name = place.stem if place.parent == folder else place.parent.name
        other = getattr(sys.modules.get(name), "__file__", None)
        if place != file.resolve() and other and Path(other).resolve() != place:
            raise UserError(
                f"beside {file} lies a module {name}, and another of that name is loaded from {other}: call it otherwise, so that the file "
                "gets its own"
            )


def _called(file: Path, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` of somebody's file; a :class:`UserError` with the place where it fails."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # any: it is anybody's code
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == file.resolve()
        ]
        line = f", line {own[-1].lineno}" if own else ""
        raise UserError(f"{file}{line}: {what} fails with {type(error).__name__}: {one_line(error)}") from error


def _shown(value: Any) -> str:
    """Type and shape of what was given, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"({', '.join(map(_shown, value))})" if isinstance(value, (tuple, list)) else type(value).__name__
