"""Images: a score each, and where in them; detectors of defects, and what they stand on.

>>> from farout.image import Backbone
"""

from farout.image._detector import ImageDetector, map_like
from farout.image.backbones import Backbone

__all__ = ["Backbone", "ImageDetector", "map_like"]
