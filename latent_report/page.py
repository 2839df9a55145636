"""The report as one page of HTML that stands by itself, made from ``report.json`` and a few pictures."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from latent_report.curves import CURVES
from latent_report.figures import FIGURES, GROUPS, Figure
from latent_report.left_out import by_reason
from latent_report.svg import COLOURS, Line, line_plot

ARROWS = {"higher": "↑", "lower": "↓", "": ""}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a202c}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}.scroll{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid #e2e8f0;vertical-align:top}"
    "td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th.number{text-align:right;white-space:nowrap}td.best{font-weight:600}"
    "td.name{white-space:nowrap}td.meaning{color:#4a5568;font-size:.86rem;min-width:18rem}.error{color:#718096;font-weight:400;font-size:.82rem}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}figure{margin:.6rem 0}"
    "figcaption{color:#4a5568;font-size:.86rem}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#4a5568}"
    ".grid{stroke:#e2e8f0}.axis{stroke:#a0aec0}.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem}"
    "img{image-rendering:pixelated;max-width:100%}.note{color:#4a5568;font-size:.9rem}summary{cursor:pointer}"
)


def page(report: dict[str, Any], pictures: list[dict[str, Tensor]]) -> str:
    """The page of a report whose tokenizers' ``pictures`` are uint8 images ``(n, 3, H, H)`` by caption."""
    tokenizers = report["tokenizers"]
    parts = ["<h1>How hard will it be to generate from these latents?</h1>", _head(tokenizers)]
    for group, heading in GROUPS.items():
        section = _table(group, tokenizers) + _curves(group, tokenizers)
        if group == "reconstruction":
            section += _pictures(tokenizers, pictures)
        if section:
            parts.append(f"<h2>{html.escape(heading)}</h2>{section}")
    parts.append(_left_out(tokenizers))
    parts.append(f"<h2>Protocol</h2><p class='note'>{_protocol(report['protocol'])}</p>")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Latent report</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def number(figure: Figure, entry: dict[str, Any] | None) -> str:
    """A figure with its standard error, as text; a dash where there is none."""
    if entry is None or entry["value"] is None:
        return "-"
    unit = f" {figure.unit}" if figure.unit else ""
    error = "" if entry["error"] is None else f" ± {entry['error']:{figure.form}}"
    return f"{entry['value']:{figure.form}}{error}{unit}"


def _head(tokenizers: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class='name'>{_key(place)}{html.escape(one['name'])}</td><td>{html.escape(one['kind'])}</td>"
        f"<td>{one['images']}</td><td>{' x '.join(map(str, one['places']))}</td><td>{one['channels']}</td></tr>"
        for place, one in enumerate(tokenizers)
    )
    return (
        f"<table><tr><th>tokenizer</th><th>kind</th><th>images</th><th>tokens</th><th>channels</th></tr>{rows}</table>"
        "<p class='note'>↑ and ↓ say which direction helps a generator; bold is the best of several by more than two standard errors of the "
        "difference to the worst. ± is one standard error over images. It does not hold what another seed of the same autoencoder would give.</p>"
    )


def _key(place: int) -> str:
    return f"<span class='key' style='background:{COLOURS[place % len(COLOURS)]}'></span>"


def _table(group: str, tokenizers: list[dict[str, Any]]) -> str:
    names = [name for name, figure in FIGURES.items() if figure.group == group]
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
        cells = "".join(_cell(figure, entry, place == best) for place, entry in enumerate(entries))
        label = html.escape(figure.label) + (f" {ARROWS[figure.better]}" if figure.better else "")
        rows.append(
            f"<tr><td class='name'>{label}</td>{cells}<td class='meaning'>{html.escape(figure.meaning)}</td></tr>"
        )
    return f"<div class='scroll'><table><tr><th></th>{heads}<th></th></tr>{''.join(rows)}</table></div>"


def _cell(figure: Figure, entry: dict[str, Any] | None, best: bool) -> str:
    value, _, error = number(figure, entry).partition(" ±")
    tail = f" <span class='error'>±{error}</span>" if error else ""
    return f"<td class='number{' best' if best else ''}'>{value}{tail}</td>"


def best_of(figure: Figure, entries: list[dict[str, Any] | None]) -> int | None:
    """Which tokenizer has the best of a figure, where it has a direction and the best and the worst differ by two standard errors."""
    known = [(entry["value"], place) for place, entry in enumerate(entries) if entry and entry["value"] is not None]
    if not figure.better or len(known) < 2:
        return None
    ranked = sorted(known, reverse=figure.better == "higher")
    (best, place), (worst, last) = ranked[0], ranked[-1]
    errors = [entries[at]["error"] for at in (place, last)]
    if None in errors:  # nobody knows whether they differ
        return None
    return place if abs(best - worst) > 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5 else None


def _curves(group: str, tokenizers: list[dict[str, Any]]) -> str:
    figures = []
    for name, curve in CURVES.items():
        drawn = [(one["name"], one["curves"].get(name)) for one in tokenizers]
        if curve.group != group or not any(values for _, values in drawn):
            continue
        lines = [
            Line(title, values["x"], values["y"], values["error"]) if values else Line(title, [], [])
            for title, values in drawn
        ]
        plot = line_plot(lines, curve.x, curve.y, curve.log)
        caption = f"<b>{html.escape(curve.label)}.</b> {html.escape(curve.meaning)}"
        figures.append(f"<figure>{plot}<figcaption>{caption}</figcaption></figure>")
    return f"<div class='plots'>{''.join(figures)}</div>" if figures else ""


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
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _left_out(tokenizers: list[dict[str, Any]]) -> str:
    lines = [
        f"<li>{_key(place)}{html.escape(one['name'])}: {html.escape(what)}, since {html.escape(why)}</li>"
        for place, one in enumerate(tokenizers)
        for what, why in by_reason(one["left_out"])
    ]
    return f"<h2>Left out, and why</h2><ul class='note'>{''.join(lines)}</ul>" if lines else ""


def _protocol(protocol: dict[str, Any]) -> str:
    return "; ".join(f"{html.escape(str(name))}: {html.escape(str(value))}" for name, value in protocol.items())
