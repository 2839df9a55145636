"""The report as one page of HTML that stands by itself, made from ``report.json`` and a few pictures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from latent_report.curves import CURVES
from latent_report.figures import FIGURES, GLANCE, GLANCE_CURVES, GROUPS, Figure, number
from latent_report.forecast import HOW, lines
from latent_report.left_out import by_reason
from latent_report.svg import COLOURS, Line, line_plot

ARROWS = {"higher": "↑", "lower": "↓", "": ""}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#1a202c}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}.scroll{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid #e2e8f0;vertical-align:top}"
    "td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th.number{text-align:right;white-space:nowrap}td.best{font-weight:600}"
    "td.name{min-width:17rem}td.path{color:#4a5568;font-size:.86rem;overflow-wrap:anywhere}code{font-size:.82rem}.meaning{color:#4a5568;font-size:.86rem}.error{color:#718096;font-weight:400;font-size:.82rem}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}figure{margin:.6rem 0}"
    "figcaption{color:#4a5568;font-size:.86rem}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#4a5568}"
    ".grid{stroke:#e2e8f0}.axis{stroke:#a0aec0}.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem}"
    "img{image-rendering:pixelated;max-width:100%}.note{color:#4a5568;font-size:.9rem}summary{cursor:pointer}"
)


def page(report: dict[str, Any], pictures: list[dict[str, Tensor]]) -> str:
    """The page of a report whose tokenizers' ``pictures`` are uint8 images ``(n, 3, H, H)`` by caption."""
    tokenizers = report["tokenizers"]
    parts = ["<h1>How hard will it be to generate from these latents?</h1>", _head(tokenizers), _glance(tokenizers)]
    for group, heading in GROUPS.items():
        names = [name for name, figure in FIGURES.items() if figure.group == group]
        curves = [name for name, curve in CURVES.items() if curve.group == group and not curve.drawn_in]
        section = _table(names, tokenizers) + _curves(curves, tokenizers)
        if group == "reconstruction":
            section += _pictures(tokenizers, pictures)
        if section:
            parts.append(f"<h2>{html.escape(heading)}</h2>{section}")
    parts += [_forecast(report), _remarks(tokenizers), _left_out(tokenizers)]
    parts.append(f"<h2>Protocol</h2>{_protocol(report['protocol'])}")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Latent report</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def _head(tokenizers: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class='name'>{_key(place)}{html.escape(one['name'])}</td><td class='path'>{html.escape(one['path'])}</td>"
        f"<td>{html.escape(one['kind'])}</td><td>{one['images']}</td><td>{' x '.join(map(str, one['places']))}</td>"
        f"<td>{one['channels']}</td><td>{math.prod(one['places']) * one['channels']}</td></tr>"
        for place, one in enumerate(tokenizers)
    )
    heads = "".join(
        f"<th>{h}</th>" for h in ("tokenizer", "", "kind", "images", "tokens", "channels", "values per image")
    )
    several = (
        " Bold are the best of several and all within two standard errors of it, where others are not."
        if len(tokenizers) > 1
        else ""
    )
    unlike = (
        " The numbers of images differ, and with them rFID, effective ranks, log-likelihood and every bound: images= takes as many of each."
        if len({one["images"] for one in tokenizers}) > 1
        else ""
    )
    starred = (
        " A star * says: to be read with care, for the reason at the end of the page."
        if any(one["remarks"] for one in tokenizers)
        else ""
    )
    return (
        f"<div class='scroll'><table><tr>{heads}</tr>{rows}</table></div>"
        "<p class='note'>↑ and ↓ say which direction helps a generator; without an arrow neither is known to help by itself. ± is one standard "
        f"error over images, and does not hold what another seed of the same autoencoder would give.{several}{starred}{unlike}</p>"
    )


def _glance(tokenizers: list[dict[str, Any]]) -> str:
    table, curves = _table(list(GLANCE), tokenizers), _curves(list(GLANCE_CURVES), tokenizers)
    note = (
        "No number ranks tokenizers by itself. Reconstruction bounds what a generator can reach; rFID under noise says what its errors will cost, "
        "and the irreducible variance how many it must make. That variance is small, too, where tokens differ by their places more than by "
        "their images: read it beside the variance between tokens. The total correlation says how much a generator must learn of tokens together, "
        "and Euler's steps what it costs to draw one image."
    )
    return f"<h2>At a glance</h2>{table}{curves}<p class='note'>{note}</p>" if table else ""


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _key(place: int) -> str:
    return f"<span class='key' style='background:{_colour(place)}'></span>"


def _table(names: list[str], tokenizers: list[dict[str, Any]]) -> str:
    names = [name for name in names if any(name in one["figures"] for one in tokenizers)]
    if not names:
        return ""
    heads = "".join(
        f"<th class='number'>{_key(place)}{html.escape(one['name'])}</th>" for place, one in enumerate(tokenizers)
    )
    rows = []
    for name in names:
        figure = FIGURES[name]
        entries = [one["figures"].get(name) for one in tokenizers]
        best = best_of(figure, entries)
        cells = "".join(
            _cell(figure, entry, place in best, name in tokenizers[place]["remarks"])
            for place, entry in enumerate(entries)
        )
        label = html.escape(figure.label) + (f" {ARROWS[figure.better]}" if figure.better else "")
        meaning = f"<div class='meaning'>{html.escape(figure.meaning)}</div>"
        rows.append(f"<tr><td class='name'>{label}{meaning}</td>{cells}</tr>")
    return f"<div class='scroll'><table><tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"


def _cell(figure: Figure, entry: dict[str, Any] | None, best: bool, remark: bool) -> str:
    value, _, error = number(figure, entry).partition(" ±")
    tail = f" <span class='error'>±{error}</span>" if error else ""
    tail += "<span title='to be read with care, below'> *</span>" if remark else ""
    return f"<td class='number{' best' if best else ''}'>{value}{tail}</td>"


def best_of(figure: Figure, entries: list[dict[str, Any] | None]) -> set[int]:
    """Which tokenizers have the best of a figure, or lie within two standard errors of it; none where that is all of them, or where the
    figure has no direction or no error."""
    known = [(entry["value"], place) for place, entry in enumerate(entries) if entry and entry["value"] is not None]
    if not figure.better or len(known) < 2 or any(entries[place]["error"] is None for _, place in known):
        return set()
    best, first = (max if figure.better == "higher" else min)(known)
    own = entries[first]["error"]
    near = {place for value, place in known if abs(value - best) <= 2 * math.hypot(own, entries[place]["error"])}
    return near if len(near) < len(known) else set()


def _curves(names: list[str], tokenizers: list[dict[str, Any]]) -> str:
    figures = []
    for name in names:
        curve = CURVES[name]
        together = {name: curve} | {other: beside for other, beside in CURVES.items() if beside.drawn_in == name}
        lines = [
            Line(one["name"], values["x"], values["y"], values["error"], _colour(place), bool(drawn.drawn_in))
            for key, drawn in together.items()
            for place, one in enumerate(tokenizers)
            if (values := one["curves"].get(key))
        ]
        if not lines:
            continue
        plot = line_plot(lines, curve.x, curve.y, curve.log, curve.log_x)
        meaning = " ".join(drawn.meaning for drawn in together.values())
        caption = f"<b>{html.escape(_capital(curve.label))}.</b> {html.escape(meaning)}"
        figures.append(f"<figure>{plot}<figcaption>{caption}</figcaption></figure>")
    return f"<div class='plots'>{''.join(figures)}</div>" if figures else ""


def _capital(label: str) -> str:
    """A label as a heading, but for a name such as rFID."""
    return label[0].upper() + label[1:] if label[1].islower() else label


def _pictures(tokenizers: list[dict[str, Any]], pictures: list[dict[str, Tensor]]) -> str:
    figures = []
    for place, (one, rows) in enumerate(zip(tokenizers, pictures)):
        if rows:
            caption = (
                f"{_key(place)}{html.escape(one['name'])}, from top to bottom: {', '.join(map(html.escape, rows))}"
            )
            figures.append(
                f"<figure>{_image(torch.cat(list(rows.values())), len(next(iter(rows.values()))))}<figcaption>{caption}</figcaption></figure>"
            )
    return f"<div class='plots'>{''.join(figures)}</div>" if figures else ""


def _image(images: Tensor, columns: int) -> str:
    """uint8 images ``(n, 3, H, H)`` as one PNG inside the page, small ones enlarged."""
    times = 2 if images.shape[-1] <= 64 else 1
    enlarged = images.repeat_interleave(times, -1).repeat_interleave(times, -2)
    sheet = make_grid(enlarged, nrow=columns, padding=2, pad_value=255)
    buffer = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(buffer, "png", optimize=True)
    return (
        f'<img alt="{len(images)} images" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _forecast(report: dict[str, Any]) -> str:
    """What generators are expected to make of the latents, or how one gets to know."""
    heading = "<h2>Forecast: what generators will make of them</h2>"
    if not (table := lines(report)):
        return f"{heading}<p class='note'>{html.escape(HOW)}</p>"
    heads, *rows = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(table))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    note = (
        "The FID without guidance that a generator is expected to reach, as a ratio to what it reaches on the latents of the study's row without "
        "a regulariser, trained as that is. The factor is the error on ways of shaping latents that were left out of the fit, root mean square "
        "of the logarithm; rank 1 is the lowest FID among the study's rows and this one."
    )
    return f"{heading}<div class='scroll'><table><tr>{heads}</tr>{body}</table></div><p class='note'>{note}</p>"


def _tagged(table: list[list[str]]) -> list[tuple[str, list[str]]]:
    return [("td" if place else "th", row) for place, row in enumerate(table)]


def _remarks(tokenizers: list[dict[str, Any]]) -> str:
    lines = [
        f"<li>{_key(place)}{html.escape(one['name'])}: {html.escape(FIGURES[name].label)}: {html.escape(remark)}</li>"
        for place, one in enumerate(tokenizers)
        for name, remark in one["remarks"].items()
    ]
    return f"<h2>* To be read with care</h2><ul class='note'>{''.join(lines)}</ul>" if lines else ""


def _left_out(tokenizers: list[dict[str, Any]]) -> str:
    whose: dict[tuple[str, str], list[str]] = {}
    for place, one in enumerate(tokenizers):
        for pair in by_reason(one["left_out"]):
            whose.setdefault(pair, []).append(f"{_key(place)}{html.escape(one['name'])}")
    lines = [
        f"<li>{', '.join(names)}: {html.escape(what)}, since {html.escape(why)}</li>"
        for (what, why), names in whose.items()
    ]
    return f"<h2>Left out, and why</h2><ul class='note'>{''.join(lines)}</ul>" if lines else ""


def _protocol(protocol: dict[str, Any]) -> str:
    words = " ".join(f"{name}={_word(value)}" for name, value in _flat(protocol["options"]) if value not in ("", None))
    rest = "; ".join(f"{html.escape(name)}: {html.escape(str(v))}" for name, v in protocol.items() if name != "options")
    return f"<p class='note'>{rest}</p><p class='note'><code>{html.escape(words)}</code></p>"


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)
