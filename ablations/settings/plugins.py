"""What a run brings along: modules named by ``--plugin``, and settings that they define.

A module is imported before anything is looked up, in the run and in each of its workers. What it
registers is then known by name: sweeps (:func:`ablations.sweeps.sweep`) and settings
(:func:`setting`), which may be others with a denoiser or predictors of their own
(:func:`derived`). A class of it that guides is a row (:mod:`ablations.cells.plugins`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from ablations.errors import UserError
from ablations.machine.code import digest_of_code
from ablations.settings.setting import Setting
from ppap.diffusion.denoiser import Denoiser
from ppap.predictors.predictor import Predictor

__all__ = [
    "SETTINGS",
    "derived",
    "digest_of_code",
    "load_plugin",
    "load_plugins",
    "setting",
    "setting_of_plugin",
]

Make = Callable[[], Setting]
SETTINGS: dict[str, Make] = {}
"""Of plugins, by name."""
LOADED = "PPAP_PLUGINS"
"""The environment variable by which workers know what to import."""


def load_plugins(names: Sequence[str]) -> tuple[str, ...]:
    """Import the modules of a run, now and in every worker that is started from here on.

    Args:
        names: of modules, or of files that end in ``.py``.

    Returns:
        The names of the modules.

    Raises:
        UserError: if one is not there, or cannot be imported.
    """
    modules = [load_plugin(name).__name__ for name in names]
    known = dict.fromkeys([*filter(None, os.environ.get(LOADED, "").split(":")), *modules])
    if known:
        os.environ[LOADED] = ":".join(known)
    return tuple(modules)


def load_plugin(name: str) -> ModuleType:
    """Import a module by its name, or by its file, whose folder can be imported from then on.

    Raises:
        UserError: if it is not there, cannot be imported, or is a file with the name of another
            module.
    """
    path = Path(name)
    if path.suffix == ".py":
        sys.path[:0] = [folder for folder in [str(path.resolve().parent)] if folder not in sys.path]
        name = path.stem
    try:
        found = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # whatever a module of somebody else's raises
        raise UserError(
            f"no plugin {name}: {type(error).__name__}: {error}",
            f"put {name}.py into this folder or on PYTHONPATH, or mend it",
        ) from error
    if path.suffix == ".py" and Path(found.__file__ or "").resolve() != path.resolve():
        raise UserError(
            f"{path} would be imported as {name}, which is {found.__file__ or 'built in'} already",
            "give the file another name",
        )
    return found


def setting_of_plugin(name: str) -> Make | None:
    """What makes a setting of this run's plugins; None if none does."""
    for module in filter(None, os.environ.get(LOADED, "").split(":")):
        load_plugin(module)
    return SETTINGS.get(name)


def setting(name: str) -> Callable[[Make], Make]:
    """Let ``--setting NAME`` be what a function makes.

    Raises:
        UserError: if another function has that name already.
    """

    def register(make: Make) -> Make:
        known = SETTINGS.setdefault(name, make)
        if (known.__module__, known.__qualname__) != (make.__module__, make.__qualname__):
            raise UserError(f"{known.__module__} has a setting {name} already", "choose another")
        SETTINGS[name] = make
        return make

    return register


def derived(
    base: Setting,
    name: str,
    files: Sequence[Path | str],
    *,
    denoiser: Callable[[], Denoiser] | None = None,
    predictors: Mapping[str, Callable[[], Predictor]] | None = None,
) -> Setting:
    """A setting with another denoiser, or with more predictors.

    Args:
        base: what it is like in all else: judges, reference, tasks and targets.
        name: of the new one.
        files: code and weights: when one of them changes, nothing that was computed with it is
            used again.
        denoiser: makes the unconditional diffusion model; it draws images of the base's shape.
        predictors: make classifiers of the base's classes, by name.

    Raises:
        UserError: for a name that the base has, or a file that cannot be read.
    """
    made = predictors or {}
    if taken := {name} & {base.name} | made.keys() & {*base.predictors}:
        raise UserError(f"setting {base.name} has a {taken.pop()} already", "choose another name")

    def predictor(wanted: str) -> Predictor:
        return made[wanted]() if wanted in made else base.predictor(wanted)

    return replace(
        base,
        name=name,
        denoiser=denoiser or base.denoiser,
        predictor=predictor,
        predictors=(*base.predictors, *made),
        fingerprint=digest_of_code(files, base.fingerprint),
    )
