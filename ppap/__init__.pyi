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
from .fast.path import FastPath
from .fast.sampling import sample, synthesize
from .guidance.diffusers_pipeline import GuidedScheduler
from .guidance.guides import LikelihoodGuide, SumOfGuides, naive_guide
from .guidance.predicted_image import PredictedImageGuide
from .guidance.wrappers import ClippedGradient, GradientReuse, GuidanceInterval
from .predictors.predictor import Predictor
from .predictors.public import load_predictor
from .tasks.classes import ClassTask
from .tasks.depth import DepthTask
from .tasks.segmentation import SegmentationTask
from .tasks.similarity import SimilarityTask

__version__: str

__all__ = [
    "DDIM",
    "DDPM",
    "Adapter",
    "Biases",
    "ClassTask",
    "ClippedGradient",
    "DPMSolver",
    "Denoiser",
    "DepthTask",
    "DiffusersSampler",
    "Distillation",
    "ExpertBank",
    "FastPath",
    "Full",
    "GradientReuse",
    "GuidanceInterval",
    "GuidedScheduler",
    "Head",
    "LikelihoodGuide",
    "Lora",
    "NoiseRanges",
    "Norms",
    "Peft",
    "PredictedImageGuide",
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
