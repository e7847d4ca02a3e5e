"""Nearest neighbours outside of a row's group, what they share with it, and what they would vote."""

from __future__ import annotations

import numpy as np

CELLS = 2**23  # similarities held at a time


def nearest_others(embedding: np.ndarray, group: np.ndarray, most: int) -> np.ndarray:
    """Return the rows nearest to each row and outside of its group, nearest first, for all rows equally many.

    Parameters
    ----------
    embedding : float64 array (n, d)
        Rows of length 1.
    group : int array (n,)
    most : int
        Neighbours wanted.

    Returns
    -------
    int64 array (n, m)
        ``m`` is ``most``, or what the largest group leaves. Equally near rows stand in their order.

    Examples
    --------
    >>> nearest_others(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.array([0, 0, 1]), 5)
    array([[2], [2], [1]])
    """
    n = len(embedding)
    most = min(most, n - int(np.bincount(group).max()))
    found = np.empty((n, most), dtype=np.int64)
    if most == 0:
        return found
    step = max(1, CELLS // n)
    for start in range(0, n, step):
        block = slice(start, start + step)
        distance = -(embedding[block] @ embedding.T)
        distance[group[block, None] == group] = np.inf
        nearest = np.sort(np.argpartition(distance, most - 1, axis=1)[:, :most], axis=1)
        order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1, kind="stable")
        found[block] = np.take_along_axis(nearest, order, axis=1)
    return found


def kinds_of(label: np.ndarray, confound: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Tell what each neighbour (n, m) shares: 0 both, 1 the label, 2 the confounder, 3 neither."""
    other_label, other_confound = (codes[found] != codes[:, None] for codes in (label, confound))
    return 2 * other_label.astype(np.uint8) + other_confound


def voted(label: np.ndarray, confound: np.ndarray, group: np.ndarray, found: np.ndarray, ks: np.ndarray) -> np.ndarray:
    """Let neighbours vote, and look at whom wrong votes came from.

    Parameters
    ----------
    label, confound, group : int array (n,)
    found : int array (n, m)
        Neighbours, nearest first.
    ks : int array (p,)
        How many of them vote; ascending, at most m.

    Returns
    -------
    float64 array (5, p)
        Balanced accuracy on the label and on the confounder; then, of the neighbours that belong to the wrongly
        predicted class of a misclassified row, how many have its confounder, how many would have it were they drawn
        from that class outside of its group, and how many there are.
    """
    label, confound = (np.unique(codes, return_inverse=True)[1] for codes in (label, confound))
    told = np.zeros((5, len(ks)))
    ballots = [(codes, _ballot(codes, found, ks)) for codes in (label, confound)]
    for row, (codes, predicted) in enumerate(ballots):
        each = [(predicted[codes == code] == code).mean(axis=0) for code in range(codes.max() + 1)]
        told[row] = np.mean(each, axis=0)
    predicted = ballots[0][1]
    near = confound[found] == confound[:, None]
    for place, k in enumerate(ks):
        wrong = np.flatnonzero(predicted[:, place] != label)
        blamed = label[found[wrong, :k]] == predicted[wrong, place, None]
        told[2, place] = (blamed & near[wrong, :k]).sum()
        told[3, place] = blamed.sum(axis=1) @ _base(label, confound, group, wrong, predicted[wrong, place])
        told[4, place] = blamed.sum()
    return told


def _ballot(codes: np.ndarray, found: np.ndarray, ks: np.ndarray) -> np.ndarray:
    """Return the code with most votes among the first k neighbours (n, p); of several, the nearest neighbour's."""
    n, most = found.shape
    rows = np.arange(n)
    votes = np.zeros((n, codes.max() + 1))
    elected = np.empty((n, len(ks)), dtype=np.int64)
    for k in range(1, int(ks[-1]) + 1):
        of = codes[found[:, k - 1]]
        first = votes[rows, of] == 0
        # less than one vote in all, so that it decides among equals only
        votes[rows, of] += np.where(first, 1 - k / (most + 1), 1)
        if k in ks:
            elected[:, np.searchsorted(ks, k)] = votes.argmax(axis=1)
    return elected


def _base(label: np.ndarray, confound: np.ndarray, group: np.ndarray, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the share of same-confounder rows within the class ``of`` (w,), outside of the group of each row (w,)."""
    classes, confounds = label.max() + 1, confound.max() + 1
    cells = np.zeros((classes, confounds))
    np.add.at(cells, (label, confound), 1)
    # the part of a cell that lies in the row's own group
    own, many = np.unique((group * classes + label) * confounds + confound, return_counts=True)
    asked = (group[rows, None] * classes + of[:, None]) * confounds + np.arange(confounds)
    place = np.minimum(np.searchsorted(own, asked), len(own) - 1)
    left = cells[of] - np.where(own[place] == asked, many[place], 0)
    return left[np.arange(len(rows)), confound[rows]] / left.sum(axis=1)
