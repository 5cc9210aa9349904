"""Quality against cost as SVG text: each technique a point, those that none beats in both on a line (the Pareto front)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 400, 64, 24, 20, 52
_LABEL_HEIGHT, _LETTER = 13, 6.4
_STYLE = """<style>
svg{font:12px system-ui,sans-serif}text{fill:#444}.axis{stroke:#999}.grid{stroke:#e4e4e4}.front{fill:none;stroke:#b3541e;stroke-width:1.5}
circle{fill:#8a97a6}circle.best{fill:#b3541e}text.best{fill:#b3541e;font-weight:600}.base{stroke:#777;stroke-dasharray:4 4}
@media (prefers-color-scheme: dark){text{fill:#ccc}.grid{stroke:#3a3a3a}.axis{stroke:#777}}
</style>"""


@dataclass(frozen=True)
class Point:
    """A technique in a plot: its cost (less is better), its quality (more is better)."""

    label: str
    cost: float
    quality: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other equals or beats in both, from the cheapest to the best."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def scatter(points: Sequence[Point], cost: str, quality: str, baseline: float | None = None) -> str:
    """A plot of points.

    Args:
        points: at least one.
        cost: what the horizontal axis is, with its unit.
        quality: what the vertical axis is, in shares that are shown in percent.
        baseline: quality of the untrained model, drawn as a line.
    """
    best = front(points)
    xs = _ticks(min(p.cost for p in points), max(p.cost for p in points))
    levels = [p.quality for p in points] + ([baseline] if baseline is not None else [])
    ys = _ticks(min(levels), max(levels))

    def x(value: float) -> float:
        return _LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_STYLE]
    for tick in xs:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,.6g}</text>')
    for tick in ys:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.4g} %</text>')
    if baseline is not None:
        at = f'y1="{y(baseline):.1f}" y2="{y(baseline):.1f}"'
        parts.append(f'<line class="base" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {at}/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{y(baseline) - 5:.1f}" text-anchor="end">untrained</text>')
    steps = " ".join(f"{x(p.cost):.1f},{y(p.quality):.1f}" for p in best)
    parts.append(f'<polyline class="front" points="{steps}"/>')
    taken = [(x(p.cost) - 5, y(p.quality) - 5, x(p.cost) + 5, y(p.quality) + 5) for p in points]
    for point in sorted(points, key=lambda p: p not in best):
        kind = ' class="best"' if point in best else ""
        parts.append(f'<circle{kind} cx="{x(point.cost):.1f}" cy="{y(point.quality):.1f}" r="4.5"/>')
        left, top = _place(point.label, x(point.cost), y(point.quality), taken)
        parts.append(f'<text{kind} x="{left:.1f}" y="{top + 10:.1f}">{escape(point.label)}</text>')
    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(cost)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}">{escape(quality)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img"'
    return f'{head} aria-label="{escape(quality)} by {escape(cost)}">{"".join(parts)}</svg>'


def _place(label: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    """The top left of a label beside its point, where it hides least of what is there already; it is then taken."""
    width = _LETTER * len(label)
    places = [(x + 7, y - 6), (x - width - 7, y - 6), (x - width / 2, y - 20), (x - width / 2, y + 7)]
    places += [(x + 7, y - 18), (x + 7, y + 6), (x - width - 7, y - 18), (x - width - 7, y + 6)]

    def hidden(place: tuple[float, float]) -> float:
        box = (place[0], place[1], place[0] + width, place[1] + _LABEL_HEIGHT)
        outside = max(0.0, _LEFT - box[0]) + max(0.0, box[2] - _WIDTH) + max(0.0, box[3] - (_HEIGHT - _BOTTOM))
        return 100 * outside + sum(_overlap(box, other) for other in taken)

    left, top = min(places, key=hidden)
    taken.append((left, top, left + width, top + _LABEL_HEIGHT))
    return left, top


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, at least two."""
    if high <= low:
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]
