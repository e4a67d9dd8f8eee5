"""The gate's report as a page: the verdict, every check with its reason, plots with confidence, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from atoll.core.gate import Evidence, Trials, Verdict

PAGE = Path(__file__).with_name("report.html")


def page(
    about: Mapping[str, Any], evidence: Evidence, broken: Mapping[str, int], verdict: Verdict, videos: Sequence[str]
) -> str:
    decision = "pass" if verdict.passed else "fail"
    rows = "".join(
        f'<tr><td class="{"pass" if c.passed else "fail"}">{"holds" if c.passed else "fails"}</td>'
        f'<td>{escape(c.name)}</td><td class="n">{c.value:.3g}</td><td class="n">{c.limit:.3g}</td>'
        f"<td>{escape(c.why)}</td></tr>"
        for c in verdict.checks
    )
    shown = {"as it is": evidence.nominal, **evidence.variants}
    if evidence.incumbent is not None:
        shown["the policy it would replace"] = evidence.incumbent
    if evidence.random is not None:
        shown["random actions"] = evidence.random
    return Template(PAGE.read_text()).substitute(
        title=f"Gate of a policy for {escape(str(about['task']))}",
        decision=decision,
        about=escape(", ".join(f"{name} {value}" for name, value in about.items())),
        rows=rows,
        broken=_broken(broken),
        bars=_bars(shown),
        curve=_curve({0.0: evidence.nominal, **evidence.stress} if evidence.stress else {}),
        ranks=_ranks(evidence.ranks),
        videos="".join(_video(name) for name in videos) or "<p>No videos were asked for.</p>",
    )


def _broken(broken: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} ({escape(name)})" for name, count in broken.items() if count)
    return f"<p>Episodes whose physics broke, which count as failed: {told}.</p>" if told else ""


def _bars(shown: Mapping[str, Trials]) -> str:
    parts = []
    for k, (name, trials) in enumerate(shown.items()):
        y, (low, high), long = 30 * k + 20, trials.interval, 400 * trials.rate
        parts.append(f'<text x="0" y="{y + 4}">{escape(name)}</text>')
        parts.append(f'<rect x="220" y="{y - 8}" width="{long:.1f}" height="16" fill="var(--bar)" opacity=".55"/>')
        parts.append(_line(220 + 400 * low, y, 220 + 400 * high, y))
        parts.append(f'<text x="640" y="{y + 4}">{trials.rate:.1%} of {trials.episodes}</text>')
    box = f"0 0 780 {30 * len(shown) + 10}"
    return f'<svg viewBox="{box}" role="img" aria-label="Success by kind">{"".join(parts)}</svg>'


def _curve(stress: Mapping[float, Trials]) -> str:
    if not stress:
        return "<p>Not measured.</p>"
    most = max(stress) or 1.0
    points = [(60 + 640 * level / most, trials) for level, trials in sorted(stress.items())]
    parts = [_line(60, 210, 720, 210), _line(60, 10, 60, 210)]
    parts += [f'<text x="20" y="{214 - 200 * v:.0f}">{v:.0%}</text>' for v in (0, 0.5, 1)]
    for (x, trials), level in zip(points, sorted(stress), strict=True):
        low, high = trials.interval
        parts.append(_line(x, 210 - 200 * low, x, 210 - 200 * high))
        parts.append(f'<circle cx="{x:.1f}" cy="{210 - 200 * trials.rate:.1f}" r="4" fill="var(--bar)"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="230">{level:g}</text>')
    path = " ".join(f"{x:.1f},{210 - 200 * trials.rate:.1f}" for x, trials in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="var(--bar)" stroke-width="2"/>')
    return f'<svg viewBox="0 0 780 240" role="img" aria-label="Success over stress">{"".join(parts)}</svg>'


def _ranks(ranks: Sequence[tuple[float, float]]) -> str:
    if not ranks:
        return ""
    parts = [_line(60, 210, 260, 210), _line(60, 10, 60, 210), _line(60, 210, 260, 10, "3 4")]
    parts += [f'<circle cx="{60 + 200 * a:.1f}" cy="{210 - 200 * b:.1f}" r="4" fill="var(--bar)"/>' for a, b in ranks]
    parts += ['<text x="120" y="230">few episodes</text>', '<text x="280" y="20">many episodes, upwards</text>']
    plot = f'<svg viewBox="0 0 780 240" role="img" aria-label="Cheap against full evaluation">{"".join(parts)}</svg>'
    return f"<h2>Cheap against full evaluation</h2><p>The policy, made worse step by step.</p>{plot}"


def _video(name: str) -> str:
    told = escape(name.removesuffix(".mp4"))
    return f'<figure><video src="{escape(name)}" controls muted loop></video><figcaption>{told}</figcaption></figure>'


def _line(x1: float, y1: float, x2: float, y2: float, dashes: str = "none") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-width="1.5" stroke-dasharray="{dashes}"/>'
