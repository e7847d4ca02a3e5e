"""One thread for each test process: pytest-xdist already runs one a core, and torch would start as many again."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_teardown(item):
    """What sees all calls to torch ends with the pass it was made for, or every later test runs under it."""
    if "torch" in sys.modules:
        left = sys.modules["torch"].overrides._get_current_function_mode_stack()
        assert not left, f"{item.nodeid} leaves behind {left}"
