"""GPTQ and rounding to nearest: equal to removing inputs from the full inverse Hessian, and to closed forms."""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import pytest

from farout.errors import BadInput
from naive import quantize_gptq as naive

torch = pytest.importorskip("torch")

from farout.quantize.grid import RULES, Grid, Steps  # noqa: E402
from farout.quantize.round._columns import Columns  # noqa: E402
from farout.quantize.round._common import cholesky, layer_error  # noqa: E402
from farout.quantize.round.gptq import factored, gptq  # noqa: E402
from farout.quantize.round.rtn import clipped_steps, rtn  # noqa: E402

GRIDS = [
    Grid(4),
    Grid(3, "tensor"),
    Grid(3, rule="narrow"),
    Grid(2, "group", 8, "asymmetric"),
    Grid(3, "group", 16, "free"),
    Grid(4, "group", 32, "clamped"),
    Grid(4, kind="float"),
    Grid(8, "tensor", kind="float"),
    Grid(4, "group", 32, kind="mxfp4"),
    Grid(4, "group", 16, kind="nvfp4"),
]


def problem(seed=0, outputs=12, inputs=64, tokens=300, dtype=torch.float64):
    """A weight, and the Hessian of inputs that are correlated and of different size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=generator, dtype=dtype)
    x = x @ torch.randn(inputs, inputs, generator=generator, dtype=dtype) / inputs**0.5 + x
    x *= torch.exp(torch.randn(inputs, generator=generator, dtype=dtype))
    return torch.randn(outputs, inputs, generator=generator, dtype=dtype), 2 / tokens * x.T @ x


def by(grid, steps):
    return lambda weight, j: grid.nearest(weight[:, j : j + 1], grid.column(steps, j))[:, 0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_removing_inputs_from_the_full_inverse(grid, seed):
    weight, hessian = problem(seed)
    found = gptq(weight, hessian, grid, order=False)
    expected = naive.obq(weight, naive.damped(hessian, 0.01), by(grid, grid.steps(weight)))
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-5)
    assert layer_error(weight, found.weight, hessian) == pytest.approx(
        naive.loss(weight, expected, hessian) / naive.loss(weight, 0 * weight, hessian), rel=1e-9
    )
    codes = grid.codes(found.weight, found.steps)
    assert torch.equal(grid.values(codes, found.steps, tuple(weight.shape)), found.weight)
    assert torch.equal(found.steps.scale, grid.steps(weight).scale)


def test_equals_it_with_a_quantizer_that_is_written_out():
    weight, hessian = problem(2, outputs=5, inputs=24)
    ranges = [(float(row.min()), float(row.max())) for row in weight]

    def rounded(current, j):
        each = zip(current[:, j].tolist(), ranges)
        return torch.tensor([naive.asymmetric([value], low, high, 3)[0] for value, (low, high) in each]).double()

    expected = naive.obq(weight, naive.damped(hessian, 0.1), rounded)
    found = gptq(weight, hessian, Grid(3, rule="asymmetric"), order=False, damping=0.1)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [Grid(3), Grid(3, "group", 16), Grid(4, "group", 16, kind="nvfp4")], ids=str)
def test_order_is_a_permutation_and_is_undone(grid):
    weight, hessian = problem(3)
    order = hessian.diagonal().argsort(descending=True)
    steps = grid.steps(weight)

    def rounded(current, j):
        return by(grid, steps)(current[:, order.argsort()], int(order[j]))

    expected = torch.empty_like(weight)
    damped = naive.damped(hessian, 0.01)
    expected[:, order] = naive.obq(weight[:, order], damped[order][:, order], rounded)
    torch.testing.assert_close(gptq(weight, hessian, grid).weight, expected, rtol=0, atol=1e-5)


def test_permuted_inputs_give_the_permuted_answer():
    weight, hessian = problem(4)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    found = gptq(weight, hessian, Grid(3)).weight
    assert torch.equal(gptq(weight[:, shuffled], hessian[shuffled][:, shuffled], Grid(3)).weight, found[:, shuffled])


@pytest.mark.parametrize("grid", [Grid(3), Grid(3, "group", 16, "asymmetric")], ids=str)
@pytest.mark.parametrize("order", [False, True])
def test_blocks_change_nothing(grid, order):
    weight, hessian = problem(5)
    whole = gptq(weight, hessian, grid, order=order, block=64).weight
    for block in (1, 7, 16, 128):
        assert torch.equal(gptq(weight, hessian, grid, order=order, block=block).weight, whole)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_inputs_that_do_not_meet_give_rounding_to_nearest(grid):
    weight, hessian = problem(6)
    for some in (torch.eye(64).double(), hessian.diagonal().diag()):
        assert torch.equal(gptq(weight, some, grid).weight, rtn(weight, grid).weight)


def test_the_last_input_has_the_closed_form():
    weight, hessian = problem(7, outputs=30, inputs=9)
    grid = Grid(3)
    found = gptq(weight, hessian, grid, order=False, damping=0.0)
    change = (weight - found.weight)[:, :-1]
    best = weight[:, -1] + change @ hessian[:-1, -1] / hessian[-1, -1]
    assert torch.equal(found.weight[:, -1:], grid.nearest(best[:, None], found.steps))
    assert not torch.equal(found.weight[:, -1:], grid.nearest(weight[:, -1:], found.steps))


def test_two_inputs_beside_all_there_are():
    grid = Grid(2)
    for seed in range(20):
        weight, hessian = problem(seed, outputs=1, inputs=2, tokens=20)
        found = gptq(weight, hessian, grid, order=False, damping=0.0)
        values = (torch.arange(-2, 2) * found.steps.scale).flatten().tolist()
        losses = {
            pair: naive.loss(weight, torch.tensor([pair], dtype=torch.float64), hessian)
            for pair in itertools.product(values, values)
        }
        first = grid.nearest(weight[:, :1], found.steps).item()
        loss = naive.loss(weight, found.weight, hessian)
        assert loss == pytest.approx(min(losses[pair] for pair in losses if pair[0] == first), rel=1e-9)
        assert loss >= min(losses.values()) * (1 - 1e-9)


def test_loses_less_than_rounding_to_nearest():
    for grid in (Grid(3), Grid(4, "group", 16, "asymmetric"), Grid(4, kind="float")):
        ratios = []
        for seed in range(50):
            weight, hessian = problem(seed)
            nearest = naive.loss(weight, rtn(weight, grid).weight, hessian)
            ratios.append(
                [naive.loss(weight, gptq(weight, hessian, grid, order=o).weight, hessian) / nearest for o in (0, 1)]
            )
        plain, ordered = torch.tensor(ratios).mean(0).tolist()
        assert plain < 0.7
        assert ordered < plain


@pytest.mark.parametrize("grid", [Grid(3, "group", 16, "asymmetric"), Grid(4, "group", 16, kind="nvfp4")], ids=str)
def test_groups_take_fresh_steps_when_they_are_reached(grid):
    weight, hessian = problem(8)
    whole, groups = grid.steps(weight).global_scale, []

    def rounded(current, j):
        if j % 16 == 0:  # from weights that hold all corrections so far
            groups.append(grid.steps(current[:, j : j + 16], whole))
        return grid.nearest(current[:, j : j + 1], grid.column(groups[-1], 0))[:, 0]

    expected = naive.obq(weight, naive.damped(hessian, 0.01), rounded)
    for block in (1, 12, 16, 128):
        found = gptq(weight, hessian, grid, order=False, static_groups=False, block=block)
        torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.steps.scale, torch.cat([one.scale for one in groups], 1))
        torch.testing.assert_close(grid.rounded(found.weight, found.steps), found.weight)
    static = gptq(weight, hessian, grid, order=False)
    assert not torch.equal(static.weight, found.weight)
    with pytest.raises(BadInput, match="order of inputs breaks them up"):
        gptq(weight, hessian, grid, static_groups=False)


def test_steps_along_outputs_come_from_the_column_as_it_stands():
    weight, hessian = problem(9)
    grid = Grid(3, "input", 4, "clamped")
    expected = naive.obq(weight, naive.damped(hessian, 0.01), lambda w, j: grid.rounded(w[:, j : j + 1])[:, 0])
    found = gptq(weight, hessian, grid, order=False)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(grid.rounded(found.weight, found.steps), found.weight)
    for order in (False, True):
        ordered = gptq(weight, hessian, grid, order=order)
        torch.testing.assert_close(grid.rounded(ordered.weight, ordered.steps), ordered.weight)
        assert torch.equal(gptq(weight, torch.eye(64), grid, order=order).weight, rtn(weight, grid).weight)
    torch.testing.assert_close(rtn(weight, grid).weight, rtn(weight.T, Grid(3, "group", 4, "clamped")).weight.T)
    fixed = gptq(weight, hessian, grid, order=False, steps=grid.steps(weight))
    expected = naive.obq(weight, naive.damped(hessian, 0.01), by(grid, grid.steps(weight)))
    torch.testing.assert_close(fixed.weight, expected, rtol=0, atol=1e-5)


def test_inputs_that_were_never_used_do_not_matter():
    weight, hessian = problem(10)
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[0, 5, 63]] = True
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    weight[:, 5] = 100.0
    found = gptq(weight, hessian, Grid(3))
    assert not found.weight[:, dead].any()
    alone = gptq(weight[:, ~dead], hessian[~dead][:, ~dead], Grid(3))
    torch.testing.assert_close(found.weight[:, ~dead], alone.weight, rtol=0, atol=1e-9)
    with pytest.raises(BadInput, match="no input of this map was ever used"):
        gptq(weight, torch.zeros(64, 64), Grid(3))


def test_errors_of_earlier_layers_are_corrected_as_published():
    weight, hessian = problem(11)
    generator = torch.Generator().manual_seed(1)
    cross = 0.1 * torch.randn(64, 64, generator=generator, dtype=torch.float64) @ hessian
    grid, damped = Grid(3), naive.damped(hessian, 0.01)
    expected = naive.gptaq(weight, damped, cross, by(grid, grid.steps(weight)))
    for block in (1, 16, 128):
        found = gptq(weight, hessian, grid, order=False, block=block, cross=cross)
        torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-5)
    assert not torch.equal(found.weight, gptq(weight, hessian, grid, order=False).weight)
    none = gptq(weight, hessian, grid, cross=torch.zeros(64, 64))
    assert torch.equal(none.weight, gptq(weight, hessian, grid).weight)
    shuffled = torch.randperm(64, generator=generator)
    turned = gptq(
        weight[:, shuffled], hessian[shuffled][:, shuffled], grid, cross=cross[shuffled][:, shuffled]
    )  # the order is by size, so it finds the same one again
    assert torch.equal(turned.weight, gptq(weight, hessian, grid, cross=cross).weight[:, shuffled])


def test_inputs_of_the_full_model_are_what_the_rest_makes_good_for():
    """The second input stands, before it is rounded, where least squares puts it and the third."""
    generator = torch.Generator().manual_seed(2)
    x, dx = torch.randn(50, 3, generator=generator).double(), 0.2 * torch.randn(50, 3, generator=generator).double()
    weight = torch.randn(4, 3, generator=generator).double()
    steps = Steps(torch.full((1, 1), 0.05, dtype=torch.float64))
    grid = Grid(8, "tensor")
    found = gptq(weight, 2 / 50 * x.T @ x, grid, order=False, damping=0.0, cross=2 / 50 * dx.T @ x, steps=steps)
    lost = weight[:, :1] * (x + dx)[:, :1].T - found.weight[:, :1] * x[:, :1].T  # (4, tokens)
    second = weight[:, 1:] + torch.linalg.lstsq(x[:, 1:], lost.T).solution.T
    torch.testing.assert_close(found.weight[:, 1], grid.nearest(second[:, :1], steps)[:, 0])


def test_maps_with_the_same_inputs_share_a_factor():
    weight, hessian = problem(12)
    other = problem(13)[0]
    factor = factored(hessian, damping=0.05)
    for one in (weight, other):
        assert torch.equal(gptq(one, factor, Grid(3)).weight, gptq(one, hessian, Grid(3), damping=0.05).weight)
        assert gptq(one.float(), factor, Grid(3)).weight.dtype == torch.float64


def test_the_unit_of_the_hessian_does_not_matter_and_nothing_is_changed():
    weight, hessian = problem(14)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    before = weight.clone(), hessian.clone()
    found = gptq(weight, hessian, Grid(3)).weight
    assert torch.equal(gptq(weight, 1024 * hessian, Grid(3)).weight, found)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_half_precision_is_worked_on_in_float32():
    weight, hessian = problem(15, dtype=torch.float32)
    half = gptq(weight.bfloat16(), hessian, Grid(3))
    assert half.weight.dtype == torch.float32
    assert torch.equal(half.weight, gptq(weight.bfloat16().float(), hessian, Grid(3)).weight)
    double = gptq(weight.double(), hessian.double(), Grid(3)).weight
    assert (gptq(weight, hessian, Grid(3)).weight.double() - double).abs().gt(1e-4).double().mean() < 0.01


def test_damping_grows_until_the_factorisation_succeeds():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    low_rank = x.T @ x
    assert cholesky(low_rank, 0.01).damping == 0.01
    assert 0 < factored(low_rank, damping=0.0).damping <= 1e-4
    assert gptq(torch.randn(4, 8), low_rank, Grid(4), damping=0.0).weight.isfinite().all()
    with pytest.raises(BadInput, match=r"not positive definite, even with 1 times its mean diagonal .* at input 2"):
        cholesky(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    with pytest.raises(BadInput, match="'damping' is a share"):
        cholesky(low_rank, -1.0)


def test_bad_input():
    weight, hessian = problem(16)
    for wrong, says in (
        ((weight[0], hessian), "a weight to round is a matrix"),
        ((weight, hessian[:5]), "a Hessian is a square matrix"),
        ((weight[:, :5], hessian), "a Hessian of 64 inputs does not fit a weight"),
        ((weight / 0, hessian), "a weight .* not finite"),
        ((torch.ones(2, 64), hessian * torch.inf), "a Hessian .* not finite"),
    ):
        with pytest.raises(BadInput, match=says):
            gptq(*wrong, Grid(4))
    with pytest.raises(BadInput, match="'block' is a number of columns"):
        gptq(weight, hessian, Grid(4), block=0)
    with pytest.raises(BadInput, match="'cross' has the shape of the Hessian"):
        gptq(weight, hessian, Grid(4), cross=hessian[:3])
    with pytest.raises(BadInput, match="'power' is that of errors"):
        clipped_steps(weight, Grid(4), power=0.0)


@pytest.mark.parametrize("grid", [*GRIDS, Grid(3, "input", 4)], ids=str)
def test_searched_ranges_round_no_worse_than_whole_ones(grid):
    weight, _ = problem(17)
    weight[0, 0] = 9.0

    def errors(v, power):
        return (weight - v).abs().pow(power)

    for power in (1.0, 2.4):
        plain, clipped = rtn(weight, grid), rtn(weight, grid, clip=True, power=power)
        before, after = (grid.view(errors(one.weight, power)).sum(-1) for one in (plain, clipped))
        assert (after <= before * (1 + 1e-12)).all()
        if grid.kind == "int":
            assert after.sum() < 0.99 * before.sum()
        torch.testing.assert_close(grid.rounded(weight, clipped.steps), clipped.weight)
        if grid.kind == "nvfp4":  # all groups keep one global scale
            local = clipped.steps.scale * clipped.steps.global_scale
            torch.testing.assert_close(local, local.to(torch.float8_e4m3fn).double(), rtol=1e-9, atol=0)


def test_searched_ranges_are_the_best_of_eighty():
    weight, _ = problem(18, outputs=3)
    grid = Grid(3, rule="asymmetric")
    found = clipped_steps(weight, grid, power=2.4)
    for row, scale in zip(weight.tolist(), found.scale.flatten().tolist()):
        tried = []
        for i in range(80):
            low, high = (1 - i / 100) * min(row), (1 - i / 100) * max(row)
            values = naive.asymmetric(row, low, high, 3)
            tried.append((sum(abs(x - v) ** 2.4 for x, v in zip(row, values)), (high - low) / 7))
        assert scale == pytest.approx(min(tried)[1], rel=1e-9)


def test_rounding_to_nearest_is_nearest():
    weight, _ = problem(19)
    found = rtn(weight, Grid(3, rule="asymmetric"))
    for row, rounded, scale, zero in zip(weight, found.weight, found.steps.scale, found.steps.zero):
        values = scale * (torch.arange(8) - zero)
        torch.testing.assert_close(rounded, values[(row[:, None] - values).abs().argmin(1)])


KERNEL = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="needs a GPU with Triton"
)


@KERNEL
@pytest.mark.parametrize("grid", [*GRIDS, *(Grid(4, "input", 12, rule) for rule in RULES[1:])], ids=str)
@pytest.mark.parametrize("crossed", [False, True])
def test_the_kernel_rounds_as_torch_does(grid, crossed):
    from farout.quantize.round import _gptq_kernel

    weight, hessian = (one.float().cuda() for one in problem(20, outputs=60))
    weight[:12, 3], weight[12:24, 5] = 0.0, 1.5  # groups without a range
    cross = 0.1 * hessian.roll(1, 0) if crossed else None
    here, there = (Columns.of(weight, factored(hessian, cross=cross), grid, True, None) for _ in range(2))
    for start, stop in ((0, 30), (30, 60), (60, 64)):
        here.round_block(start, stop)
        _gptq_kernel.round_block(there, start, stop)
        # a sum that is added up in another order puts a few weights on the other side of a middle
        assert (here.values[start:stop] - there.values[start:stop]).abs().gt(1e-4).float().mean() < 0.02
        torch.testing.assert_close(there.scale, here.scale, rtol=1e-3, atol=0)
        assert grid.symmetric or (there.zero != here.zero).float().mean() < 0.02
        for name in ("values", "errors", "reached"):
            one, other = getattr(here, name), getattr(there, name)
            if one is not None:
                other[start:stop] = one[start:stop]
        for one in (here, there):
            one.correct(start, stop)


@KERNEL
@pytest.mark.parametrize("fault", ["fails", "differ"])
def test_a_kernel_that_is_not_right_is_not_used(fault, monkeypatch):
    from farout.quantize.round import _gptq_kernel
    from farout.quantize.round import gptq as module

    def wrong(columns, start, stop):
        if fault == "fails":
            raise RuntimeError("it fails here")
        columns.values[start:stop] = 1.0

    weight, hessian = (one.float().cuda() for one in problem(21))
    expected = gptq(weight, hessian, Grid(3)).weight
    monkeypatch.setattr(_gptq_kernel, "round_block", wrong)
    module._sound.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"the GPU kernel of GPTQ is not used, since .* {fault}"):
            found = gptq(weight, hessian, Grid(3)).weight
    finally:
        module._sound.cache_clear()
    assert (found - expected).abs().gt(1e-4).float().mean() < 0.02


@KERNEL
def test_a_gpu_rounds_as_the_cpu_does():
    for seed, grid in enumerate(GRIDS):
        weight, hessian = problem(seed, outputs=40)
        expected = layer_error(weight, gptq(weight, hessian, grid).weight, hessian)
        found = gptq(weight.float().cuda(), hessian.float().cuda(), grid).weight.double().cpu()
        assert layer_error(weight, found, hessian) == pytest.approx(expected, rel=0.05)
        double = gptq(weight.cuda(), hessian.cuda(), grid).weight.cpu()
        torch.testing.assert_close(double, gptq(weight, hessian, grid).weight, rtol=0, atol=1e-9)
