"""How well a score ranks outliers above normal rows.

Functions take ``label`` (1 = outlier, 0 = normal) and ``score`` (larger = farther out). The *positive* class is the
outliers, unless a name or an argument says otherwise, as the literature on inputs from elsewhere needs it
(:func:`ood_metrics`). Rows with equal scores are one threshold, so no number depends on the order of the rows.
Infinite scores are ranked like any other; missing ones are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput

Metric = Callable[[NDArray[np.int64], NDArray[np.float64]], float]


def auroc(label: ArrayLike, score: ArrayLike) -> float:
    """Chance that an outlier scores higher than a normal row: (1/PN) * sum over pairs of [s_p > s_n] + [s_p = s_n]/2.

    Parameters
    ----------
    label : array of shape (n,)
        1 = outlier, 0 = normal.
    score : array of shape (n,)
        Larger = farther out.

    Returns
    -------
    float
        1 for a perfect ranking, 0.5 for a constant score, 0 for the reversed ranking.

    Raises
    ------
    BadInput
        One class only, labels other than 0 and 1, missing scores, or lengths that differ.

    Examples
    --------
    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    tp, fp = _counts(label, score)
    # Integers until the last division: two equal rankings give the same float, and tie when methods are ranked.
    twice_area = np.sum(np.diff(fp) * (tp[1:] + tp[:-1]))
    return float(twice_area / (2 * tp[-1] * fp[-1]))


def partial_auroc(label: ArrayLike, score: ArrayLike, max_fpr: float) -> float:
    """Area under the ROC curve up to a false positive rate, standardised by McClish (1989).

    With A the area over [0, a] and a = ``max_fpr``: (1 + (A - a^2/2) / (a - a^2/2)) / 2.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.
    max_fpr : float
        The largest share of normal rows that may be flagged, in (0, 1].

    Returns
    -------
    float
        1 for a perfect ranking and 0.5 for a constant score, at every ``max_fpr``.

    Raises
    ------
    BadInput
        As in `auroc`, or ``max_fpr`` outside (0, 1].

    Examples
    --------
    >>> round(partial_auroc([0, 0, 0, 1, 1], [1, 2, 5, 4, 6], max_fpr=0.5), 4)
    0.7778
    """
    _check_share("max_fpr", max_fpr)
    tp, fp = _counts(label, score)
    tpr, fpr = tp / tp[-1], fp / fp[-1]
    inside = fpr <= max_fpr
    x = np.append(fpr[inside], max_fpr)
    y = np.append(tpr[inside], np.interp(max_fpr, fpr, tpr))
    chance = max_fpr**2 / 2
    return float((1 + (np.trapezoid(y, x) - chance) / (max_fpr - chance)) / 2)


def average_precision(label: ArrayLike, score: ArrayLike) -> float:
    """Precision at each distinct threshold, weighted by the recall gained there: sum_k (R_k - R_{k-1}) P_k.

    This is a sum over steps, not the trapezoid area under the precision-recall curve, which comes out too high.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.

    Returns
    -------
    float
        1 for a perfect ranking, the share of outliers for a constant score.

    Raises
    ------
    BadInput
        As in `auroc`.

    Examples
    --------
    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    tp, fp = _counts(label, score)
    precision = tp[1:] / (tp[1:] + fp[1:])
    return float(np.sum(np.diff(tp) * precision) / tp[-1])


def normalized_ap(label: ArrayLike, score: ArrayLike) -> float:
    """Average precision freed of the share r of outliers, (AP - r) / (1 - r): comparable between data sets.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.

    Returns
    -------
    float
        1 for a perfect ranking, 0 for a constant score, below 0 for worse than that.

    Raises
    ------
    BadInput
        As in `auroc`.

    Examples
    --------
    >>> normalized_ap([0, 0, 0, 1], [5, 5, 5, 5])
    0.0
    """
    precision = average_precision(label, score)
    rate = float(np.mean(np.asarray(label)))
    return (precision - rate) / (1 - rate)


def fpr_at_tpr(label: ArrayLike, score: ArrayLike, tpr: float = 0.95, *, positive: str = "out") -> float:
    """Share of normal rows flagged at the highest threshold that flags at least ``tpr`` of the outliers.

    Much of the out-of-distribution literature counts the *normal* rows as positives and prints another number under the
    name FPR95: the share of outliers that pass at the lowest threshold that passes at least ``tpr`` of the normal rows.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.
    tpr : float, default 0.95
        The share of positives that must be found, in (0, 1].
    positive : {"out", "in"}
        Which rows are the positives: the outliers, or the normal rows.

    Returns
    -------
    float
        0 for a perfect ranking, 1 for a constant score. Smaller is better.

    Raises
    ------
    BadInput
        As in `auroc`, or ``tpr`` outside (0, 1], or ``positive`` neither word.

    Examples
    --------
    >>> label, score = [0, 0, 0, 0, 1, 1], [1, 2, 3, 6, 5, 7]
    >>> fpr_at_tpr(label, score), fpr_at_tpr(label, score, positive="in")
    (0.25, 0.5)
    """
    _check_share("tpr", tpr)
    if positive not in ("out", "in"):
        raise BadInput(f"'positive' is 'out' (the outliers) or 'in' (the normal rows), not '{positive}'")
    label, score = _checked(label, score)
    tp, fp = _counts(label, score) if positive == "out" else _counts(1 - label, -score)
    enough = np.argmax(tp / tp[-1] >= tpr)
    return float(fp[enough] / fp[-1])


def detection_accuracy(label: ArrayLike, score: ArrayLike) -> float:
    """Share of rows told apart at the best threshold, where both classes weigh the same: max (TPR + TNR) / 2.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.

    Returns
    -------
    float
        1 for a perfect ranking, 0.5 for a constant score.

    Raises
    ------
    BadInput
        As in `auroc`.

    Examples
    --------
    >>> detection_accuracy([0, 0, 0, 0, 1, 1], [1, 2, 3, 6, 5, 7])
    0.875
    """
    tp, fp = _counts(label, score)
    return float(np.max(tp / tp[-1] + (1 - fp / fp[-1])) / 2)


def ood_metrics(score_in: ArrayLike, score_out: ArrayLike) -> dict[str, float]:
    """Tell how well a score separates inputs that belong from inputs from elsewhere, by all the field's numbers.

    Parameters
    ----------
    score_in : array of shape (n,)
        Of inputs that belong. Larger = farther out: a confidence must be negated.
    score_out : array of shape (m,)
        Of inputs from elsewhere.

    Returns
    -------
    dict of str to float
        - ``auroc``: chance that an input from elsewhere scores higher.
        - ``aupr_in``, ``aupr_out``: average precision where the inputs that belong, or those from elsewhere, are the
          positives. They depend on the ratio n : m.
        - ``fpr95_in``: share of ``score_out`` that passes where 95 % of ``score_in`` pass (most papers).
        - ``fpr95_out``: share of ``score_in`` that is flagged where 95 % of ``score_out`` are (OpenOOD, MultiOOD). The
          two are different numbers; never compare across them.
        - ``detection_accuracy``: see `detection_accuracy`.

    Raises
    ------
    BadInput
        Scores that are empty, missing or not one-dimensional.

    Examples
    --------
    >>> ood_metrics([1, 2, 3, 6], [5, 7])
    {'auroc': 0.875, 'aupr_in': 0.95, 'aupr_out': 0.833..., 'fpr95_in': 0.5, 'fpr95_out': 0.25,
     'detection_accuracy': 0.875}
    """
    inside, outside = np.asarray(score_in, dtype=np.float64), np.asarray(score_out, dtype=np.float64)
    if inside.ndim != 1 or outside.ndim != 1 or not inside.size or not outside.size:
        raise BadInput(
            f"'score_in' and 'score_out' must be one-dimensional with a score at least; their shapes are "
            f"{inside.shape} and {outside.shape}"
        )
    label, score = np.repeat([0, 1], [inside.size, outside.size]), np.concatenate([inside, outside])
    return {
        "auroc": auroc(label, score),
        "aupr_in": average_precision(1 - label, -score),
        "aupr_out": average_precision(label, score),
        "fpr95_in": fpr_at_tpr(label, score, positive="in"),
        "fpr95_out": fpr_at_tpr(label, score, positive="out"),
        "detection_accuracy": detection_accuracy(label, score),
    }


def precision_at_n(label: ArrayLike, score: ArrayLike) -> float:
    """Share of outliers among the P rows with the highest scores, where P is the number of outliers (R-precision).

    Where the P-th place falls among equal scores, they count by their share of outliers: the mean over all ways to
    break the tie.

    Parameters
    ----------
    label, score : array of shape (n,)
        As in `auroc`.

    Returns
    -------
    float
        1 for a perfect ranking, the share of outliers for a constant score.

    Raises
    ------
    BadInput
        As in `auroc`.

    Examples
    --------
    >>> precision_at_n([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.5
    """
    tp, fp = _counts(label, score)
    return float(np.interp(tp[-1], tp + fp, tp) / tp[-1])


def bootstrap_ci(
    metric: Metric, label: ArrayLike, score: ArrayLike, level: float = 0.95, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a metric over rows drawn again with replacement, outliers and normal rows apart.

    Drawing the classes apart keeps their numbers as they are, so that a set with three outliers has an interval too.

    Parameters
    ----------
    metric : callable
        A function of (label, score), such as `auroc`.
    label, score : array of shape (n,)
        As in `auroc`.
    level : float, default 0.95
        The share of drawn values inside the interval, in (0, 1].
    n : int, default 1000
        How many times the rows are drawn.
    seed : int, default 0
        Seed of the draws.

    Returns
    -------
    low, high : float
        The ends of the interval.

    Raises
    ------
    BadInput
        As in `auroc`, or ``level`` outside (0, 1], or ``n`` below 1.

    Examples
    --------
    >>> bootstrap_ci(auroc, [0, 0, 0, 1, 1], [1, 2, 3, 8, 9])
    (1.0, 1.0)
    """
    _check_share("level", level)
    if n < 1:
        raise BadInput(f"'n' is the number of draws and must be at least 1; it is {n}")
    label, score = _checked(label, score)
    outliers, normals = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    rng = np.random.default_rng(seed)
    drawn = np.empty(n)
    for i in range(n):
        rows = np.concatenate([rng.choice(outliers, outliers.size), rng.choice(normals, normals.size)])
        drawn[i] = metric(label[rows], score[rows])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Outliers and normal rows at or above each distinct threshold, from none flagged to all flagged."""
    label, score = _checked(label, score)
    order = np.argsort(-score)
    falling = score[order]
    last_of_tie = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    tp = np.append(0, np.cumsum(label[order])[last_of_tie])
    flagged = np.append(0, last_of_tie + 1)
    return tp, flagged - tp


def _checked(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels as integers 0 and 1, both present, and as many scores, none missing."""
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise BadInput(
            f"'label' and 'score' must be one-dimensional and equally long; their shapes are {label.shape} and "
            f"{score.shape}"
        )
    foreign = label[~np.isin(label, (0, 1))]
    if foreign.size:
        seen = ", ".join(sorted({f"'{value}'" for value in foreign.tolist()})[:3])
        raise BadInput(
            f"labels must be 0 (normal) or 1 (outlier); {foreign.size} of {label.size} are not, such as {seen}"
        )
    n_outliers = int(np.sum(label == 1))
    if n_outliers in (0, label.size):
        raise BadInput(
            f"a ranking is judged on outliers and normal rows together; here are {n_outliers} outliers (label 1) and "
            f"{label.size - n_outliers} normal rows (label 0)"
        )
    missing = np.flatnonzero(np.isnan(score))
    if missing.size:
        raise BadInput(
            f"{missing.size} of {score.size} scores are NaN, the first at row {missing[0]}; drop or mend them"
        )
    return label.astype(np.int64), score


def _check_share(name: str, value: float) -> None:
    """Refuse what is not in (0, 1]."""
    if not 0 < value <= 1:
        raise BadInput(f"'{name}' must be above 0 and at most 1; it is {value}")
