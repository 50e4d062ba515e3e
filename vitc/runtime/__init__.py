"""Loading and running compiled libraries. Needs the standard library and numpy; torch only if handed it."""
