"""Line plots as inline SVG: nothing to load, sharp at any size."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

COLOURS = ("#2b6cb0", "#c53030", "#2f855a", "#b7791f", "#6b46c1", "#319795", "#d53f8c", "#4a5568")
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 44


class Line(NamedTuple):
    """A curve of one tokenizer, with a band of one standard error where it is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    colour: str = COLOURS[0]
    dashed: bool = False


def line_plot(lines: Sequence[Line], x_label: str, y_label: str, log: bool = False, log_x: bool = False) -> str:
    """An ``<svg>`` of the lines. On a logarithmic y axis what is not above 0 is left out."""
    kept = [_kept(line, log) for line in lines]
    xs = [x for line in kept for x in line.x]
    ys = [y for line in kept for y in line.y]
    if not xs:
        return ""
    x_axis = _Axis(min(xs), max(xs), log_x)
    # a curve seems to fall further than it does where a linear axis does not begin at 0
    y_axis = _Axis(min(ys) if log else min(0.0, min(ys)), max(ys), log, rounded=True)
    parts = [_frame(x_axis, y_axis, x_label, y_label)]
    for line in kept:
        points = [(_across(x_axis.share(x)), _down(y_axis.share(y))) for x, y in zip(line.x, line.y)]
        if line.error is not None:
            bounds = [
                [(p[0], _down(y_axis.share(y + sign * e))) for p, y, e in zip(points, line.y, line.error)]
                for sign in (1, -1)
            ]
            parts.append(
                f'<polygon points="{_text(bounds[0] + bounds[1][::-1])}" fill="{line.colour}" opacity="0.15"/>'
            )
        title = f"<title>{html.escape(line.name)}</title>"
        stroke = f'stroke="{line.colour}" stroke-width="1.6"' + (' stroke-dasharray="5 3"' if line.dashed else "")
        parts.append(f'<polyline points="{_text(points)}" fill="none" {stroke}>{title}</polyline>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">{"".join(parts)}</svg>'


class _Axis:
    def __init__(self, low: float, high: float, log: bool = False, rounded: bool = False) -> None:
        """From ``low`` to ``high``; ``rounded``, or where that is near, on to the next ticks outside of these."""
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        near = math.inf if rounded else 0.05 * (high - low)
        below, above = self._ticks_around(low, high)
        self.low, self.high = below if low - below <= near else low, above if above - high <= near else high

    def _ticks_around(self, low: float, high: float) -> tuple[float, float]:
        if not self.log:
            step = _round_step((high - low) / 5)
            return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        exponents = range(math.floor(low) - 1, math.ceil(high) + 2)
        ticks = [exponent + math.log10(factor) for exponent in exponents for factor in (1, 2, 5)]
        return max(t for t in ticks if t <= low + 1e-9), min(t for t in ticks if t >= high - 1e-9)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        """Round numbers between the ends: of a logarithmic axis powers of ten, and 2 and 5 times these where they are few."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            factors = (1, 2, 5) if self.high - self.low < 3 else (1,)
            every = max(1, len(powers) // 6)
            values = [factor * 10.0**power for power in powers[::every] for factor in factors]
            return [v for v in values if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]
        step = _round_step((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


def _round_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten: the least that is not far below ``raw``."""
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.9)


def _kept(line: Line, log: bool) -> Line:
    places = [i for i, y in enumerate(line.y) if math.isfinite(y) and (y > 0 or not log)]
    error = None if line.error is None else [e if math.isfinite(e := line.error[i]) else 0.0 for i in places]
    return line._replace(x=[line.x[i] for i in places], y=[line.y[i] for i in places], error=error)


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _down(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _text(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    """Axes with their ticks and names."""
    parts = []
    for value in y_axis.ticks():
        y = _down(y_axis.share(value))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_axis.ticks():
        x = _across(x_axis.share(value))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" class="axis"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    half = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {half})"'
    parts.append(f'<text x="14" y="{half}" text-anchor="middle" {turned}>{html.escape(y_label)}</text>')
    return "".join(parts)
