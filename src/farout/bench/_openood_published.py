"""Numbers of OpenOOD v1.5 on CIFAR-10, to stand beside ours.

ResNet-18, three trainings, near = CIFAR-100 and Tiny ImageNet, far = MNIST, SVHN, Textures, Places365. AUROC in
percent; FPR95 with outliers as positives. From an independent re-run of the benchmark's evaluator on its released
checkpoints; rows without FPR95 are from its report (Zhang et al., 2023, arXiv 2306.09301).
"""

from __future__ import annotations

SOURCE = "OpenOOD v1.5, CIFAR-10, ResNet-18 (other near and far sets than here)"
# By slug: AUROC near, AUROC far, FPR95 near, FPR95 far
CIFAR10: dict[str, tuple[float, float, float | None, float | None]] = {
    "msp": (88.03, 90.73, 48.17, 31.71),
    "max_logit": (87.52, 91.10, 61.33, 41.67),
    "energy": (87.58, 91.21, 61.34, 41.71),
    "odin": (82.87, 87.96, 76.18, 57.63),
    "mahalanobis": (84.20, 89.72, 49.91, 32.21),
    "relative_mahalanobis": (89.80, 92.20, 38.88, 25.35),
    "deep_knn": (90.64, 92.96, 34.00, 24.28),
    "react": (87.11, 90.42, 63.56, 44.90),
    "ash": (75.27, 78.49, 86.79, 79.02),
    "vim": (88.68, 93.48, None, None),
    "temperature_scaling": (88.09, 90.97, None, None),
}
