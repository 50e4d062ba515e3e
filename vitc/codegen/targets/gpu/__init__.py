"""What the GPU targets share: the kernels of `templates/include/vitc/gpu` and their text."""
