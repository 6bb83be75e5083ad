"""Everything that is to be known of a machine with a GPU, by one command in minutes.

``python -m bench.gpu --out FOLDER --seconds 270`` checks every kernel against float64, times
guided sampling and training end to end and the kernels by themselves, and tunes the kernels. It
needs torch, Triton, timm and peft; rivals that are not installed are left out, with a line. What
was found by then is on disk after every finding, so that nothing is lost if the machine is.
``--rehearse`` runs the same lines at toy sizes without a GPU.
"""
