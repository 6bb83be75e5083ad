"""Guide any diffusion model with any off-the-shelf predictor, through experts trained without data.

Everything that a user needs is a name of this package, loaded when it is first used:

* what is guided: :class:`Denoiser`, :func:`load_denoiser`, :func:`linear_schedule`,
  :func:`cosine_schedule`;
* what guides: :class:`Predictor`, :func:`load_predictor`, :func:`load_noisy_classifier`,
  :class:`ExpertBank` with its :class:`NoiseRanges` and :class:`Adapter`, of :class:`Lora`,
  :class:`Biases`, :class:`Norms`, :class:`Full`, :class:`Head` or :class:`Peft` parts
  (:func:`ppap_adapter` is the paper's, :func:`full_adapter` fine-tunes everything);
* how experts are trained: :func:`synthesize`, :func:`transfer`, :class:`Training`,
  :class:`Distillation` without labels, :class:`Supervision` with them;
* towards what: :class:`ClassTask`, :class:`DepthTask`, :class:`SegmentationTask`,
  :class:`SimilarityTask`;
* sampling: :func:`sample`, the samplers :class:`DDIM`, :class:`DDPM`, :class:`DPMSolver` and
  :class:`DiffusersSampler`, :class:`FastPath`, which keeps what it has compiled, and
  :class:`Preset`, all of these under one name; :func:`best_preset` finds the :class:`Best` one;
* guides: :class:`LikelihoodGuide`, :class:`X0Gradient`, :class:`SumOfGuides` and
  :func:`naive_guide`, within a :class:`GuidanceInterval`, with :class:`GradientReuse`, a
  :class:`ClippedGradient` or :class:`SignalWeighted`, and in pipelines of diffusers through a
  :class:`GuidedScheduler`.
* other ways to guide, all named by ``ppap.guidance.METHODS``: :func:`classifier_guidance`,
  :func:`signal_weighted_guidance`, :func:`calibrated_guidance` (of a guide, :func:`calibrated`),
  :class:`X0Gradient`, :class:`DPS`, :class:`LGD`, :class:`FreeDoM`, :class:`MPGD`,
  :class:`UniversalGuidance`, :class:`TFG`, :class:`EluCD` with :class:`CalibratedLogits` and
  :func:`with_softplus`, :class:`AdamGuidance`, :class:`FKSteering`,
  :class:`ClassifierFreeGuidance` and :class:`Autoguidance`; by an :class:`ImageLikelihood`, a
  :class:`NoisyLikelihood`, a :class:`SumOfLikelihoods`, or experts :class:`AtLeastNoise`.

The rooms below, ground floor first, hold the rest: ``files``, ``compute``, ``diffusion``,
``denoisers``, ``tasks``, ``predictors``, ``guidance``, ``experts``, ``evaluation``, ``fast``.
"""

import lazy_loader

__version__ = "0.1.0"

# The names, and the module of each, stand in __init__.pyi, which type checkers read as well.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
