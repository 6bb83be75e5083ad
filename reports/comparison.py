"""What two runs have in common: figures that moved by more than chance, choices that flipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pandas as pd

from reports.metrics import METRICS, Metric

__all__ = ["OF_CLAIMS", "OF_CURVES", "Choice", "Comparison", "Figure", "Name"]

MARK = "**"
"""Around a figure that is outside the other's interval, and a choice that flipped."""
OF_CURVES = {
    "best_score": Metric("best score", ".3f", None),
    "distance_there": Metric("distance there", "#.3g", "lower"),
}
"""Figures of a curve: at the scale whose score is best."""
OF_CLAIMS = {"difference": Metric("difference", "+.3g", None)}
FIGURES = METRICS | OF_CURVES | OF_CLAIMS
KINDS = ("row", "curve", "claim")


class Name(NamedTuple):
    """What tells a line of one run's tables, and finds it in the other's.

    Attributes:
        kind: row, curve or claim.
        sweep: of the line.
        predictor: of the line.
        method: of the line; of a claim its name.
        sampler: of the line; empty if it has none.
        axes: of the line, as JSON.
    """

    kind: str
    sweep: str
    predictor: str
    method: str
    sampler: str
    axes: str

    @property
    def title(self) -> str:
        """In words."""
        parts = (self.sweep, self.predictor, self.method, self.sampler)
        kind = f" ({self.kind})" * (self.kind != "row")
        return " / ".join(filter(None, parts)) + kind


@dataclass(frozen=True)
class Figure:
    """A figure that both runs have.

    Attributes:
        name: of its line.
        metric: as in the records; of curves one of :data:`OF_CURVES`, of claims of
            :data:`OF_CLAIMS`.
        first: its value in the first, with its interval; NaN for bounds that are not recorded.
        second: likewise.
    """

    name: Name
    metric: str
    first: float
    first_low: float
    first_high: float
    second: float
    second_low: float
    second_high: float

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def compared(self) -> bool:
        """Whether either has an interval for the other to be in."""
        bounds = (self.first_low, self.second_low)
        return not all(map(math.isnan, bounds))

    # No comparison is true where a bound is NaN.
    @property
    def first_outside(self) -> bool:
        """Whether the first is outside the second's interval."""
        return self.first < self.second_low or self.first > self.second_high

    @property
    def second_outside(self) -> bool:
        """Whether the second is outside the first's."""
        return self.second < self.first_low or self.second > self.first_high

    @property
    def outside(self) -> bool:
        """Whether either is outside the other's interval."""
        return self.first_outside or self.second_outside

    @property
    def intervals_apart(self) -> bool:
        """Whether the intervals are known and do not overlap."""
        return self.first_low > self.second_high or self.second_low > self.first_high

    def text(self) -> str:
        """Both values; those outside the other's interval in bold."""
        spec = FIGURES[self.metric].spec
        shown = [format(value, spec) for value in (self.first, self.second)]
        if self.first == self.second:
            return shown[0]
        outside = (self.first_outside, self.second_outside)
        marked = [f"{MARK * out}{t}{MARK * out}" for t, out in zip(shown, outside, strict=True)]
        return " → ".join(marked)


@dataclass(frozen=True)
class Choice:
    """What both runs chose or found: a guidance scale, or a claim's verdict.

    Attributes:
        name: of its line.
        what: ``"scale"`` or ``"verdict"``.
        first: in the first run.
        second: in the second.
        counted: whether a flip is news: not of a scale that was given.
    """

    name: Name
    what: str
    first: float | str
    second: float | str
    counted: bool = True

    @property
    def flipped(self) -> bool:
        """Whether the two runs have different ones."""
        return self.first != self.second

    def text(self) -> str:
        """One, or both in bold."""
        values = (self.first, self.second) if self.flipped else (self.first,)
        shown = " → ".join(f"{v:g}" if isinstance(v, float) else v for v in values)
        return f"{MARK * self.flipped}{shown}{MARK * self.flipped}"


@dataclass(frozen=True)
class Comparison:
    """What two results folders have in common and what not.

    Attributes:
        names: of the two.
        machines: what each was seen on.
        shared: the lines that are in both.
        figures: that both have.
        choices: guidance scales and verdicts that both have.
        alone: titles of the lines that only the first, only the second has.
        warnings: why figures may differ without a cause in the method.
    """

    names: tuple[str, str]
    machines: tuple[str, str]
    shared: tuple[Name, ...]
    figures: tuple[Figure, ...]
    choices: tuple[Choice, ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line: how much was compared, and how much of it moved."""
        if not self.shared:
            return "No row, curve or claim is in both."
        kinds = [name.kind for name in self.shared]
        counts = [_counted(kinds.count(kind), kind) for kind in KINDS if kind in kinds]
        compared = [figure for figure in self.figures if figure.compared]
        scales = [c for c in self.choices if c.what == "scale" and c.counted]
        verdicts = [c for c in self.choices if c.what == "verdict"]
        outside = sum(figure.outside for figure in compared)
        apart = sum(figure.intervals_apart for figure in compared)
        parts = [
            f"{_listed(counts)} in both: {len(compared)} figures with intervals compared",
            f", {outside} outside the other's interval ({apart} with intervals apart)",
            f"; {_compared(scales, 'selected guidance scale')}",
            f"; {_compared(verdicts, 'verdict')}" * bool(verdicts),
            f"; {sum(figure.change == 0 for figure in self.figures)} of all {len(self.figures)}",
            " figures are equal.",
        ]
        return "".join(parts)

    def markdown(self) -> str:
        """A heading, what each was seen on, a table for each sweep, and the summary."""
        parts = [f"# {self.names[0]} → {self.names[1]}"]
        seen = zip(("First", "Second"), self.machines, strict=True)
        parts.append("\n".join(f"- {which} seen on {where or 'nothing'}" for which, where in seen))
        if self.warnings:
            parts.append(f"Careful: {'; '.join(self.warnings)}.")
        parts += list(self._tables())
        for name, titles in zip(self.names, self.alone, strict=True):
            if titles:
                parts.append(f"Only in {name}: {'; '.join(titles)}.")
        return "\n\n".join([*parts, self.summary]) + "\n"

    def csv(self) -> str:
        """All figures, six significant digits, empty where nothing is recorded."""
        outcomes = ("first_outside", "second_outside", "intervals_apart", "change")
        lines = []
        for figure in self.figures:
            values = {name: value for name, value in asdict(figure).items() if name != "name"}
            found = {outcome: getattr(figure, outcome) for outcome in outcomes}
            lines.append(figure.name._asdict() | values | found)
        columns = [*Name._fields, *list(Figure.__annotations__)[1:], *outcomes]
        frame = pd.DataFrame(lines, columns=columns)
        return str(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    def _tables(self) -> Iterator[str]:
        """Both values of every figure that has an interval; of all, where a sweep has none."""
        moved = any(figure.outside for figure in self.figures)
        if moved or any(choice.flipped for choice in self.choices):
            verdicts = " and verdicts" * any(choice.what == "verdict" for choice in self.choices)
            yield f"Bold: outside the interval of the other run; of scales{verdicts}, flipped."
        groups = dict.fromkeys((name.sweep, name.kind) for name in self.shared)
        for sweep, kind in groups:
            names = [n for n in self.shared if (n.sweep, n.kind) == (sweep, kind)]
            heading = sweep + f": {kind}s" * (kind != "row")
            if table := self._table(names):
                yield f"## {heading}\n\n{table}"

    def _table(self, names: Sequence[Name]) -> str:
        every = [figure for figure in self.figures if figure.name in names]
        own = [figure for figure in every if figure.compared] or every
        found = {(figure.name, figure.metric): figure.text() for figure in own}
        chosen = {(choice.name, choice.what): choice.text() for choice in self.choices}
        metrics = [metric for metric in FIGURES if any(f.metric == metric for f in own)]
        choices = [what for what in ("scale", "verdict") if any((n, what) in chosen for n in names)]
        lines = []
        bare = Counter(name._replace(axes="") for name in names)
        for name in names:
            shown = {FIGURES[m].title: found.get((name, m), "") for m in metrics}
            shown |= {what: chosen.get((name, what), "") for what in choices}
            if any(shown.values()):
                axes = name.axes * (bare[name._replace(axes="")] > 1)
                title = ", ".join(filter(None, (name.method, name.sampler, axes)))
                lines.append({"predictor": name.predictor, "method": title} | shown)
        if not lines:
            return ""
        frame = pd.DataFrame(lines).map(lambda text: text.replace("|", "\\|"))
        align = ["left"] * 2 + ["right"] * (len(frame.columns) - 2)
        return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _compared(choices: Sequence[Choice], what: str) -> str:
    flipped = sum(choice.flipped for choice in choices)
    return f"{_counted(len(choices), what)} compared, {flipped} flipped"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
