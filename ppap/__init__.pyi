from .denoisers.public import load_denoiser, load_noisy_classifier
from .diffusion.ddim import DDIM
from .diffusion.ddpm import DDPM
from .diffusion.denoiser import Denoiser
from .diffusion.dpm_solver import DPMSolver
from .diffusion.schedule import cosine_schedule, linear_schedule
from .experts.adapters import (
    Adapter,
    Biases,
    Full,
    Head,
    Lora,
    Norms,
    full_adapter,
    ppap_adapter,
)
from .experts.bank import ExpertBank
from .experts.peft_adapters import Peft
from .experts.ranges import NoiseRanges
from .experts.transfer import Distillation, Supervision, Training, transfer
from .fast.path import FastPath
from .fast.sampling import sample, synthesize
from .guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from .predictors.predictor import Predictor
from .predictors.public import load_predictor
from .tasks.tasks import ClassTask, DepthTask, SegmentationTask, SimilarityTask

__version__: str

__all__ = [
    "DDIM",
    "DDPM",
    "Adapter",
    "Biases",
    "ClassTask",
    "DPMSolver",
    "Denoiser",
    "DepthTask",
    "Distillation",
    "ExpertBank",
    "FastPath",
    "Full",
    "Head",
    "LikelihoodGuide",
    "Lora",
    "NoiseRanges",
    "Norms",
    "Peft",
    "Predictor",
    "SegmentationTask",
    "SimilarityTask",
    "SumOfGuides",
    "Supervision",
    "Training",
    "cosine_schedule",
    "full_adapter",
    "linear_schedule",
    "load_denoiser",
    "load_noisy_classifier",
    "load_predictor",
    "naive_guide",
    "ppap_adapter",
    "sample",
    "synthesize",
    "transfer",
]
