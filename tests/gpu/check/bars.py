"""Horizontal bars as SVG text, in groups, with a mark across each group. Pure; standard library only: the machine that
makes the report has no plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 760, 250, 90
"""Pixels of the picture, and of the room beside the bars for labels and for values."""
ROW, GAP, HEAD, FOOT = 15, 9, 40, 12
ORANGE, BLUE, PALE_ORANGE, PALE_BLUE = "#c2571a", "#2563a8", "#e3b491", "#9db9d8"
MARK, INK, MUTED = "#c62828", "#333333", "#8a8f98"
FONT = 'font-family="sans-serif"'


@dataclass(frozen=True)
class Group:
    label: str
    values: Mapping[str, float]
    """By series."""
    mark: float | None = None


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    series: Mapping[str, str]
    """Colours by name."""
    groups: Sequence[Group]
    mark: str = ""
    """What the marks are."""


def svg(panels: Sequence[Panel]) -> str:
    """One below the other, each on a scale of its own that begins at zero."""
    parts, top = list[str](), 0
    for panel in panels:
        drawn, height = _panel(panel, top)
        parts += drawn
        top += height
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    ground = f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', ground, *parts, "</svg>"]) + "\n"


def _panel(panel: Panel, top: int) -> tuple[list[str], int]:
    """Its elements, and its height."""
    largest = max(max(group.mark or 0.0, *group.values.values()) for group in panel.groups)
    scale = (WIDTH - LEFT - RIGHT) / (largest or 1.0)
    parts = [_text(10, top + 16, f"{panel.title}, {panel.unit}", size=13, weight="bold"), *_legend(panel, top)]
    y = top + HEAD
    for group in panel.groups:
        height = ROW * len(group.values)
        parts.append(_text(LEFT - 8, y + height / 2 + 4, group.label, anchor="end"))
        for name, value in group.values.items():
            length = value * scale
            fill = panel.series[name]
            box = f'x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{ROW - 4}"'
            parts.append(f'<rect {box} fill="{fill}"><title>{escape(f"{group.label}, {name}")}</title></rect>')
            beside = max(length, (group.mark or 0.0) * scale) if len(group.values) == 1 else length
            parts.append(_text(LEFT + beside + 6, y + ROW - 4, f"{value:.4g}", size=10))
            y += ROW
        if group.mark is not None:
            x = LEFT + group.mark * scale
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y - height}" y2="{y}"'
            parts.append(f'<line {ends} stroke="{MARK}" stroke-width="2"/>')
        y += GAP
    axis = f'x1="{LEFT}" x2="{LEFT}" y1="{top + HEAD - 4}" y2="{y - GAP + 4}"'
    return [*parts, f'<line {axis} stroke="{MUTED}"/>'], y + FOOT - top


def _legend(panel: Panel, top: int) -> list[str]:
    """Of the series that are there."""
    parts, x, y = list[str](), 10, top + 24
    shown = {name: fill for name, fill in panel.series.items() if any(name in group.values for group in panel.groups)}
    for name, fill in [*shown.items(), *([(panel.mark, MARK)] if panel.mark else [])]:
        width = 2 if name == panel.mark else 10
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="10" fill="{fill}"/>')
        parts.append(_text(x + width + 4, y + 9, name, size=10))
        x += width + 20 + 6 * len(name)
    return parts


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start", weight: str = "normal") -> str:
    style = f'{FONT} font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
