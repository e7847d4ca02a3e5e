"""One thread for each test process: pytest-xdist already runs one a core, and torch would start as many again."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
