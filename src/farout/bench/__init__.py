"""Methods in, numbers about methods out: suites, metrics, statistics over data sets and published numbers."""
