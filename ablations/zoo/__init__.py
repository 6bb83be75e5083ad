"""Trains the weights that the embedded settings ship: ``nox -s zoo``, or with names of settings.

Every training has fixed seeds and is resumable: it leaves a checkpoint every minute in the
work folder and continues from it, with the same random draws as if never interrupted. The
weights are written as float16 safetensors, with a model card that states what they reach.
"""
