"""What pytest leaves alone when it looks for examples."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/farout/inside/_kernels.py"]  # written for a GPU, and in Triton
