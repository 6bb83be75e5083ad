"""Sampler, path, precision and what becomes of the guide under one name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ppap.compute.compiler import has_compiler
from ppap.compute.options import check_choice
from ppap.compute.precision import Precision, choose_precision
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser, module_device
from ppap.diffusion.dpm_solver import DPMSolver
from ppap.diffusion.guide import Guide
from ppap.diffusion.schedule import Schedule
from ppap.diffusion.solver import Sampler
from ppap.diffusion.stepping import AnyGuide, check_gives_gradient
from ppap.fast.path import FastPath
from ppap.guidance.methods.calibrated import calibrated
from ppap.guidance.wrappers import SignalWeighted

__all__ = ["PRESETS", "Preset", "preset_of", "refined"]

TIMESTEPS = 1000
"""Of the schedule that a preset's sampler is stated for."""


@dataclass(frozen=True)
class Preset:
    """How to sample, for ``ppap.sample(..., preset=...)``.

    Attributes:
        sampler: as for a schedule of 1000 timesteps: the ``last`` timestep of a
            :class:`ppap.diffusion.dpm_solver.DPMSolver` moves in proportion with the denoiser's.
        fast: whether steps take the fast path, where there is a compiler and the denoiser's
            conditions are the same for all images.
        precision: in which networks compute; ``"auto"`` is bfloat16 where it saves time.
        signal_power: of the weight by which what guides is held back in the noise, as of
            :class:`ppap.guidance.wrappers.SignalWeighted`; None leaves it as it is.
        marginal: of the logits of what guides towards classes, as of
            :func:`ppap.guidance.methods.calibrated.calibrated`; None leaves them as they are.
    """

    sampler: Sampler
    fast: bool = False
    precision: Precision | Literal["auto"] = "fp32"
    signal_power: float | None = None
    marginal: float | None = None

    def guided(self, guide: AnyGuide | None) -> AnyGuide | None:
        """What guides: the caller's guide, calibrated and weighted as the preset says.

        Raises:
            StepGuideError: for a guide that makes whole steps, and a preset that changes it.
            TypeError: for a guide whose logits are not to be seen, and a preset that calibrates.
        """
        if guide is None:
            return None
        if self.marginal is not None:
            check_gives_gradient(guide, "calibration", "give its likelihood CalibratedLogits()")
        return refined(guide, self.marginal, self.signal_power)  # type: ignore[arg-type]

    def sampler_for(self, schedule: Schedule | int) -> Sampler:
        """The sampler for a schedule, or for one of so many timesteps from 0 on."""
        sampler = self.sampler
        if isinstance(sampler, DPMSolver) and sampler.last is not None:
            timesteps = range(schedule) if isinstance(schedule, int) else schedule.timesteps
            return replace(sampler, last=int(timesteps[sampler.last * len(timesteps) // TIMESTEPS]))
        return sampler

    def settle(
        self,
        denoiser: Denoiser,
        sampler: Sampler | None,
        fast: FastPath | bool | None,
        precision: Precision | None,
    ) -> tuple[Sampler, FastPath | bool, Precision | None]:
        """What is used beside a preset: whatever is given, and the preset's own for the rest.

        Args:
            denoiser: what is sampled from, where it is to compute.
            sampler: None for the preset's.
            fast: None for the preset's.
            precision: None for the preset's, or that of a fast path of the caller's.

        Raises:
            PrecisionError: for a preset in bfloat16 on a device without instructions for it.
        """
        if sampler is None:
            sampler = self.sampler_for(denoiser.schedule)
        if fast is None:
            fast = self.fast and denoiser.condition_count is None and has_compiler()
        if precision is None and not isinstance(fast, FastPath):
            precision = choose_precision(self.precision, module_device(denoiser))
        return sampler, fast, precision


PRESETS: dict[str, Preset] = {
    "standard": Preset(DDIM(25)),
    "fast": Preset(DPMSolver(8, last=80), fast=True),
    "held-back": Preset(DPMSolver(8, last=80), fast=True, signal_power=0.5),
    "calibrated": Preset(DPMSolver(8, last=80), fast=True, marginal=0.5),
}
"""``"standard"`` is the paper's sampler, step by step. ``"fast"`` is DPM-Solver++ 2M in 8 steps
from the last timestep down to 80 of 1000, ending at the predicted image, on the fast path: a third
of the network evaluations, and on scenes less accurate. ``"held-back"`` is the same with guidance
that is weaker the noisier the image, ``"calibrated"`` the same with half the marginal for all that
guides towards classes: of garments the former has more accurate samples, nearer to real images,
of scenes the latter, and on the other's images each is worse (the sweeps ``refinements`` and
``speed-quality``); :func:`ppap.fast.best.best_preset` finds out which. A guidance scale that was
chosen for one of them does not suit another: choose it anew."""


def refined(guide: Guide, marginal: float | None, signal_power: float | None) -> Guide:
    """A guide, calibrated and weighted as a :class:`Preset` says by attributes of these names."""
    if marginal is not None:
        guide = calibrated(guide, marginal)
    return guide if signal_power is None else SignalWeighted(guide, signal_power)


def preset_of(preset: str | Preset) -> Preset:
    """A preset by its name, or as it is.

    Raises:
        TypeError: for what is neither a name nor a preset.
        ValueError: for an unknown name, with those that there are.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str):
        raise TypeError(f"a preset is a name or a ppap.Preset, got {type(preset).__name__}")
    if preset == "best":
        raise ValueError("which preset is best depends on the images; ppap.best_preset finds it")
    check_choice("preset", preset, PRESETS)
    return PRESETS[preset]
