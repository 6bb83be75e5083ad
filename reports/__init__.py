"""Tables and figures, a pure function of the harness's result records; imports no torch."""
