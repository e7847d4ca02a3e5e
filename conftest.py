"""What pytest leaves alone when it looks for examples."""

from importlib.util import find_spec
from pathlib import Path

# kernels are written for GPUs, in Triton
kernels = [str(path) for path in Path("src").rglob("*.py") if "\nimport triton\n" in path.read_text(encoding="utf-8")]
collect_ignore = [] if find_spec("triton") else kernels
