"""Draw the picture of the front page, book/_static/front.svg: ``python tools/front.py``.

Three matrices diag(1, σ₂), and one entry of each moves by the same amount. A matrix sends the unit circle to the
ellipse with the half-axes σ₁u₁ and σ₂u₂; the picture shows where the ellipse and u, the direction of the longest, go.
"""

from pathlib import Path

import torch

import svdgrad
from svdgrad.lab.figures import INK

FRONT = Path(__file__).resolve().parent.parent / "book" / "_static" / "front.svg"
SECOND = (0.2, 0.7, 0.95)  # σ₂, where σ₁ is 1
MOVE = 0.12  # how far the lower left entry of the matrix goes, either way
PANEL, HEIGHT, UNIT = 240, 314, 104  # a panel's width, its height and the length of σ₁, in the units of the drawing
STEPS = 25  # how many ellipses
STYLE = """<style>
text { font: 25px sans-serif; text-anchor: middle; fill: #222; }
ellipse { fill: none; }
.veil { stroke: #555; stroke-width: 0.8; opacity: 0.35; }
.now { stroke: #222; stroke-width: 2.5; }
.fan { stroke: BLUE; stroke-width: 1.5; opacity: 0.4; }
.u { stroke: BLUE; stroke-width: 4; }
.turn { fill: BLUE; }
</style>"""


def angle(u: torch.Tensor) -> float:
    """The direction of u in degrees, counted as SVG counts it: clockwise."""
    return -torch.rad2deg(torch.atan2(u[1], u[0])).item()


def moved(second: float, entry: float) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0], [entry, second]], dtype=torch.float64)


def ellipse(A: torch.Tensor, style: str) -> str:
    """The image of the unit circle under A: an ellipse with the singular values as half-axes, turned to u."""
    first, second = torch.linalg.svdvals(A).tolist()
    turn = angle(svdgrad.singular_triplet(A).u)
    return f'<ellipse rx="{UNIT * first:.2f}" ry="{UNIT * second:.2f}" transform="rotate({turn:.2f})" {style}/>'


def arrow(A: torch.Tensor, style: str) -> str:
    """σu as a line from the origin."""
    sigma, u, _ = svdgrad.singular_triplet(A)
    x, y = (UNIT * sigma * u).tolist()
    return f'<line x2="{x:.2f}" y2="{-y:.2f}" {style}/>'


def panel(second: float) -> list[str]:
    """One matrix: the ellipses and the vectors of its moves, pale, and those of the matrix itself, dark."""
    entries = [MOVE * (2 * k / (STEPS - 1) - 1) for k in range(STEPS)]
    lines = [ellipse(moved(second, entry), 'class="veil"') for entry in entries]
    lines += [arrow(moved(second, entry), 'class="fan"') for entry in entries]
    still = moved(second, 0.0)
    lines += [ellipse(still, 'class="now"'), arrow(still, 'class="u" marker-end="url(#head)"')]
    turn = abs(angle(svdgrad.singular_triplet(moved(second, MOVE)).u))
    lines += [
        f'<text y="145">σ₂ = {second:g} σ₁</text>',
        f'<text y="176" class="turn"><tspan font-style="italic">u</tspan> turns ±{turn:.0f}°</text>',
    ]
    return lines


def picture() -> str:
    """The whole drawing."""
    width = PANEL * len(SECOND)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}">',
        STYLE.replace("BLUE", INK["u"]),
        '<marker id="head" orient="auto" markerWidth="4" markerHeight="4" refX="3.6" refY="2">',
        '<path class="turn" d="M0 0 L4 2 L0 4 Z"/></marker>',
        f'<rect width="{width}" height="{HEIGHT}" rx="8" fill="#fff"/>',
    ]
    for k, second in enumerate(SECOND):
        lines += [f'<g transform="translate({PANEL * (k + 0.5):g} 122)">', *panel(second), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    FRONT.write_text(picture(), encoding="utf-8")
