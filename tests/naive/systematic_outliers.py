"""The three kinds of outlier, from whole activations kept in float64."""

import numpy as np
import torch


def weight_ratio(weight):
    """Largest ratio of max |W| to mean |W| in any row or column."""
    size = np.abs(weight)
    rows = [max(row) / (sum(row) / len(row)) for row in size if max(row)]
    columns = [max(column) / (sum(column) / len(column)) for column in size.T if max(column)]
    return max(rows + columns)


def table(model, tokens):
    """Peak, its place, mean, median and counts of what each block leaves; and its attention."""
    streams = []
    hooks = [block.register_forward_hook(lambda _, args, out: streams.append(out)) for block in model.blocks]
    with torch.no_grad():
        model(tokens)
        probs = model.probabilities(tokens)
    for hook in hooks:
        hook.remove()
    for block, stream, weights in zip(model.blocks, streams, probs):
        size = stream.double().abs().numpy()
        _, position, channel = np.unravel_index(size.argmax(), size.shape)
        mean, median = size.mean(), np.median(size)
        columns = weights.double().numpy().mean(axis=1).sum(axis=1).mean(axis=0)  # of head means, over queries
        yield {
            "peak": size.max(),
            "position": position,
            "channel": channel,
            "mean": mean,
            "median": median,
            "systematic": int((size.max(axis=(0, 1)) > 1000 * mean).sum()),
            "massive": int((size.max(axis=(0, 1)) > max(100, 1000 * median)).sum()),
            "ratio": max(weight_ratio(w.detach().numpy()) for w in block.parameters() if w.ndim == 2),
            "sinks": int((columns >= 0.1 * tokens.shape[1]).sum()),
            "sink": int(columns[: tokens.shape[1]].argmax()),
            "attention": columns.max() / tokens.shape[1],
        }
