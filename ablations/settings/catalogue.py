"""Which settings and budgets there are, by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from ablations.errors import UserError
from ablations.settings import fashion, large, plugins, public, scenes
from ablations.settings.public import PUBLIC
from ablations.settings.setting import Setting

__all__ = ["BUDGETS", "REHEARSAL", "check_names", "load_setting"]

REHEARSAL = "-rehearsal"
"""Ends the name of a public setting that is rehearsed on seeded weights."""
BUDGETS = fashion.BUDGETS | public.BUDGETS
"""The embedded settings share theirs."""


EMBEDDED: dict[str, Callable[[], Setting]] = {
    "fashion": fashion.load,
    "fashion-large": large.load_fashion,
    "scenes": scenes.load,
    "scenes-large": large.load_scenes,
    "scenes-long": large.load_scenes_long,
}


def check_names() -> None:
    """Look at what plugins call their settings.

    Raises:
        UserError: for a name that is taken, and would go on meaning what it did.
    """
    for name in plugins.SETTINGS:
        if name in EMBEDDED or name.removesuffix(REHEARSAL) in PUBLIC:
            module = plugins.SETTINGS[name].__module__
            raise UserError(f"{module} calls its setting {name}, which is taken", "choose another")


@lru_cache
def load_setting(name: str) -> Setting:
    """A setting by name, the run's plugins' among them.

    Raises:
        UserError: for an unknown name, or one whose weights are not there.
    """
    makers = EMBEDDED | {each: partial(public.load, each) for each in PUBLIC}
    if name.removesuffix(REHEARSAL) in PUBLIC and name.endswith(REHEARSAL):
        from ablations.settings import rehearsal

        return rehearsal.load(name.removesuffix(REHEARSAL), name)
    make = makers.get(name) or plugins.setting_of_plugin(name)
    if make is None:
        known = ", ".join({**makers, **plugins.SETTINGS})
        raise UserError(f"unknown setting {name!r}", f"choose from {known}")
    found = make()
    if found.name != name:
        raise UserError(
            f"the setting made for {name!r} calls itself {found.name!r}", "give it one name"
        )
    return found
