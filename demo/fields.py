"""What a person fills in on the page; what a field cannot mean is one sentence, where gradio has its own exception or rounds."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

import gradio as gr


def filled(field: gr.Number | gr.Slider) -> gr.Number | gr.Slider:
    """The field, which refuses to be empty, and a fraction where it asks for a whole number."""
    read_by_gradio = field.preprocess
    whole = field.step == 1 if isinstance(field, gr.Slider) else field.precision == 0

    def preprocess(value: float | None) -> float:
        if value is None:
            raise gr.Error(f"{field.label} is empty: write a {'whole ' * whole}number", print_exception=False)
        if whole and value != int(value):
            raise gr.Error(f"{field.label} is a whole number, not {value:g}", print_exception=False)
        return read_by_gradio(value)

    field.preprocess = preprocess
    return field


def upload(label: str) -> gr.Image:
    """Where a person puts an image; its file is read as every image of a data set is."""
    image = gr.Image(type="filepath", label=label, image_mode=None, sources=["upload", "clipboard"], height=260)
    read_by_gradio = image.preprocess

    def preprocess(payload: Any) -> str | None:
        """The path of the file as it is: gradio's own opens it, and its objection to what is no image is a dozen lines."""
        return payload.path if payload is not None and payload.path else read_by_gradio(payload)

    image.preprocess = preprocess
    return image


def sampler_option(field: dataclasses.Field, sampler: Any) -> gr.components.Component:
    """What sets one of the sampler's options, with the option's help."""
    hint, value = typing.get_type_hints(type(sampler))[field.name], getattr(sampler, field.name)
    labels = {"label": field.name, "info": field.metadata.get("help", "")}
    if hint is bool:
        return gr.Checkbox(value, **labels)
    if typing.get_origin(hint) is Literal:
        return gr.Dropdown(list(typing.get_args(hint)), value=value, **labels)
    if hint in (int, float):
        return filled(gr.Number(value, precision=0 if hint is int else None, **labels))
    return gr.Textbox(str(list(value)) if isinstance(value, tuple) else str(value), **labels)
