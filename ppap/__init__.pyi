from . import guidance as guidance
from .denoisers.public import load_denoiser, load_noisy_classifier
from .diffusion.ddim import DDIM
from .diffusion.ddpm import DDPM
from .diffusion.denoiser import Denoiser
from .diffusion.diffusers_scheduler import DiffusersSampler
from .diffusion.dpm_solver import DPMSolver
from .diffusion.schedule import cosine_schedule, linear_schedule
from .experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from .experts.adapters.lora import Lora
from .experts.adapters.parts import Biases, Full, Head, Norms
from .experts.adapters.peft import Peft
from .experts.bank import ExpertBank
from .experts.objectives import Distillation, Supervision
from .experts.routing import NoiseRanges
from .experts.training import Training
from .experts.transfer import transfer
from .fast.best import Best, best_preset
from .fast.path import FastPath
from .fast.presets import Preset
from .fast.sampling import sample, synthesize
from .guidance.diffusers_pipeline import GuidedScheduler
from .guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from .guidance.likelihoods import (
    AtLeastNoise,
    ImageLikelihood,
    NoisyLikelihood,
    SumOfLikelihoods,
)
from .guidance.methods.adam import AdamGuidance
from .guidance.methods.adm_g import classifier_guidance
from .guidance.methods.autoguidance import Autoguidance
from .guidance.methods.calibrated import calibrated, calibrated_guidance
from .guidance.methods.classifier_free import ClassifierFreeGuidance
from .guidance.methods.dps import DPS
from .guidance.methods.elucd import CalibratedLogits, EluCD
from .guidance.methods.fk_steering import FKSteering
from .guidance.methods.freedom import FreeDoM
from .guidance.methods.lgd_mc import LGD
from .guidance.methods.mpgd import MPGD
from .guidance.methods.signal_weighted import signal_weighted_guidance
from .guidance.methods.tfg import TFG
from .guidance.methods.universal import UniversalGuidance
from .guidance.methods.x0_gradient import X0Gradient
from .guidance.wrappers import (
    ClippedGradient,
    GradientReuse,
    GuidanceInterval,
    SignalWeighted,
)
from .predictors.predictor import Predictor
from .predictors.public import load_predictor
from .predictors.softplus import with_softplus
from .tasks.classes import ClassTask
from .tasks.depth import DepthTask
from .tasks.segmentation import SegmentationTask
from .tasks.similarity import SimilarityTask

__version__: str

__all__ = [
    "DDIM",
    "DDPM",
    "DPS",
    "LGD",
    "MPGD",
    "TFG",
    "AdamGuidance",
    "Adapter",
    "AtLeastNoise",
    "Autoguidance",
    "Best",
    "Biases",
    "CalibratedLogits",
    "ClassTask",
    "ClassifierFreeGuidance",
    "ClippedGradient",
    "DPMSolver",
    "Denoiser",
    "DepthTask",
    "DiffusersSampler",
    "Distillation",
    "EluCD",
    "ExpertBank",
    "FKSteering",
    "FastPath",
    "FreeDoM",
    "Full",
    "GradientReuse",
    "GuidanceInterval",
    "GuidedScheduler",
    "Head",
    "ImageLikelihood",
    "LikelihoodGuide",
    "Lora",
    "NoiseRanges",
    "NoisyLikelihood",
    "Norms",
    "Peft",
    "Predictor",
    "Preset",
    "SegmentationTask",
    "SignalWeighted",
    "SimilarityTask",
    "SumOfGuides",
    "SumOfLikelihoods",
    "Supervision",
    "Training",
    "UniversalGuidance",
    "X0Gradient",
    "best_preset",
    "calibrated",
    "calibrated_guidance",
    "classifier_guidance",
    "cosine_schedule",
    "full_adapter",
    "linear_schedule",
    "load_denoiser",
    "load_noisy_classifier",
    "load_predictor",
    "naive_guide",
    "ppap_adapter",
    "sample",
    "signal_weighted_guidance",
    "synthesize",
    "transfer",
    "with_softplus",
]
