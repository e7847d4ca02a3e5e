"""Slow and obvious versions of what farout computes fast."""
