"""Being here puts this folder on the path, so that tests import their slow, obvious versions from ``naive``."""
