"""From an optimised graph to a shared library: kernel choice, memory plan, rendering, build."""
