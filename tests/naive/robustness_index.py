"""The robustness index, slowly and plainly: sort all others by angle, walk along, count."""

from __future__ import annotations

import numpy as np


def neighbours(X, group, i):
    """Rows outside of the group of row i, by falling cosine."""
    cosine = [float(X[i] @ x / np.sqrt(X[i] @ X[i]) / np.sqrt(x @ x)) for x in X]
    return sorted((j for j in range(len(X)) if group[j] != group[i]), key=lambda j: (-cosine[j], j))


def counts(X, label, confound, group, k):
    """Neighbours with both labels, the label, the confounder, neither."""
    told = [0, 0, 0, 0]
    for i in range(len(X)):
        for j in neighbours(X, group, i)[:k]:
            told[2 * (label[j] != label[i]) + (confound[j] != confound[i])] += 1
    return told


def vote(codes, group, X, i, k):
    """The code with most of the first k votes; of several, the one whose first voter is nearest."""
    near = [codes[j] for j in neighbours(X, group, i)[:k]]
    return max(dict.fromkeys(near), key=near.count)


def balanced_accuracy(codes, group, X, k):
    right = {}
    for i, code in enumerate(codes):
        right.setdefault(code, []).append(vote(codes, group, X, i, k) == code)
    return np.mean([np.mean(hits) for hits in right.values()])


def errors(X, label, confound, group, k):
    """Share of same-confounder rows among the neighbours that misled, and in the classes they belong to."""
    same, expected = [], []
    for i in range(len(X)):
        predicted = vote(label, group, X, i, k)
        if predicted == label[i]:
            continue
        pool = [confound[j] == confound[i] for j in range(len(X)) if label[j] == predicted and group[j] != group[i]]
        for j in neighbours(X, group, i)[:k]:
            if label[j] == predicted:
                same.append(confound[j] == confound[i])
                expected.append(np.mean(pool))
    return np.mean(same), np.mean(expected)
