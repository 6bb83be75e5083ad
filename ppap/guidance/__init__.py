"""Guides: from a noisy image and a target to a gradient, or to a whole step."""

from collections.abc import Callable, Mapping

from ppap.diffusion.stepping import AnyGuide
from ppap.guidance.methods.adam import AdamGuidance
from ppap.guidance.methods.adm_g import classifier_guidance
from ppap.guidance.methods.autoguidance import Autoguidance
from ppap.guidance.methods.calibrated import calibrated_guidance
from ppap.guidance.methods.classifier_free import ClassifierFreeGuidance
from ppap.guidance.methods.dps import DPS
from ppap.guidance.methods.elucd import EluCD
from ppap.guidance.methods.fk_steering import FKSteering
from ppap.guidance.methods.freedom import FreeDoM
from ppap.guidance.methods.lgd_mc import LGD
from ppap.guidance.methods.mpgd import MPGD
from ppap.guidance.methods.signal_weighted import signal_weighted_guidance
from ppap.guidance.methods.tfg import TFG
from ppap.guidance.methods.universal import UniversalGuidance
from ppap.guidance.methods.x0_gradient import X0Gradient

__all__ = ["METHODS"]

METHODS: Mapping[str, Callable[..., AnyGuide]] = {
    "adm-g": classifier_guidance,
    "signal-weighted": signal_weighted_guidance,
    "calibrated": calibrated_guidance,
    "x0-gradient": X0Gradient,
    "dps": DPS,
    "lgd-mc": LGD,
    "freedom": FreeDoM,
    "mpgd": MPGD,
    "universal": UniversalGuidance,
    "tfg": TFG,
    "elucd": EluCD,
    "adam": AdamGuidance,
    "fk-steering": FKSteering,
    "classifier-free": ClassifierFreeGuidance,
    "autoguidance": Autoguidance,
}
"""The ways to guide by name: ``METHODS[name](likelihood, scale, ...)``.

The likelihood is one of :mod:`ppap.guidance.likelihoods`; the last two are called with another
denoiser in its place. ``"adm-g"``, ``"signal-weighted"`` and ``"calibrated"`` take one that looks
at x_t.
"""
