"""Moves: exact rewrites. What a model computes stays; where its large numbers stand changes."""
