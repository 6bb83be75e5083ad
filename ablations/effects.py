"""Options that a sweep takes no notice of, named before it runs.

A changed field is in the name of every record. Where nothing is computed otherwise because of it,
the name would claim an experiment that has not been made: eight training seeds of a curve, say, by
``--seeds 8``, whose number of units stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.settings.budget import Budget
from ablations.sweeps import SWEEPS, Lab
from ablations.sweeps.recipes import PPAP

__all__ = ["unheeded"]

Build = Callable[[Lab], Mapping[str, Sequence[Cell]]]
"""From a lab to the cells of every sweep."""
RATE = "learning_rate"
OF_CURVES = {"seeds": "units", "samples": "curve_samples"}
"""What is called so in sweeps of rows, and otherwise in those of curves."""


def unheeded(build: Build, lab: Lab, budget: Budget, predictors: Sequence[str]) -> list[str]:
    """One line for each option that some sweeps, though not all, take no notice of.

    Args:
        build: the sweeps that are to run.
        lab: with all options.
        budget: as it is without them.
        predictors: that the command line names; none if they are the setting's.

    Raises:
        UserError: for an option that changes nothing in any of the sweeps.
    """
    # Of one row alone an option may well change nothing that changes others of its experiment.
    lab = replace(lab, rows=(), tasks=())
    options = list(_others(lab, budget, predictors))
    if not options and not lab.plugins:
        return []  # nothing to look for, and building takes a while
    built = _keys(build(lab))
    lines = []
    for option, others in options:
        without = [_keys_if_possible(build, other) for other in others]
        same = [name for name in built if all(keys.get(name) == built[name] for keys in without)]
        if same and len(same) == len(built):
            raise UserError(
                f"{option} changes nothing in {', '.join(same)}", _mend(build, lab, option, built)
            )
        lines += [f"{option} changes nothing in {', '.join(same)}"] * bool(same)
    for guide in lab.plugins:
        fewer = tuple(name for name in lab.plugins if name != guide)
        keys = _keys(build(replace(lab, plugins=fewer)))
        if same := [name for name in built if keys[name] == built[name] and _is_ours(name)]:
            lines.append(f"the guide {guide} has no row in {', '.join(same)}")
    return lines


def _others(
    lab: Lab, budget: Budget, predictors: Sequence[str]
) -> Iterator[tuple[str, tuple[Lab, ...]]]:
    """Every option, and the labs from one of which it differs if it has an effect."""
    for name, usual in vars(budget).items():
        if (value := getattr(lab.budget, name)) != usual:
            text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
            other = replace(lab, budget=replace(lab.budget, **{name: usual}))
            yield f"{name}={text}", (replace(other, scales=()) if name == "scales" else other,)
    for name, value in lab.changes:
        others = tuple(change for change in lab.changes if change[0] != name)
        if name == RATE:  # which is not the same for all recipes
            yield f"{name}={value}", (replace(lab, changes=(*others, (name, 2 * float(value)))),)
        elif value != getattr(PPAP, name):
            yield f"{name}={value}", (replace(lab, changes=others),)
    for name in predictors:
        fewer = tuple(other for other in predictors if other != name)
        rest = (fewer,) if fewer else ((o,) for o in lab.setting.predictors if o != name)
        if labs := tuple(replace(lab, predictors=chosen) for chosen in rest):
            yield f"predictor {name}", labs


def _mend(build: Build, lab: Lab, option: str, built: Mapping[str, list[str]]) -> str:
    name, _, value = option.partition("=")
    if field := OF_CURVES.get(name):
        more = replace(lab.budget, **{field: getattr(lab.budget, field) + 1})
        if _keys(build(replace(lab, budget=more))) != built:
            return f"leave it out, or change what curves have instead: --set {field}={value}"
    return "leave it out"


def _keys(built: Mapping[str, Sequence[Cell]]) -> dict[str, list[str]]:
    return {name: [cell.key for cell in cells] for name, cells in built.items()}


def _keys_if_possible(build: Build, lab: Lab) -> dict[str, list[str]]:
    """None where the sweeps cannot be built without an option, which is then one with an effect."""
    try:
        return _keys(build(lab))
    except UserError:
        return {}


def _is_ours(name: str) -> bool:
    """Whether a sweep is of this repository; one of a plugin may name a guide by itself."""
    return SWEEPS[name].function.__module__.startswith("ablations.sweeps.")
