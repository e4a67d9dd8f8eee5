"""Learning curves as SVG: one picture a task, its score over wall seconds and over CPU-seconds, a line a run."""

from collections.abc import Callable
from html import escape
from pathlib import Path

COLOURS = ("#0b6e99", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#7a7a7a", "#2e4057")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 460, 300, 60, 40, 46, 40


def plot(runs: list[dict], folder: Path, marks: dict, score: Callable[[str], str]) -> None:
    """Writes <folder>/rl-<task>.svg for each task in `runs`; `score` names what a task is judged by."""
    for task in dict.fromkeys(run["task"] for run in runs):
        same = [run for run in runs if run["task"] == task]
        learners = sorted({run["learner"] for run in same})
        colours = {learner: COLOURS[i % len(COLOURS)] for i, learner in enumerate(learners)}
        lines = [mark for mark, _ in marks.get(task, ())]
        body = [
            panel(same, colours, lines, score(task), unit, (WIDTH + GAP) * i)
            for i, unit in enumerate(("wall_s", "cpu_s"))
        ]
        total = 2 * WIDTH + GAP
        key = "".join(
            f'<tspan fill="{colour}" dx="{14 if i else 0}">&#9632; {escape(learner)}</tspan>'
            for i, (learner, colour) in enumerate(colours.items())
        )
        key = f'<tspan dx="18" font-weight="normal">{key}</tspan>'
        head = f'<text x="{LEFT}" y="18" font-weight="bold">{escape(task)}{key}</text>'
        (folder / f"rl-{task}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT}" font-family="sans-serif" '
            f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{head}{"".join(body)}</svg>\n'
        )


def panel(runs: list[dict], colours: dict, marks: list[float], score: str, unit: str, left: float) -> str:
    """One set of axes at x = `left`."""
    right_x = max(row[unit] for run in runs for row in run["curve"])
    low = min(0.0, *(row[score] for run in runs for row in run["curve"]))
    high = max(*marks, *(row[score] for run in runs for row in run["curve"]), 1.0) * 1.05
    inner_w, inner_h = WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return left + LEFT + inner_w * x / right_x, TOP + inner_h * (1 - (y - low) / (high - low))

    parts = []
    for y in ticks(low, high):
        x0, y0 = at(0, y)
        parts.append(f'<path d="M{x0:.1f} {y0:.1f}h{inner_w}" stroke="#eee"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end" fill="#555">{y:g}</text>')
    for x in ticks(0, right_x):
        x0, y0 = at(x, low)
        parts.append(f'<text x="{x0:.1f}" y="{y0 + 16:.1f}" text-anchor="middle" fill="#555">{x:g}</text>')
    for mark in marks:
        x0, y0 = at(0, mark)
        parts.append(f'<path d="M{x0:.1f} {y0:.1f}h{inner_w}" stroke="#999" stroke-dasharray="4 4"/>')
    for run in runs:
        points = " ".join("{:.1f},{:.1f}".format(*at(row[unit], row[score])) for row in run["curve"])
        colour = colours[run["learner"]]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" opacity="0.85"/>')
    name = {"wall_s": "wall seconds", "cpu_s": "CPU-seconds"}[unit]
    middle = left + LEFT + inner_w / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{name}; {score} without noise</text>')
    return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within low..high, about five."""
    span = high - low
    step = next(s * 10**e for e in range(-1, 7) for s in (1, 2, 5) if span / (s * 10**e) <= 6)
    first = -(-low // step)
    return [step * (first + i) for i in range(int((high - first * step) // step) + 1)]
