"""Solvers: a weight, what is known of its inputs, and a grid in; the weight on its grid out."""
