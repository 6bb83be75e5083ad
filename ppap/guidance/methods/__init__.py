"""One way to guide a file, each with its paper on top; :data:`ppap.guidance.METHODS` lists them."""
