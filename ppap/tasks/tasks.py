"""All tasks under one name."""

from ppap.tasks.classes import ClassTask
from ppap.tasks.depth import DepthTask, align_depth
from ppap.tasks.protocol import Task
from ppap.tasks.segmentation import IGNORED, SegmentationTask
from ppap.tasks.similarity import SimilarityTask

__all__ = [
    "IGNORED",
    "ClassTask",
    "DepthTask",
    "SegmentationTask",
    "SimilarityTask",
    "Task",
    "align_depth",
]
