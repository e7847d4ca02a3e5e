"""The two kernels behind :class:`farout.inside._board.Board`, in Triton.

The first kernel reads the tensor once. Each of its programs takes a stripe of rows and some columns, and leaves, in
float32, powers of its columns about the mean of their first rows, and of its pieces of rows about their own means;
magnitudes are counted by atomic additions. The second kernel joins these in float64 and adds them to what earlier
batches left. The floor is one pass over the recorded tensor. :mod:`farout.inside._sums` computes the same on any
device, and a test compares the two where there is a GPU.

Shape legend: N rows, C channels, P positions, K stripes, J pieces of a row, G groups of positions.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read(
    x_ptr, keep_ptr, column_ptr, row_ptr, bins_ptr, N, C, x_row, x_column,
    MASKED: tl.constexpr, TIMES: tl.constexpr, MULTIPLIER: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    COLUMNS: tl.constexpr, DROPPED: tl.constexpr, FROM: tl.constexpr, COPIES: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Read a stripe of rows and some columns; leave (13, C) numbers of the stripe and (9, N) of each piece of a row."""
    k, j = tl.program_id(0), tl.program_id(1)
    column = j * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < C
    width = tl.minimum(COLUMNS, C - j * COLUMNS).to(tl.float32)
    mine_ptr = bins_ptr + (k * tl.num_programs(1) + j) % COPIES * BINS  # most values fall into few bins: spread these

    row = k * ROWS + tl.arange(0, STEP)
    seen = (row < N)[:, None] & inside[None, :]
    if MASKED:
        seen = seen & (tl.load(keep_ptr + row, mask=row < N, other=0) != 0)[:, None]
    x = tl.load(x_ptr + row.to(tl.int64)[:, None] * x_row + column[None, :] * x_column, mask=seen, other=0.0)
    x = x.to(tl.float32)
    finite = seen & (tl.abs(x) < float("inf"))
    x = tl.where(finite, x, 0.0)
    shift = tl.sum(x, 0) / tl.maximum(tl.sum(finite.to(tl.float32), 0), 1.0)
    reach = tl.max(tl.where(finite, tl.abs(x - shift[None, :]), 0.0), 0)
    reach = tl.where((reach > 1e-30) & (reach < 1e30), reach, 1.0)
    unit = tl.exp2(tl.floor(tl.log2(reach)))
    inverse = 1.0 / unit

    p1 = tl.zeros([STEP, COLUMNS], tl.float32)
    p2 = tl.zeros([STEP, COLUMNS], tl.float32)
    p3 = tl.zeros([STEP, COLUMNS], tl.float32)
    p4 = tl.zeros([STEP, COLUMNS], tl.float32)
    magnitude = tl.zeros([STEP, COLUMNS], tl.float32)
    large = tl.zeros([STEP, COLUMNS], tl.float32)
    low = tl.full([STEP, COLUMNS], float("inf"), tl.float32)
    high = tl.full([STEP, COLUMNS], float("-inf"), tl.float32)
    count = tl.zeros([COLUMNS], tl.float32)
    nan = tl.zeros([COLUMNS], tl.float32)
    infinite = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, ROWS, STEP):
        row = k * ROWS + start + tl.arange(0, STEP)
        kept = row < N
        if MASKED:
            kept = kept & (tl.load(keep_ptr + row, mask=row < N, other=0) != 0)
        seen = kept[:, None] & inside[None, :]
        x = tl.load(x_ptr + row.to(tl.int64)[:, None] * x_row + column[None, :] * x_column, mask=seen, other=0.0)
        x = x.to(tl.float32)
        finite = seen & (tl.abs(x) < float("inf"))
        bad = tl.sum((seen & (finite == 0)).to(tl.float32), 1)
        count += tl.sum(kept.to(tl.float32), 0)
        if tl.max(bad, 0) > 0:
            lost = (seen & (finite == 0)).to(tl.float32)
            empty = (x != x).to(tl.float32)
            count -= tl.sum(lost, 0)
            nan += tl.sum(empty, 0)
            infinite += tl.sum(lost - empty, 0)
            x = tl.where(finite, x, 0.0)
        low = tl.minimum(low, tl.where(finite, x, float("inf")))
        high = tl.maximum(high, tl.where(finite, x, float("-inf")))
        size = tl.abs(x)
        magnitude += size
        large += (size >= FROM).to(tl.float32)
        d = tl.where(finite, (x - shift[None, :]) * inverse[None, :], 0.0)
        square = d * d
        p1 += d
        p2 += square
        p3 += d * square
        p4 += square * square

        bits = size.to(tl.int32, bitcast=True) >> DROPPED
        if TIMES > 1:
            chosen = ((row.to(tl.uint32) * MULTIPLIER) >> 28) == 0
            tl.atomic_add(mine_ptr + bits, TIMES, mask=finite & chosen[:, None], sem="relaxed")
        else:
            tl.atomic_add(mine_ptr + bits, 1, mask=finite, sem="relaxed")

        peak = tl.max(size, 1)
        place = tl.min(tl.where(size == peak[:, None], column[None, :], 1 << 30), 1)
        scale = tl.where((peak > 1e-30) & (peak < 1e30), peak, 1.0)
        scale = tl.exp2(tl.floor(tl.log2(scale)))
        middle = tl.sum(x, 1) / width
        d = tl.where(seen, (x - middle[:, None]) * (1.0 / scale)[:, None], 0.0)
        square = d * d
        at = row_ptr + j * 9 * N + row
        tl.store(at, tl.where(kept, peak, -1.0), mask=row < N)
        tl.store(at + N, place.to(tl.float32), mask=row < N)
        tl.store(at + 2 * N, tl.sum(size, 1), mask=row < N)
        tl.store(at + 3 * N, middle, mask=row < N)
        tl.store(at + 4 * N, tl.sum(square, 1), mask=row < N)
        tl.store(at + 5 * N, tl.sum(square * d, 1), mask=row < N)
        tl.store(at + 6 * N, tl.sum(square * square, 1), mask=row < N)
        tl.store(at + 7 * N, scale, mask=row < N)
        tl.store(at + 8 * N, bad, mask=row < N)
    at = column_ptr + k * 13 * C + column
    tl.store(at, count, mask=inside)
    tl.store(at + C, shift, mask=inside)
    tl.store(at + 2 * C, unit, mask=inside)
    tl.store(at + 3 * C, tl.sum(p1, 0), mask=inside)
    tl.store(at + 4 * C, tl.sum(p2, 0), mask=inside)
    tl.store(at + 5 * C, tl.sum(p3, 0), mask=inside)
    tl.store(at + 6 * C, tl.sum(p4, 0), mask=inside)
    tl.store(at + 7 * C, tl.min(low, 0), mask=inside)
    tl.store(at + 8 * C, tl.max(high, 0), mask=inside)
    tl.store(at + 9 * C, tl.sum(magnitude, 0), mask=inside)
    tl.store(at + 10 * C, tl.sum(large, 0), mask=inside)
    tl.store(at + 11 * C, nan, mask=inside)
    tl.store(at + 12 * C, infinite, mask=inside)


@triton.jit
def join(
    column_ptr, row_ptr, bins_ptr, old_ptr, new_ptr, N, C, K, J, period, P, G,
    COLUMNS: tl.constexpr, CB: tl.constexpr, KB: tl.constexpr, PB: tl.constexpr, BB: tl.constexpr, HB: tl.constexpr,
    COPIES: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Join what the first kernel left, and what earlier batches left: columns, then positions, then bins."""
    program = tl.program_id(0)
    last = tl.cdiv(C, CB)
    if program < last:
        _join_columns(column_ptr, old_ptr, new_ptr, program, C, K, CB, KB)
    elif program < last + G:
        base = 11 * C
        _join_positions(
            row_ptr, old_ptr + base, new_ptr + base, program - last, N, C, J, period, P, COLUMNS, PB, BB
        )  # fmt: skip
    else:
        bin_ = (program - last - G) * HB + tl.arange(0, HB)
        at = 11 * C + 5 * P + 7 * G + bin_
        copies = bins_ptr + tl.arange(0, COPIES)[:, None] * BINS + bin_[None, :]
        counted = tl.load(copies)
        tl.store(copies, tl.zeros_like(counted))
        tl.store(new_ptr + at, tl.load(old_ptr + at) + tl.sum(counted.to(tl.int64), 0).to(tl.float64))


@triton.jit
def _join_columns(column_ptr, old_ptr, new_ptr, program, C, K, CB: tl.constexpr, KB: tl.constexpr):
    """Join stripes by column, with the formulas of ``joined_powers``."""
    column = program * CB + tl.arange(0, CB)
    inside = column < C
    old = old_ptr + column
    n = tl.load(old, mask=inside, other=0.0)
    mean = tl.load(old + C, mask=inside, other=0.0)
    m2 = tl.load(old + 2 * C, mask=inside, other=0.0)
    m3 = tl.load(old + 3 * C, mask=inside, other=0.0)
    m4 = tl.load(old + 4 * C, mask=inside, other=0.0)
    low = tl.load(old + 5 * C, mask=inside, other=0.0)
    high = tl.load(old + 6 * C, mask=inside, other=0.0)
    magnitude = tl.load(old + 7 * C, mask=inside, other=0.0)
    large = tl.load(old + 8 * C, mask=inside, other=0.0)
    nan = tl.load(old + 9 * C, mask=inside, other=0.0)
    infinite = tl.load(old + 10 * C, mask=inside, other=0.0)
    for first in range(0, K, KB):
        k = first + tl.arange(0, KB)
        at = column_ptr + k[:, None] * 13 * C + column[None, :]
        there = (k < K)[:, None] & inside[None, :]
        nk = tl.load(at, mask=there, other=0.0).to(tl.float64)
        unit = tl.load(at + 2 * C, mask=there, other=0.0).to(tl.float64)
        p1 = tl.load(at + 3 * C, mask=there, other=0.0).to(tl.float64) * unit
        p2 = tl.load(at + 4 * C, mask=there, other=0.0).to(tl.float64) * unit * unit
        p3 = tl.load(at + 5 * C, mask=there, other=0.0).to(tl.float64) * unit * unit * unit
        p4 = tl.load(at + 6 * C, mask=there, other=0.0).to(tl.float64) * unit * unit * unit * unit
        step = p1 / tl.maximum(nk, 1.0)  # from the shift to the mean
        meank = tl.load(at + C, mask=there, other=0.0).to(tl.float64) + step
        m4k = p4 - 4.0 * step * p3 + 6.0 * step * step * p2 - 3.0 * step * step * step * p1
        m3k = p3 - 3.0 * step * p2 + 2.0 * step * step * p1
        m2k = p2 - step * p1
        total = n + tl.sum(nk, 0)
        middle = (n * mean + tl.sum(nk * meank, 0)) / tl.maximum(total, 1.0)
        e = mean - middle
        d = meank - middle[None, :]
        square = d * d
        m4 += 4.0 * e * m3 + 6.0 * e * e * m2 + n * e * e * e * e
        m4 += tl.sum(m4k + 4.0 * d * m3k + 6.0 * square * m2k + nk * square * square, 0)
        m3 += 3.0 * e * m2 + n * e * e * e + tl.sum(m3k + 3.0 * d * m2k + nk * d * square, 0)
        m2 += n * e * e + tl.sum(m2k + nk * square, 0)
        n = total
        mean = middle
        low = tl.minimum(low, tl.min(tl.load(at + 7 * C, mask=there, other=float("inf")), 0).to(tl.float64))
        high = tl.maximum(high, tl.max(tl.load(at + 8 * C, mask=there, other=float("-inf")), 0).to(tl.float64))
        magnitude += tl.sum(tl.load(at + 9 * C, mask=there, other=0.0).to(tl.float64), 0)
        large += tl.sum(tl.load(at + 10 * C, mask=there, other=0.0).to(tl.float64), 0)
        nan += tl.sum(tl.load(at + 11 * C, mask=there, other=0.0).to(tl.float64), 0)
        infinite += tl.sum(tl.load(at + 12 * C, mask=there, other=0.0).to(tl.float64), 0)
    new = new_ptr + column
    tl.store(new, n, mask=inside)
    tl.store(new + C, mean, mask=inside)
    tl.store(new + 2 * C, m2, mask=inside)
    tl.store(new + 3 * C, m3, mask=inside)
    tl.store(new + 4 * C, m4, mask=inside)
    tl.store(new + 5 * C, low, mask=inside)
    tl.store(new + 6 * C, high, mask=inside)
    tl.store(new + 7 * C, magnitude, mask=inside)
    tl.store(new + 8 * C, large, mask=inside)
    tl.store(new + 9 * C, nan, mask=inside)
    tl.store(new + 10 * C, infinite, mask=inside)


@triton.jit
def _join_positions(
    row_ptr, old_ptr, new_ptr, program, N, C, J, period, P, COLUMNS: tl.constexpr, PB: tl.constexpr, BB: tl.constexpr
):
    """Join pieces of rows, then rows by position, and add up facts about rows."""
    position = program * PB + tl.arange(0, PB)
    inside = position < P
    old = old_ptr + position
    count = tl.load(old, mask=inside, other=0.0)
    bad = tl.load(old + P, mask=inside, other=0.0)
    peak = tl.load(old + 2 * P, mask=inside, other=0.0)
    channel = tl.load(old + 3 * P, mask=inside, other=0.0)
    magnitude = tl.load(old + 4 * P, mask=inside, other=0.0)
    varying = tl.zeros([PB, BB], tl.float64)
    living = tl.zeros([PB, BB], tl.float64)
    rows = tl.zeros([PB, BB], tl.float64)
    kurtosis = tl.zeros([PB, BB], tl.float64)
    ratio = tl.zeros([PB, BB], tl.float64)
    variance = tl.zeros([PB, BB], tl.float64)
    variance2 = tl.zeros([PB, BB], tl.float64)
    c = C.to(tl.float64)
    for first in range(0, tl.cdiv(N, period), BB):
        sequence = first + tl.arange(0, BB)
        row = sequence[None, :] * period + position[:, None]
        there = (position < period)[:, None] & (row < N)
        n = tl.zeros([PB, BB], tl.float64)
        mean = tl.zeros([PB, BB], tl.float64)
        m2 = tl.zeros([PB, BB], tl.float64)
        m3 = tl.zeros([PB, BB], tl.float64)
        m4 = tl.zeros([PB, BB], tl.float64)
        sizes = tl.zeros([PB, BB], tl.float64)
        lost = tl.zeros([PB, BB], tl.float64)
        place = tl.zeros([PB, BB], tl.float32)
        top = tl.full([PB, BB], -1.0, tl.float32)
        for j in range(0, J):
            at = row_ptr + j * 9 * N + row
            best = tl.load(at, mask=there, other=-1.0)
            place = tl.where(best > top, tl.load(at + N, mask=there, other=0.0), place)
            top = tl.maximum(best, top)
            sizes += tl.load(at + 2 * N, mask=there, other=0.0).to(tl.float64)
            scale = tl.load(at + 7 * N, mask=there, other=0.0).to(tl.float64)
            q2 = tl.load(at + 4 * N, mask=there, other=0.0).to(tl.float64) * scale * scale
            q3 = tl.load(at + 5 * N, mask=there, other=0.0).to(tl.float64) * scale * scale * scale
            q4 = tl.load(at + 6 * N, mask=there, other=0.0).to(tl.float64) * scale * scale * scale * scale
            lost += tl.load(at + 8 * N, mask=there, other=0.0).to(tl.float64)
            step = tl.load(at + 3 * N, mask=there, other=0.0).to(tl.float64) - mean
            width = tl.minimum(COLUMNS, C - j * COLUMNS).to(tl.float64)
            total = n + width
            a = n / total
            b = width / total
            m4 += q4 + 4.0 * step * (a * q3 - b * m3) + 6.0 * step * step * (a * a * q2 + b * b * m2)
            m4 += step * step * step * step * n * b * (a * a - a * b + b * b)
            m3 += q3 + 3.0 * step * (a * q2 - b * m2) + step * step * step * n * b * (a - b)
            m2 += q2 + step * step * n * b
            mean += step * b
            n = total
        kept = there & (top >= 0)
        fine = kept & (lost == 0)
        varies = fine & (m2 > c * mean * mean * 1e-12)
        lives = fine & (sizes > 0)
        v = tl.where(fine, m2 / tl.maximum(c - 1.0, 1.0), 0.0)
        rows += fine.to(tl.float64)
        varying += varies.to(tl.float64)
        living += lives.to(tl.float64)
        kurtosis += tl.where(varies, c * m4 / tl.where(varies, m2 * m2, 1.0), 0.0)
        ratio += tl.where(lives, c * top.to(tl.float64) / tl.where(lives, sizes, 1.0), 0.0)
        variance += v
        variance2 += v * v
        count += tl.sum(kept.to(tl.float64), 1)
        bad += tl.sum(tl.where(kept, lost, 0.0), 1)
        magnitude += tl.sum(tl.where(kept, sizes, 0.0), 1)
        best = tl.max(top, 1)
        order = tl.min(tl.where(top == best[:, None], sequence[None, :], 1 << 30), 1)
        reached = tl.sum(tl.where(sequence[None, :] == order[:, None], place, 0.0), 1)
        channel = tl.where(best.to(tl.float64) > peak, reached.to(tl.float64), channel)
        peak = tl.maximum(peak, best.to(tl.float64))
    new = new_ptr + position
    tl.store(new, count, mask=inside)
    tl.store(new + P, bad, mask=inside)
    tl.store(new + 2 * P, peak, mask=inside)
    tl.store(new + 3 * P, channel, mask=inside)
    tl.store(new + 4 * P, magnitude, mask=inside)
    old = old_ptr + 5 * P + program * 7
    new = new_ptr + 5 * P + program * 7
    tl.store(new, tl.load(old) + tl.sum(rows))
    tl.store(new + 1, tl.load(old + 1) + tl.sum(varying))
    tl.store(new + 2, tl.load(old + 2) + tl.sum(living))
    tl.store(new + 3, tl.load(old + 3) + tl.sum(kurtosis))
    tl.store(new + 4, tl.load(old + 4) + tl.sum(ratio))
    tl.store(new + 5, tl.load(old + 5) + tl.sum(variance))
    tl.store(new + 6, tl.load(old + 6) + tl.sum(variance2))
