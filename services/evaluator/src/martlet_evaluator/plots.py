"""Small plots as SVG text: they stand alone, and take their colours from the page's style (light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _LEFT, _RIGHT, _LINE = 460, 128, 74, 27
COLOURS = 6


def dot_plot(lines: Sequence[tuple[str, int, float, float | None, float | None]], unit: str = "") -> str:
    """Values with their intervals, a line each: (label, number of the colour, value, low, high)."""
    ends = [v for _, _, value, low, high in lines for v in (value, low, high) if v is not None]
    begin, end = _range(min(ends), max(ends))
    height = _LINE * len(lines) + 34
    parts = [_axis(begin, end, height, unit)]
    for index, (label, shade, value, low, high) in enumerate(lines):
        y = 18 + _LINE * index
        colour = f"c{shade % COLOURS}"
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(_short(label))}</text>')
        if low is not None and high is not None:
            a, b = _x(low, begin, end), _x(high, begin, end)
            parts.append(f'<line class="bar {colour}" x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}"/>')
        x = _x(value, begin, end)
        parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="value" x="{_WIDTH - _RIGHT + 14}" y="{y + 4}">{escape(number(value))}</text>')
    return _svg(height, parts, "values with 95 % intervals")


def difference_plot(lines: Sequence[tuple[str, float, float, float]]) -> str:
    """Differences with their intervals around a line at zero: (label, difference, low, high)."""
    ends = [0.0, *(v for _, *values in lines for v in values)]
    begin, end = _range(min(ends), max(ends))
    height = _LINE * len(lines) + 34
    zero = _x(0.0, begin, end)
    parts = [_axis(begin, end, height, "")]
    parts.append(f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{height - 24}"/>')
    for index, (label, value, low, high) in enumerate(lines):
        y = 18 + _LINE * index
        kind = "unsure" if low <= 0 <= high else "sure"
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(_short(label))}</text>')
        parts.append(
            f'<line class="bar {kind}" x1="{_x(low, begin, end):.1f}" x2="{_x(high, begin, end):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle class="{kind}" cx="{_x(value, begin, end):.1f}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="value" x="{_WIDTH - _RIGHT + 14}" y="{y + 4}">{escape(signed(value))}</text>')
    return _svg(height, parts, "differences with 95 % intervals")


def number(value: float) -> str:
    """A number for people."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.01 else f"{value:.2g}"


def signed(value: float) -> str:
    """A difference for people."""
    return ("+" if value > 0 else "\u2212" if value < 0 else "") + number(abs(value))


def _short(label: str) -> str:
    return label if len(label) <= 18 else label[:8] + "…" + label[-9:]


def _range(low: float, high: float) -> tuple[float, float]:
    if high <= low:
        space = abs(low) * 0.1 or 1.0
        return low - space, high + space
    space = (high - low) * 0.08
    begin = low - space
    return (0.0 if low >= 0 and begin < 0 else begin), high + space


def _x(value: float, begin: float, end: float) -> float:
    return _LEFT + (value - begin) / (end - begin) * (_WIDTH - _LEFT - _RIGHT)


def _axis(begin: float, end: float, height: int, unit: str) -> str:
    parts = []
    ticks = _ticks(begin, end)
    for value in ticks:
        x = _x(value, begin, end)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 24}"/>')
        text = f"{_tick(value, ticks)} {unit}" if unit and value == ticks[-1] else _tick(value, ticks)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{escape(text)}</text>')
    return "".join(parts)


def _ticks(begin: float, end: float) -> list[float]:
    """Three to six round numbers."""
    rough = (end - begin) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * k for k in range(math.ceil(begin / step), math.floor(end / step) + 1)]


def _tick(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{places}f}".replace("-", "\u2212") if places < 7 else f"{value:.1e}"


def _svg(height: int, parts: Sequence[str], what: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'
