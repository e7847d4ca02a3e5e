"""Grids: closed forms of each rule, the nearest of all values by search, compressed-tensors, gradients, and names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farout.errors import BadInput, UnknownName

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

from farout.quantize._floats import e2m1, e4m3, mxfp4_scale  # noqa: E402
from farout.quantize.grid import Grid, Steps  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
E4M3 = sorted(set(E4M3[E4M3.isfinite()].tolist()))

INTEGERS = [
    Grid(bits, per, group, rule)
    for bits in (2, 3, 4, 8)
    for per, group in (("tensor", 0), ("channel", 0), ("group", 8), ("input", 6))
    for rule in ("full", "narrow", "asymmetric", "clamped", "free")
]
FLOATS = [Grid(8, kind="float"), Grid(8, "tensor", kind="float"), Grid(4, "group", 8, kind="float")]
FLOATS += [Grid(4, "group", 32, kind="mxfp4"), Grid(4, "group", 16, kind="nvfp4")]


def weights(outputs=12, inputs=96, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    rows = rows * torch.logspace(-3, 2, outputs)[:, None] + torch.linspace(-0.5, 0.5, inputs)
    rows[3], rows[5, :32] = 0, 0
    rows[7] = rows[7].abs()
    return rows.to(dtype)


def levels(grid):
    """All codes of a grid."""
    if grid.kind == "int":
        low, high = grid.ends
        return torch.arange(low, high + 1, dtype=torch.float64)
    return torch.tensor(E4M3 if grid.bits == 8 else [-v for v in E2M1] + E2M1, dtype=torch.float64)


@pytest.mark.parametrize("grid", INTEGERS + FLOATS, ids=str)
def test_each_value_goes_to_the_nearest_of_all(grid):
    x = weights(dtype=torch.float64)
    steps = grid.steps(x)
    zero = 0 if steps.zero is None else steps.zero
    every = (levels(grid) - zero) * steps.scale  # [..., 1] with all levels
    v = grid.view(x)
    nearest = (v[..., None] - every[..., None, :]).abs().amin(-1)
    got = (v - grid.view(grid.rounded(x))).abs()
    assert torch.allclose(got, nearest, rtol=1e-9, atol=1e-12)
    codes = grid.codes(x, steps)
    assert torch.isin(codes, levels(grid)).all()
    assert torch.equal(grid.values(codes, steps, x.shape), grid.rounded(x))
    assert torch.equal(grid.nearest(v, steps), grid.view(grid.rounded(x)))


@pytest.mark.parametrize(
    ("rule", "scale", "zero", "codes", "values"),
    [
        # of [-1.4, 0.3, 0.7, 2.1] in 3 bits
        ("full", 0.6, None, [-2, 0, 1, 3], [-1.2, 0.0, 0.6, 1.8]),
        ("narrow", 0.7, None, [-2, 0, 1, 3], [-1.4, 0.0, 0.7, 2.1]),
        ("asymmetric", 0.5, 3, [0, 4, 4, 7], [-1.5, 0.5, 0.5, 2.0]),
        ("clamped", 0.5, 3, [0, 4, 4, 7], [-1.5, 0.5, 0.5, 2.0]),
        ("free", 0.5, 3, [0, 4, 4, 7], [-1.5, 0.5, 0.5, 2.0]),
    ],
)
def test_closed_form(rule, scale, zero, codes, values):
    x = torch.tensor([[-1.4, 0.3, 0.7, 2.1]], dtype=torch.float64)
    grid = Grid(3, rule=rule)
    steps = grid.steps(x)
    assert float(steps.scale) == pytest.approx(scale)
    assert steps.zero is None if zero is None else float(steps.zero) == zero
    assert grid.codes(x, steps).tolist() == [codes]
    assert grid.rounded(x).flatten().tolist() == pytest.approx(values)


def test_rules_differ_where_all_values_have_one_sign():
    x = torch.tensor([[10.0, 10.5, 11.0, 11.5]])
    assert Grid(2, rule="free").rounded(x).tolist() == x.tolist()  # four codes for four values
    assert Grid(2, rule="free").steps(x).zero.item() == -20
    held = Grid(2, rule="asymmetric").steps(x)  # 0 is within the range
    assert (held.zero.item(), held.scale.item()) == (0, pytest.approx(11.5 / 3))
    cut = Grid(2, rule="clamped").steps(x)  # the range is lost: 3 steps of a half from 0
    assert (cut.zero.item(), cut.scale.item()) == (0, 0.5)
    assert Grid(2, rule="clamped").rounded(x).tolist() == [[1.5] * 4]
    assert Grid(2, rule="clamped").rounded(-x).tolist() == [[-1.5] * 4]


def test_ties_go_to_even():
    steps = Steps(torch.tensor([[1.0]]))
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert Grid(4).codes(x, steps).tolist() == [[0, 2, 2, 0, -2, -2]]
    # x / s is rounded before z is added, as in GPTQ: an odd z does not move ties
    assert Grid(4, rule="asymmetric").codes(x, Steps(steps.scale, torch.tensor([[7.0]]))).tolist() == [
        [7, 9, 9, 7, 5, 5]
    ]


def test_steps_may_not_cover_the_values():
    assert Grid(3).codes(torch.tensor([[-9.0, 9.0]]), Steps(torch.ones(1, 1))).tolist() == [[-4, 3]]
    assert Grid(3, rule="narrow").codes(torch.tensor([[-9.0, 9.0]]), Steps(torch.ones(1, 1))).tolist() == [[-3, 3]]
    asymmetric = Steps(torch.ones(1, 1), torch.full((1, 1), 2.0))
    assert Grid(3, rule="asymmetric").rounded(torch.tensor([[-9.0, 9.0]]), asymmetric).tolist() == [[-2, 5]]


@settings(max_examples=60, deadline=None)
@given(
    arrays("float64", (3, 8), elements=st.floats(-1e4, 1e4, allow_subnormal=False)),
    st.sampled_from([g for g in INTEGERS if g.per in ("tensor", "channel", "group") and g.rule != "clamped"]),
)
def test_the_error_is_at_most_half_a_step(x, grid):
    x = torch.from_numpy(x)
    steps = grid.steps(x)
    error = (grid.view(x) - grid.view(grid.rounded(x))).abs()
    assert (error <= steps.scale / 2 * (1 + 1e-9)).all()


def test_a_narrow_or_full_range_holds_its_ends():
    x = weights(dtype=torch.float64)
    narrow = Grid(4, rule="narrow").rounded(x)
    at = x.abs().argmax(1, keepdim=True)
    assert torch.allclose(narrow.gather(1, at), x.gather(1, at))
    full = Grid(4).rounded(x).gather(1, at)  # 7.5 steps: half a step off
    assert torch.allclose((full - x.gather(1, at)).abs(), x.gather(1, at).abs() / 15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", INTEGERS + FLOATS, ids=str)
def test_degenerate_rows(grid, dtype):
    x = torch.zeros(12, 96, dtype=dtype)
    assert torch.equal(grid.rounded(x), x)  # zeros stay
    assert torch.isfinite(grid.steps(x).scale).all()
    if dtype in (torch.float32, torch.float64):
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the least subnormal number
        x[:, 0] = least
        x[:, 1] = -least
        assert x[0, 0] > 0 and torch.isfinite(grid.rounded(x)).all()


def test_rows_of_zeros_count_as_between_minus_one_and_one():
    x = torch.zeros(1, 4, dtype=torch.float64)
    assert Grid(4).steps(x).scale.item() == pytest.approx(1 / 7.5)
    assert Grid(4, rule="narrow").steps(x).scale.item() == pytest.approx(1 / 7)
    assert Grid(8, kind="float").steps(x).scale.item() == pytest.approx(1 / 448)
    for rule in ("asymmetric", "clamped", "free"):
        steps = Grid(4, rule=rule).steps(x)
        assert (steps.scale.item(), steps.zero.item()) == (pytest.approx(2 / 15), 8)


@pytest.mark.parametrize("rule", ["asymmetric", "clamped", "free"])
@pytest.mark.parametrize("value", [3.7, -3.7, 1e-7])
def test_a_constant_row_is_held(rule, value):
    x = torch.full((1, 8), value)
    assert torch.allclose(Grid(4, rule=rule).rounded(x), x, rtol=1e-6, atol=0)


def test_values_far_from_zero_keep_a_zero_point_that_floats_hold():
    x = torch.tensor([[1000.0, 1000.001]], dtype=torch.float64)
    steps = Grid(4, rule="free").steps(x)
    assert steps.zero.abs().item() <= 1e4
    assert (Grid(4, rule="free").rounded(x) - x).abs().max() <= steps.scale.item() / 2


# ---- small floats


def test_e2m1_is_the_nearest_and_ties_are_even():
    x = torch.linspace(-8, 8, 6401, dtype=torch.float64)
    values = torch.tensor([-v for v in E2M1] + E2M1, dtype=torch.float64)
    assert torch.allclose((e2m1(x) - x).abs(), (x[:, None] - values).abs().amin(1))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    assert e2m1(ties).tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert e2m1(-ties).tolist() == [0, -1, -1, -2, -2, -4, -4]


def test_e4m3_is_the_nearest_and_saturates():
    values = torch.tensor(E4M3, dtype=torch.float64)
    assert torch.equal(e4m3(values), values)
    x = torch.cat([torch.linspace(-500, 500, 4001, dtype=torch.float64), torch.logspace(-4, 3, 4001).double()])
    assert torch.allclose((e4m3(x) - x).abs(), (x[:, None] - values).abs().amin(1))
    middle = (values[1:] + values[:-1]) / 2
    even = torch.where(torch.arange(len(middle)) % 2 == 0, values[:-1], values[1:])  # the ends, +-448, are even
    assert torch.equal(e4m3(middle), even)
    assert e4m3(torch.tensor([1e30, -torch.inf])).tolist() == [448, -448]


def test_mxfp4_steps_are_powers_of_two_that_bump_at_seven_eighths():
    most = torch.tensor([1.0, 1.7499, 1.75, 1.9999, 2.0, 6.99, 7.0, 3e-39, 0.0, 3e38], dtype=torch.float64)
    expected = [0.25, 0.25, 0.5, 0.5, 0.5, 1.0, 2.0, 2.0**-126, 0.125, 2.0**126]
    assert mxfp4_scale(most).tolist() == expected
    x = weights(32, 64)
    scale = Grid(4, "group", 32, kind="mxfp4").steps(x).scale
    assert torch.equal(torch.frexp(scale)[0], torch.full_like(scale, 0.5))
    most = x.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
    assert (most / scale < 7).all() and (most / scale)[most > 0].min() >= 3.5  # at least half of the range is used


def test_nvfp4_steps_are_e4m3_over_one_global_scale():
    x = weights(32, 64)
    grid = Grid(4, "group", 16, kind="nvfp4")
    steps = grid.steps(x)
    assert steps.global_scale.item() == pytest.approx(448 * 6 / x.abs().max().item())
    local = steps.scale * steps.global_scale
    assert torch.allclose(e4m3(local), local, rtol=1e-6)
    assert e4m3(local).max() == 448
    most = grid.view(x).abs().amax(-1, keepdim=True)
    assert torch.equal(e4m3(local), torch.where(most > 0, e4m3(most / 6 * steps.global_scale).clamp(min=2**-9), 0.125))
    # a part of the weights takes the global scale of all
    part = grid.steps(x[:, :16], steps.global_scale)
    assert torch.equal(part.scale, steps.scale[:, :1])


def test_static_nvfp4_inputs_share_the_global_scale_of_calibration():
    grid = Grid(4, "group", 16, kind="nvfp4", dynamic=False)
    low, high = torch.tensor([[-3.0]]), torch.tensor([[10.0]])
    static = grid.steps_between(low, high)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected = grid.rounded(x, grid.steps(x, torch.tensor(448 * 6 / 10.0)))
    assert torch.allclose(grid.rounded(x, static), expected)
    assert not torch.equal(grid.rounded(x), expected)  # from its own greatest value, otherwise
    assert torch.equal(grid.rounded(x, Steps(static.scale)), grid.rounded(x, static))


# ---- layouts


@pytest.mark.parametrize("grid", INTEGERS + FLOATS, ids=str)
def test_a_view_is_undone_and_columns_take_the_same_steps(grid):
    x = weights()
    assert torch.equal(grid.unview(grid.view(x), x.shape), x)
    steps, rounded = grid.steps(x), grid.rounded(x)
    for j in (0, 17, 95):
        assert torch.equal(grid.nearest(x[:, j : j + 1], grid.column(steps, j)), rounded[:, j : j + 1])


def test_what_shares_a_step():
    x = weights(12, 24, torch.float64)
    one = Grid(4)
    assert torch.equal(Grid(4, "tensor").rounded(x), one.rounded(x.reshape(1, -1)).reshape(12, 24))
    assert torch.equal(Grid(4, "group", 8).rounded(x), one.rounded(x.reshape(-1, 8)).reshape(12, 24))
    columns = one.rounded(x.T.reshape(-1, 6)).reshape(24, 12).T  # 6 outputs of a column
    assert torch.equal(Grid(4, "input", 6).rounded(x), columns)
    batch = torch.randn(2, 3, 24, dtype=torch.float64)
    assert torch.equal(Grid(4, "token").rounded(batch), one.rounded(batch.reshape(6, 24)).reshape(2, 3, 24))
    assert Grid(4, "group", 8).steps(batch).scale.shape == (2, 3, 3, 1)
    assert Grid(4, "input", 6).steps(x).scale.shape == (24, 2, 1)


def test_groups_that_do_not_divide():
    with pytest.raises(BadInput, match=r"groups of 10 do not divide 24 values; Grid.fitted\(24\)"):
        Grid(4, "group", 10).steps(weights(12, 24))
    assert Grid(4, "group", 10).fitted(24) == Grid(4, "group", 8)
    assert Grid(4, "input", 128).fitted(100) == Grid(4, "input", 100)
    assert Grid(4, "group", 128).fitted(97).group == 97 and Grid(4, "group", 32).fitted(97).group == 1
    assert Grid(4).fitted(97) == Grid(4)
    with pytest.raises(BadInput, match="mxfp4 has groups of 32, which do not divide 48"):
        Grid(4, "group", 32, kind="mxfp4").fitted(48)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", [Grid(4), Grid(4, "group", 8, "asymmetric"), *FLOATS], ids=str)
def test_half_precision_is_rounded_in_float32(grid, dtype):
    x = weights(dtype=dtype)
    assert torch.equal(grid.rounded(x), grid.rounded(x.float()).to(dtype))
    assert grid.steps(x).scale.dtype == torch.float32


@pytest.mark.parametrize("grid", INTEGERS + FLOATS, ids=str)
def test_nothing_is_written_into_what_is_given(grid):
    x = weights()
    before, steps = x.clone(), grid.steps(x)
    kept = steps.scale.clone()
    grid.rounded(x, steps, through=True)
    grid.nearest(grid.view(x), steps)
    assert torch.equal(x, before) and torch.equal(steps.scale, kept)


# ---- gradients


@pytest.mark.parametrize("grid", [Grid(3, rule=rule) for rule in ("full", "narrow", "asymmetric", "free")], ids=str)
def test_gradients_pass_straight_through(grid):
    x = (3 * torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    scale = torch.tensor([[0.7], [0.5], [1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    zero = None if grid.symmetric else torch.tensor([[3.0], [2], [7], [-1]], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = grid.rounded(x, Steps(scale, zero), through=True)
    assert torch.equal(out, grid.rounded(x.detach(), Steps(scale.detach(), None if zero is None else zero.detach())))
    (out * weight).sum().backward()
    with torch.no_grad():
        z = 0 if zero is None else zero
        free = torch.round(x / scale) + z
        low, high = grid.ends
        inside = (free >= low) & (free <= high)
        assert 0.2 < inside.double().mean() < 1
        of_scale = torch.where(inside, torch.round(x / scale) - x / scale, free.clamp(low, high) - z)
        assert torch.allclose(x.grad, weight * inside)
        assert torch.allclose(scale.grad, (weight * of_scale).sum(1, keepdim=True))
        if zero is not None:
            assert torch.allclose(zero.grad, -(weight * ~inside * scale).sum(1, keepdim=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_pass_through_floats(bits):
    grid = Grid(bits, kind="float")
    x = torch.tensor([[0.3, 1.3, -5.2, 900.0, -900.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([[1.1]], dtype=torch.float64, requires_grad=True)
    grid.rounded(x, Steps(scale), through=True).sum().backward()
    assert x.grad.tolist() == [[1, 1, 1, 0, 0]]
    with torch.no_grad():
        inside = x[:, :3]
        assert scale.grad.item() == pytest.approx(((grid.rounded(inside, Steps(scale)) - inside) / scale).sum().item())


def test_a_learned_range_gets_a_gradient_through_its_scale():
    x = torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = Grid(3)
    share = torch.full((6, 1), 0.6, dtype=torch.float64, requires_grad=True)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    grid.rounded(x, grid.steps_between(share * low, share * high), through=True).sum().backward()
    with torch.no_grad():
        most = torch.maximum(-low, high)
        scale = share * most / 3.5
        free = torch.round(x / scale)
        of_scale = torch.where((free >= -4) & (free <= 3), free - x / scale, free.clamp(-4, 3)).sum(1, keepdim=True)
        assert torch.allclose(share.grad, of_scale * most / 3.5)


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_gradients_reach_inputs_of_block_formats(kind):
    grid = Grid(4, "group", 32 if kind == "mxfp4" else 16, kind=kind)
    x = torch.randn(2, 32, requires_grad=True)
    grid.rounded(x, grid.steps(x.detach()), through=True).sum().backward()
    steps = grid.steps(x.detach())
    inside = (grid.view(x.detach()) / steps.scale).abs() <= 6
    assert torch.equal(grid.view(x.grad), inside.float())


# ---- compressed-tensors as referee


def ct_rounded(x, grid, inputs=False, global_scale=None):
    """Round by compressed-tensors: values, codes, scales and zero points."""
    lib = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle import forward
    from compressed_tensors.quantization.utils import calculate_qparams

    args = lib.QuantizationArgs(**grid.compressed_tensors(inputs))
    v = x.reshape(1, -1) if grid.per == "tensor" else x.unflatten(-1, (-1, grid.group)) if grid.group else x
    grouped = bool(grid.group)
    low, high = v.amin(-1, keepdim=not grouped), v.amax(-1, keepdim=not grouped)
    scale, zero = calculate_qparams(low, high, args, global_scale=global_scale)
    values = forward.fake_quantize(x.clone(), scale, zero, args, global_scale)
    codes = forward.quantize(x.clone(), scale, zero, args, global_scale=global_scale)
    again = forward.dequantize(codes, scale, zero, args, global_scale=global_scale)
    assert torch.allclose(again, values)
    return values, codes, scale, zero


CT = [
    *(
        Grid(bits, per, group, rule)
        for bits in (3, 4, 8)
        for rule in ("full", "asymmetric")
        for per, group in (("tensor", 0), ("channel", 0), ("group", 32))
    ),
    Grid(8, kind="float"),
    Grid(8, "tensor", kind="float"),
    Grid(8, "group", 32, kind="float"),
    Grid(4, kind="float"),
    Grid(4, "group", 32, kind="mxfp4"),
]


def agree(x, grid, values, codes, scale, zero, steps):
    """Check that both rounded the same, but for ties that the addition of a zero point makes."""
    some = (grid.view(x) != 0).any(-1, keepdim=True)  # groups of zeros have a step of their own in either
    live = grid.unview(some.expand(grid.view(x).shape), x.shape)
    assert torch.allclose(scale.flatten()[some.flatten()], steps.scale[some], rtol=1e-6)
    assert not values[~live].any() and not grid.rounded(x)[~live].any()
    ours = grid.unview(grid.codes(x, steps), x.shape)
    if grid.symmetric:
        assert torch.equal(codes[live].to(ours.dtype), ours[live])
        assert torch.allclose(values, grid.rounded(x), rtol=1e-6)
        return
    half = 2 ** (grid.bits - 1)
    assert torch.equal(zero.float().flatten()[some.flatten()] + half, steps.zero[some])
    moved = (codes + half - ours).abs() * live
    assert moved.max() <= 1 and (moved > 0).float().mean() < 1e-3
    fraction = grid.unview(grid.view(x) / steps.scale, x.shape)
    assert ((fraction - fraction.floor() - 0.5).abs()[moved > 0] < 1e-4).all()
    assert torch.allclose(values[moved == 0], grid.rounded(x)[moved == 0], rtol=1e-6)


@pytest.mark.parametrize("grid", CT, ids=str)
def test_weights_agree_with_compressed_tensors(grid):
    x = weights(64, 128)
    agree(x, grid, *ct_rounded(x, grid), grid.steps(x))


@pytest.mark.parametrize(
    "grid",
    [
        Grid(8, "token"),
        Grid(4, "token"),
        Grid(8, "token", rule="asymmetric"),
        Grid(8, "token", kind="float"),
        Grid(8, "tensor"),
        Grid(8, "group", 32),
        Grid(4, "group", 32, kind="mxfp4"),
    ],
    ids=str,
)
def test_dynamic_inputs_agree_with_compressed_tensors(grid):
    lib = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle import forward

    x = weights(64, 128, seed=4).reshape(4, 16, 128)
    args = lib.QuantizationArgs(**grid.compressed_tensors(inputs=True))
    assert args.dynamic is True
    steps = grid.steps(x)
    scale, zero = forward.compute_dynamic_scales_and_zp(x, args, None)
    values = forward.fake_quantize(x.clone(), scale, zero, args)
    codes = forward.quantize(x.clone(), scale, zero, args)
    agree(x, grid, values, codes, scale, zero, steps)


def test_nvfp4_agrees_with_compressed_tensors():
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization.utils import generate_gparam

    x = weights(64, 128)
    grid = Grid(4, "group", 16, kind="nvfp4")
    global_scale = generate_gparam(x.min(), x.max())
    values, codes, scale, _ = ct_rounded(x, grid, global_scale=global_scale)
    steps = grid.steps(x)
    assert torch.allclose(steps.global_scale, global_scale.squeeze(), rtol=1e-6)
    assert torch.equal(e4m3((steps.scale * steps.global_scale).squeeze(-1)), scale.float())
    assert torch.allclose(values, grid.rounded(x), rtol=1e-6)
    assert torch.equal(codes, grid.unview(grid.codes(x, steps), x.shape))


@pytest.mark.parametrize("grid", [grid for grid in INTEGERS + FLOATS if grid.per != "input"], ids=str)
def test_compressed_tensors_accepts_the_arguments(grid):
    lib = pytest.importorskip("compressed_tensors.quantization")
    for inputs in (False, True):
        args = lib.QuantizationArgs(**grid.compressed_tensors(inputs))
        assert (args.num_bits, args.group_size or 0) == (grid.bits, grid.group)


def test_compressed_tensors_presets_are_the_named_schemes():
    lib = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    for name, preset in {
        "w8a8": "W8A8",
        "w4a16g128": "W4A16",
        "w4a16g128-asym": "W4A16_ASYM",
        "w4a8g128": "W4A8",
        "fp8": "FP8_DYNAMIC",
        "fp8-tensor": "FP8",
        "mxfp4": "MXFP4",
        "nvfp4": "NVFP4",
        "mxfp4a16": "MXFP4A16",
        "nvfp4a16": "NVFP4A16",
    }.items():
        scheme, theirs = Scheme.parse(name), lib.preset_name_to_scheme(preset, ["Linear"])
        weight, inputs = theirs.weights, theirs.input_activations
        assert lib.QuantizationArgs(**scheme.weights.compressed_tensors()) == weight, name
        assert (scheme.inputs is None) == (inputs is None)
        if scheme.inputs:
            ours = lib.QuantizationArgs(**scheme.inputs.compressed_tensors(inputs=True))
            assert ours.model_copy(update={"observer": inputs.observer}) == inputs, name


def test_the_format_has_no_steps_along_outputs():
    with pytest.raises(BadInput, match="no steps along the outputs"):
        Grid(4, "input", 8).compressed_tensors()


# ---- plain data and names


def test_bits_per_weight():
    shape = (64, 256)
    assert Grid(4).bits_per_weight(shape) == 4 + 16 / 256
    assert Grid(4, "group", 128).bits_per_weight(shape) == 4 + 16 / 128
    assert Grid(3, "group", 32, "asymmetric").bits_per_weight(shape) == 3 + 19 / 32
    assert Grid(4, "input", 16).bits_per_weight(shape) == 5
    assert Grid(8, "tensor").bits_per_weight(shape) == 8 + 16 / (64 * 256)
    assert Grid(4, "group", 32, kind="mxfp4").bits_per_weight(shape) == 4.25
    assert Grid(4, "group", 16, kind="nvfp4").bits_per_weight(shape) == 4.5 + 32 / (64 * 256)


@pytest.mark.parametrize("grid", INTEGERS + FLOATS, ids=str)
def test_a_grid_is_plain_data(grid):
    assert Grid.from_dict(grid.as_dict()) == grid
    scheme = Scheme(grid, Grid(8, "token"))
    assert Scheme.from_dict(scheme.as_dict()) == scheme
    assert Scheme.parse(str(scheme)) == scheme
    assert Scheme.parse(str(Scheme(grid))) == Scheme(grid)


@pytest.mark.parametrize(
    ("name", "weights", "inputs"),
    [
        ("w4a16g128", Grid(4, "group", 128), None),
        ("w4a16", Grid(4), None),
        ("w8a8", Grid(8), Grid(8, "token")),
        ("w8a8-tensor", Grid(8), Grid(8, "tensor", dynamic=False)),
        ("w4a4", Grid(4), Grid(4, "token")),
        ("w3a16g128-asym", Grid(3, "group", 128, "asymmetric"), None),
        ("w4a8g64-clamped-tensor", Grid(4, "group", 64, "clamped"), Grid(8, "tensor", dynamic=False)),
        ("fp8", Grid(8, kind="float"), Grid(8, "token", kind="float")),
        ("fp8-tensor", Grid(8, "tensor", kind="float"), Grid(8, "tensor", kind="float", dynamic=False)),
        ("mxfp4", Grid(4, "group", 32, kind="mxfp4"), Grid(4, "group", 32, kind="mxfp4")),
        ("nvfp4", Grid(4, "group", 16, kind="nvfp4"), Grid(4, "group", 16, kind="nvfp4", dynamic=False)),
        ("mxfp4a16", Grid(4, "group", 32, kind="mxfp4"), None),
    ],
)
def test_names_of_schemes(name, weights, inputs):
    scheme = Scheme.parse(name)
    assert (scheme.weights, scheme.inputs) == (weights, inputs)
    assert str(scheme) == name
    assert Scheme.parse(f" {name.upper()} ") == scheme


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("w4a16g", UnknownName, "no scheme is called 'w4a16g'; nearest: 'w4a16"),
        ("int4", UnknownName, "no scheme is called 'int4'"),
        ("nvfp5", UnknownName, "nearest: 'nvfp4'"),
        ("w9a16", BadInput, "weights have 2 to 8 bits"),
        ("w4a12", BadInput, "inputs 2 to 8, or 16"),
        ("w4a16g0", BadInput, "at least one value"),
        ("w4a16-tensor", BadInput, "leaves inputs at 16 bits"),
        ("{w4", BadInput, "read as JSON"),
        ("{}", BadInput, "a scheme has 'weights' and 'inputs'"),
        ('{"weights": {"bits": 4, "pre": "channel"}}', BadInput, "no 'pre'"),
        ('{"weights": {"per": "channel"}}', BadInput, "needs 'bits'"),
    ],
)
def test_names_that_are_none(name, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")):
        Scheme.parse(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 1}, "2 to 8 bits, not 1"),
        ({"bits": 9}, "2 to 8 bits, not 9"),
        ({"per": "row"}, "per is 'tensor', 'channel'"),
        ({"rule": "sym"}, "rule is 'full', 'narrow'"),
        ({"kind": "fp8"}, "kind is 'int', 'float'"),
        ({"group": 32}, "per 'channel' has no group of 32"),
        ({"per": "group"}, "'group' and 'input' need one above 0"),
        ({"kind": "float", "bits": 6}, "4 or 8 bits, not 6"),
        ({"kind": "float", "rule": "asymmetric"}, "its rule is 'full' and not 'asymmetric'"),
        ({"kind": "mxfp4", "per": "group", "group": 16}, "mxfp4 has 4 bits in groups of 32"),
        ({"kind": "nvfp4"}, "nvfp4 has 4 bits in groups of 16"),
    ],
)
def test_grids_that_are_none(change, says):
    with pytest.raises(BadInput, match=says):
        replace(Grid(4), **change)
