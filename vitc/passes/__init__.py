"""Passes: what turns the graph that a model was imported as into the graph that kernels run."""
