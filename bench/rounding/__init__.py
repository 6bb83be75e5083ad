"""How often rounding decides a sample: the same seeds under other batch sizes, CPUs and paths.

A sample depends on its seed alone, up to rounding. Guided by a network with kinks, such as a
ReLU's, a trajectory can turn on that rounding: where an activation lies just beside zero, its
last bit decides which way the gradient points. ``python -m bench.rounding`` counts how often.
"""
