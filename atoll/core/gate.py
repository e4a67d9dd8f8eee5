"""The gate: no policy is served that has not passed. What was measured goes in, a verdict with reasons comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, NamedTuple

from atoll.core.errors import InvalidRequest

Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


class Trials(NamedTuple):
    """`successes` of `episodes`."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured of a policy. `nominal`: the task as it is, many seeds. `stress`: by how far dynamics were
    randomised (1 is the range that the real thing is thought to lie in). `variants`: the same task simulated otherwise
    (time step, solver, engine). `incumbent`: the policy it would replace, on the same seeds as `nominal`. `ranks`:
    cheap and full success rates of the same policies, in pairs: whether a cheap evaluation can be trusted. `random`:
    random actions instead of the policy's: whether success means anything."""

    nominal: Trials
    stress: Mapping[float, Trials] = field(default_factory=dict)
    variants: Mapping[str, Trials] = field(default_factory=dict)
    incumbent: Trials | None = None
    ranks: Sequence[tuple[float, float]] = ()
    broken: int = 0
    random: Trials | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a policy must show. Rates are of 0..1; `success` holds for the lower end of the 95 % interval. `stress` is
    the least rate where dynamics are randomised by 1 or less; `gap` the most that a variant may fall below the nominal
    rate, and `loss` the most that the policy may fall below its incumbent, beyond what chance explains. `rank` is the
    least rank correlation of cheap with full evaluation, where it was measured and a wrong order would cost more than
    `loss`: policies that are all alike have none. `random` is the most that random actions may succeed."""

    success: float = 0.8
    stress: float = 0.6
    gap: float = 0.15
    loss: float = 0.02
    rank: float = 0.6
    random: float = 0.5

    def __post_init__(self) -> None:
        for name, low in (("success", 0), ("stress", 0), ("gap", 0), ("loss", 0), ("rank", -1), ("random", 0)):
            if not low <= getattr(self, name) <= 1:
                raise InvalidRequest(f"'rule.{name}' must be between {low} and 1", param=f"rule.{name}")


FLOOR = Rule(success=0.5, stress=0.25, gap=0.5, loss=0.1, rank=0.0, random=0.9)
"""What every policy must show before it is served, whatever its gate asked for."""


class Check(NamedTuple):
    """One requirement: `value` against `limit`, and in words why it holds or does not."""

    name: str
    passed: bool
    value: float
    limit: float
    why: str


class Verdict(NamedTuple):
    passed: bool
    checks: tuple[Check, ...]


def decide(evidence: Evidence, rule: Rule) -> Verdict:
    """Every check is made, so that a report tells all that is wrong at once."""
    checks = [_nominal(evidence, rule), _physics(evidence)]
    checks += [_stress(level, trials, rule) for level, trials in sorted(evidence.stress.items()) if level <= 1]
    checks += [_variant(name, trials, evidence.nominal, rule) for name, trials in evidence.variants.items()]
    if evidence.incumbent is not None:
        checks.append(_incumbent(evidence.nominal, evidence.incumbent, rule))
    if len(evidence.ranks) > 2:
        checks.append(_ranks(evidence.ranks, rule))
    if evidence.random is not None:
        checks.append(_random(evidence.random, rule))
    return Verdict(all(check.passed for check in checks), tuple(checks))


def _nominal(evidence: Evidence, rule: Rule) -> Check:
    low, high = evidence.nominal.interval
    why = f"{_rate(evidence.nominal)}: with 95 % confidence {low:.1%} to {high:.1%}, of which the lower end counts"
    return Check("success", low >= rule.success, low, rule.success, why)


def _physics(evidence: Evidence) -> Check:
    why = f"the physics broke in {evidence.broken} episodes of {evidence.nominal.episodes}"
    return Check("physics", not evidence.broken, evidence.broken, 0, why)


def _stress(level: float, trials: Trials, rule: Rule) -> Check:
    why = f"{_rate(trials)} with dynamics randomised by {level:g}"
    return Check(f"stress {level:g}", trials.rate >= rule.stress, trials.rate, rule.stress, why)


def _variant(name: str, trials: Trials, nominal: Trials, rule: Rule) -> Check:
    """The fall that is left after what chance explains: the least difference of the two rates' 95 % interval."""
    fall = _sure_fall(nominal, trials)
    why = f"{_rate(trials)} in '{name}' against {nominal.rate:.1%}: surely lower by {fall:.1%}"
    return Check(f"simulated otherwise: {name}", fall <= rule.gap, fall, rule.gap, why)


def _incumbent(nominal: Trials, incumbent: Trials, rule: Rule) -> Check:
    fall = _sure_fall(incumbent, nominal)
    why = f"{_rate(nominal)} against {incumbent.rate:.1%} of the policy it replaces: surely lower by {fall:.1%}"
    return Check("regression", fall <= rule.loss, fall, rule.loss, why)


def _ranks(ranks: Sequence[tuple[float, float]], rule: Rule) -> Check:
    cheap, full = [a for a, _ in ranks], [b for _, b in ranks]
    value, cost = spearman(cheap, full), mmrv(cheap, full)
    why = f"of {len(ranks)} policies; a wrong order costs {cost:.1%} on average at most (MMRV), and may {rule.loss:.1%}"
    return Check("rank correlation", value >= rule.rank or cost <= rule.loss, value, rule.rank, why)


def _random(random: Trials, rule: Rule) -> Check:
    why = f"{_rate(random)} with random actions: where they succeed, success means nothing"
    return Check("random actions", random.rate <= rule.random, random.rate, rule.random, why)


def _rate(trials: Trials) -> str:
    return f"{trials.successes} of {trials.episodes} ({trials.rate:.1%})"


def _sure_fall(before: Trials, after: Trials) -> float:
    """How far `after` is below `before` at least, with 95 % confidence; 0 where chance may explain it."""
    return max(0.0, newcombe(before, after)[0])


def plain(evidence: Evidence) -> dict[str, Any]:
    """As JSON, with rates and their intervals."""

    def one(trial: Trials | None) -> dict[str, Any] | None:
        return trial and {**trial._asdict(), "rate": trial.rate, "interval": list(trial.interval)}

    return {
        "nominal": one(evidence.nominal),
        "stress": {f"{level:g}": one(trial) for level, trial in evidence.stress.items()},
        "variants": {name: one(trial) for name, trial in evidence.variants.items()},
        "incumbent": one(evidence.incumbent),
        "ranks": [list(pair) for pair in evidence.ranks],
        "broken": evidence.broken,
        "random": one(evidence.random),
    }


def evidence_of(told: Mapping[str, Any]) -> Evidence:
    """The evidence that `plain` told. Raises KeyError, TypeError, AttributeError or ValueError where it is not that."""

    def one(trial: Mapping[str, Any]) -> Trials:
        successes, episodes = int(trial["successes"]), int(trial["episodes"])
        if not 0 <= successes <= episodes or not episodes:
            raise ValueError(f"{successes} successes of {episodes} episodes")
        return Trials(successes, episodes)

    return Evidence(
        one(told["nominal"]),
        {float(level): one(trial) for level, trial in told["stress"].items()},
        {name: one(trial) for name, trial in told["variants"].items()},
        one(told["incumbent"]) if told["incumbent"] else None,
        [(float(cheap), float(full)) for cheap, full in told["ranks"]],
        int(told["broken"]),
        one(told["random"]),
    )


def wilson(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate (JASA 1927)."""
    if not episodes:
        return 0.0, 1.0
    rate, share = successes / episodes, z * z / episodes
    centre = (rate + share / 2) / (1 + share)
    half = z * sqrt(rate * (1 - rate) / episodes + share / (4 * episodes)) / (1 + share)
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def newcombe(first: Trials, second: Trials) -> tuple[float, float]:
    """The interval of first's rate - second's, by Wilson's intervals of both (Newcombe, Stat. Med. 1998, method 10)."""
    (low1, high1), (low2, high2) = first.interval, second.interval
    difference = first.rate - second.rate
    below = sqrt((first.rate - low1) ** 2 + (high2 - second.rate) ** 2)
    above = sqrt((high1 - first.rate) ** 2 + (second.rate - low2) ** 2)
    return difference - below, difference + above


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties by their mean rank; 0 where one of the two does not vary."""
    first, second = _rank(a), _rank(b)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(first, second, strict=True))
    spread = sqrt(sum((x - mean) ** 2 for x in first) * sum((y - mean) ** 2 for y in second))
    return covariance / spread if spread else 0.0


def mmrv(cheap: Sequence[float], full: Sequence[float]) -> float:
    """Mean maximum rank violation (Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation", CoRL
    2024): for each policy the largest true difference to one that the cheap evaluation puts on the wrong side."""
    count = len(cheap)
    worst = [
        max((abs(full[i] - full[j]) for j in range(count) if (cheap[i] < cheap[j]) != (full[i] < full[j])), default=0.0)
        for i in range(count)
    ]
    return sum(worst) / count if count else 0.0


def _rank(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
