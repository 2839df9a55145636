"""The page: a tab for every generator, one for the autoencoder, one for the walk between two images, and one for the flow prior."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from demo.actions import generate, prior_picture, read_as_cropped, rebuild, walk
from demo.fields import filled, sampler_option, upload
from demo.trained_run import TrainedGenerator, TrainedRun
from flowprior.errors import UserError, one_line
from flowprior.run.config import apply_overrides, build_config
from flowprior.run.pictures import save_sheet

WIDTH_OF_SHEET = 720
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "the device"}  # a generator's sampler is set, then used


def build_page(run: TrainedRun) -> gr.Blocks:
    """The page of an opened run."""
    files = Path(tempfile.mkdtemp(prefix="demo"))
    with gr.Blocks(title=str(run.folder), analytics_enabled=False) as page:
        gr.Markdown(f"# {run.folder}")
        for name, generator in run.generators.items():
            with gr.Tab(generator.title):
                _generator_tab(name, generator)
        examples = _examples(run, files)
        with gr.Tab("Rebuild"):
            _rebuild_tab(run, examples)
        with gr.Tab("Walk"):
            _walk_tab(run, examples)
        if run.prior is not None:
            with gr.Tab("Flow prior"):
                _prior_tab(run, files)
        if run.left_out:
            gr.Markdown("Not on this page: " + "; ".join(f"{what} ({why})" for what, why in run.left_out.items()) + ".")
    return page


def serve(page: gr.Blocks, port: int) -> None:
    """Serve the page on this machine alone until Ctrl-C; a :class:`UserError` where the port is taken."""
    try:
        font = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]  # none that a browser fetches from elsewhere
        page.queue().launch(
            server_name="127.0.0.1", server_port=port, show_error=True, theme=gr.themes.Default(font=font)
        )
    except OSError as error:
        raise UserError(f"port {port} is taken: write --port <another>") from error


def _generator_tab(name: str, generator: TrainedGenerator) -> None:
    shown = [field for field in dataclasses.fields(generator.sampler) if field.init]
    with gr.Row():
        with gr.Column(scale=1):
            classes = gr.Dropdown(
                # by words in the API as well, which calls every choice a string
                [(name, str(number)) for number, name in enumerate(generator.class_names)],
                multiselect=True,
                label="classes",
                info="none chosen: all",
            )
            per_class = filled(gr.Slider(1, 16, 4, step=1, label="images of each"))
            cfg = filled(
                gr.Slider(0, 6, generator.config.sample.preview_cfg, step=0.05, label="guidance", info="1: none")
            )
            classes.preprocess = lambda chosen: chosen or []  # what is no class is said by generate
            seed = filled(gr.Number(generator.config.sample.seed, precision=0, label="seed"))
            with gr.Accordion("sampler", open=False):
                options = [sampler_option(field, generator.sampler) for field in shown]
            button = gr.Button("Generate", variant="primary")
        with gr.Column(scale=2):
            sheet, said = _picture(), gr.Markdown()

    @_said_in_the_browser
    def run_it(classes: list[str], per_class: int, cfg: float, seed: int, *values: Any) -> tuple[np.ndarray, str]:
        words = [f"{field.name}={_word(value)}" for field, value in zip(shown, values)]
        generator.sample_by(build_config(type(generator.sampler), apply_overrides({}, words)))
        images, seconds = generate(generator, [_class(one) for one in classes], int(per_class), cfg, _seed(seed))
        told = f"{len(images)} images in {seconds:.1f} s, {seconds / len(images):.3f} s each"
        if len(images) == 1:
            told = f"1 image in {seconds:.3f} s"
        return _sheet_of_classes(images, int(per_class)), ". ".join(filter(None, [told, generator.otherwise()]))

    names = ["classes", "per_class", "cfg", "seed", *(field.name for field in shown)]  # what "Use via API" calls them
    run_it.__signature__ = inspect.Signature(
        [inspect.Parameter(word, inspect.Parameter.POSITIONAL_OR_KEYWORD) for word in names]
    )
    button.click(
        run_it, [classes, per_class, cfg, seed, *options], [sheet, said], api_name=f"generate_{name}", **ONE_AT_A_TIME
    )


def _rebuild_tab(run: TrainedRun, examples: list[str]) -> None:
    side = run.autoencoder.config.image_size
    with gr.Row():
        with gr.Column(scale=1):
            image = upload(f"an image; its centre is taken at {side} pixels")
            noise = filled(
                gr.Slider(
                    0,
                    2,
                    0,
                    step=0.05,
                    label="noise on the latents",
                    info="share of their deviation over images, of every token's every channel",
                    interactive=run.deviation is not None,
                )
            )
            seed = filled(gr.Number(0, precision=0, label="seed of the noise"))
            button = gr.Button("Rebuild", variant="primary")
            if examples:
                gr.Examples(
                    examples, image, label="images that the autoencoder is measured on, or the generator was trained on"
                )
        with gr.Column(scale=2):
            gr.Markdown("Left to right: the image, rebuilt, rebuilt with noise.")
            sheet, said = _picture(), gr.Markdown()

    @_said_in_the_browser
    def run_it(file: str | None, noise: float, seed: int) -> tuple[np.ndarray, str]:
        found = rebuild(run, read_as_cropped(run, file), noise, _seed(seed))
        return _sheet(found.images, 3), "PSNR {:.2f} dB, with noise {:.2f} dB".format(*found.psnr)

    button.click(run_it, [image, noise, seed], [sheet, said], api_name="rebuild", **ONE_AT_A_TIME)


def _walk_tab(run: TrainedRun, examples: list[str]) -> None:
    with gr.Row():
        ends = [upload(name) for name in ("from", "to")]
    steps = filled(gr.Slider(3, 16, 9, step=1, label="images on the way"))
    button = gr.Button("Walk", variant="primary")
    gr.Markdown("Above: a straight line through the pixels. Below: through the latents.")
    sheet = _picture()
    if examples:
        gr.Examples([[examples[i - 1], examples[i]] for i in range(1, len(examples), 2)], ends, label="pairs")

    @_said_in_the_browser
    def run_it(first: str | None, last: str | None, steps: int) -> np.ndarray:
        images = torch.cat([read_as_cropped(run, file) for file in (first, last)])
        return _sheet(walk(run, images, int(steps)), int(steps))

    button.click(run_it, [*ends, steps], sheet, api_name="walk", **ONE_AT_A_TIME)


def _prior_tab(run: TrainedRun, files: Path) -> None:
    with gr.Row():
        count = filled(gr.Slider(100, 4000, 2000, step=100, label="samples"))
        steps = filled(gr.Slider(1, 100, 50, step=1, label="Heun steps"))
        seed = filled(gr.Number(0, precision=0, label="seed"))
    button = gr.Button("Sample", variant="primary")
    picture, said = _picture(), gr.Markdown()

    @_said_in_the_browser
    def run_it(count: int, steps: int, seed: int) -> tuple[str, str]:
        file = files / "prior.png"
        seconds = prior_picture(run, int(count), int(steps), _seed(seed), file)
        return str(file), f"{int(count)} samples in {seconds:.2f} s"

    button.click(run_it, [count, steps, seed], [picture, said], api_name="prior", **ONE_AT_A_TIME)


def _examples(run: TrainedRun, files: Path) -> list[str]:
    """The run's example images as files."""
    paths = [files / f"example_{i}.png" for i in range(0 if run.examples is None else len(run.examples))]
    for path, image in zip(paths, run.examples if paths else []):
        save_sheet(path, image.unsqueeze(0), 1)
    return [str(path) for path in paths]


def _picture() -> gr.Image:
    """Where a result is shown."""
    return gr.Image(show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"])


def _class(chosen: str) -> int:
    """A class's number; a :class:`UserError` where it is none."""
    if not str(chosen).isdecimal():
        raise UserError(f"classes are given by number, not as {chosen!r}")
    return int(chosen)


def _seed(seed: float) -> int:
    """What a seed's field holds; a :class:`UserError` where it is below 0, which elsewhere asks for a random one."""
    if seed < 0:
        raise UserError(f"seed is 0 or more, not {seed:g}: the same seed draws the same again")
    return int(seed)


def _word(value: Any) -> str:
    """A component's value as a person writes it behind ``option=``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sheet_of_classes(images: Tensor, per_class: int) -> np.ndarray:
    """Images ``(classes x per_class, 3, H, H)``: up to ten classes as columns, more as rows, and one alone in a square."""
    classes = len(images) // per_class
    if classes == 1:
        return _sheet(images, math.ceil(math.sqrt(per_class)))
    if classes > 10:
        return _sheet(images, per_class)
    return _sheet(images.unflatten(0, (classes, per_class)).transpose(0, 1).flatten(0, 1), classes)


def _sheet(images: Tensor, columns: int) -> np.ndarray:
    """Images uint8 ``(N, 3, H, H)`` as one picture ``(height, width, 3)``, enlarged by a whole factor where they are small."""
    enlarge = max(1, round(WIDTH_OF_SHEET / (columns * images.shape[-1])))
    images = images.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    return make_grid(images, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def _said_in_the_browser(action: Callable[..., Any]) -> Callable[..., Any]:
    """A person's mistake as a message on the page."""

    @functools.wraps(action)
    def guarded(*values: Any) -> Any:
        try:
            return action(*values)
        except UserError as error:
            raise gr.Error(one_line(error), print_exception=False) from error

    return guarded
