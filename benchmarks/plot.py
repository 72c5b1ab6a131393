"""Grouped bars as SVG text, without a package for it: light, readable, with a title for each bar."""

import math
from dataclasses import dataclass
from html import escape

COLOURS = ("#2b6cb0", "#b7791f", "#9b2c2c", "#276749")
LEFT, TOP, ROW, BAR, WIDTH, GAP = 190, 76, 46, 11, 290, 70


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    values: list[list[float]]  # of each row, one for each series


def bars(title: str, rows: list[str], series: list[str], panels: list[Panel]) -> str:
    """A picture of all panels side by side; the same numbers give the same text."""
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + ROW * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        '<g font-family="system-ui, sans-serif" font-size="12" fill="#1a202c">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for n, name in enumerate(series):
        x = 12 + 130 * n
        parts.append(f'<rect x="{x}" y="33" width="11" height="11" fill="{COLOURS[n]}"/>')
        parts.append(f'<text x="{x + 16}" y="43">{escape(name)}</text>')
    for n, name in enumerate(rows):
        parts.append(
            f'<text x="{LEFT - 10}" y="{TOP + ROW * n + 24}" text-anchor="end">{escape(name)}</text>'
        )
    for n, panel in enumerate(panels):
        parts += _panel(panel, LEFT + n * (WIDTH + GAP), series)
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _panel(panel: Panel, left: int, series: list[str]) -> list[str]:
    most = _round(max((value for row in panel.values for value in row), default=1.0))
    bottom = TOP + ROW * len(panel.values)
    parts = [f'<text x="{left}" y="{TOP - 8}" font-weight="600">{escape(panel.title)}</text>']
    for n in range(5):
        x = left + WIDTH * n // 4
        parts.append(f'<path d="M{x} {TOP}V{bottom}" stroke="#e2e8f0"/>')
        mark = f"{most * n / 4:g}"
        parts.append(f'<text x="{x}" y="{bottom + 13}" text-anchor="middle" fill="#4a5568">{mark}</text>')
    for row, values in enumerate(panel.values):
        for n, value in enumerate(values):
            y = TOP + ROW * row + 5 + n * (BAR + 1)
            length = max(1.0, WIDTH * value / most)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLOURS[n]}">'
                f"<title>{escape(series[n])}: {value:.1f}</title></rect>"
            )
            beside = f"{left + length + 4:.1f}"
            parts.append(f'<text x="{beside}" y="{y + 9}" font-size="9.5" fill="#4a5568">{value:,.0f}</text>')
    return parts


def _round(most: float) -> float:
    """The next number that a scale can end with."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 4, 5, 8, 10) if power * step >= most)
