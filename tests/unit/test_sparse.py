"""Convolutions on active sites, against the dense ones of torch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from farout.errors import BadInput  # noqa: E402
from farout.image._sparse import (  # noqa: E402
    FEWEST,
    LARGEST,
    ActiveNorm,
    Sites,
    StridedConv,
    SubmanifoldConv,
    pooled,
    rulebook,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_sites(side=8, maps=3, share=0.4, seed=0):
    """Return sites, and the same as a mask (maps, side, side)."""
    mask = torch.rand(maps, side, side, generator=torch.Generator().manual_seed(seed)) < share
    found = mask.nonzero()
    return Sites.of(found[:, 1:], found[:, 0], maps)[0], mask


def dense(x_NC, sites, side):
    """Lay rows out on their planes; zeros elsewhere."""
    plane = x_NC.new_zeros(sites.maps, x_NC.shape[1], side, side)
    u, v = sites.places.T
    plane[sites.sample, :, u, v] = x_NC
    return plane


def rows_of(plane, sites):
    u, v = sites.places.T
    return plane[sites.sample, :, u, v]


def kernel(weight, size):
    """Turn weights (offsets, inputs, outputs) into those of conv2d."""
    return weight.reshape(size, size, *weight.shape[1:]).permute(3, 2, 0, 1)


def naive_rules(sites, size):
    rows = {(int(m), *map(int, place)): i for i, (m, place) in enumerate(zip(sites.sample, sites.places))}
    half = size // 2
    found = []
    for du in range(-half, half + 1):
        for dv in range(-half, half + 1):
            near = [(i, rows.get((m, u + du, v + dv))) for (m, u, v), i in rows.items()]
            found.append({(i, j) for i, j in near if j is not None})
    return found


def test_sites_are_sorted_each_once_with_the_number_of_their_points():
    places = torch.tensor([[3, 9], [0, 1], [3, 9], [3, 2], [0, 1], [0, 1]])
    sites, counts = Sites.of(places, torch.tensor([1, 1, 1, 0, 0, 1]), maps=4)
    assert sites.sample.tolist() == [0, 0, 1, 1] and sites.maps == 4
    assert sites.places.tolist() == [[0, 1], [3, 2], [0, 1], [3, 9]]
    assert counts.tolist() == [1, 1, 2, 2]
    assert bool((sites.keys.diff() > 0).all())


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_rulebook_lists_all_pairs_of_neighbours(size):
    sites, _ = some_sites(seed=1)
    rules = rulebook(sites, size)
    assert [set(zip(out.tolist(), into.tolist())) for out, into in rules] == naive_rules(sites, size)
    assert all(len(out.unique()) == len(out) and len(into.unique()) == len(into) for out, into in rules)


def test_edges_of_planes_have_no_neighbours_beyond():
    last = LARGEST - 1
    places = torch.tensor([[0, 0], [0, last], [1, 0], [last, last], [0, 0], [last, 0], [0, last]])
    sites, _ = Sites.of(places, torch.tensor([0, 0, 0, 0, 1, 1, 1]), maps=2)
    for size in (3, 15):
        assert [set(zip(o.tolist(), i.tolist())) for o, i in rulebook(sites, size)] == naive_rules(sites, size)


@pytest.mark.parametrize("size", [3, 5])
def test_on_a_full_plane_it_is_the_dense_convolution(size):
    sites, mask = some_sites(side=6, share=2.0)
    assert bool(mask.all())
    conv = SubmanifoldConv(3, 4, size).double()
    x_NC = drawn(len(sites.keys), 3)
    expected = F.conv2d(dense(x_NC, sites, 6), kernel(conv.weight, size), padding=size // 2)
    torch.testing.assert_close(conv(x_NC, rulebook(sites, size)), rows_of(expected, sites))


def test_elsewhere_it_is_the_dense_convolution_at_active_sites():
    sites, mask = some_sites()
    conv = SubmanifoldConv(3, 4).double()
    x_NC = drawn(len(sites.keys), 3)
    y_NC = conv(x_NC, rulebook(sites))
    expected = F.conv2d(dense(x_NC, sites, 8), kernel(conv.weight, 3), padding=1)
    torch.testing.assert_close(dense(y_NC, sites, 8), expected * mask[:, None])
    assert float((expected.detach() * ~mask[:, None]).abs().max()) > 0.1  # a dense one leaves the sites
    assert y_NC.shape == (len(sites.keys), 4)  # and this one stays on them


def test_the_order_of_points_does_not_matter():
    places = torch.randint(0, 30, (200, 2), generator=torch.Generator().manual_seed(3))
    sample = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(4))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    (one, n), (other, m) = Sites.of(places, sample, 4), Sites.of(places[order], sample[order], 4)
    assert torch.equal(one.keys, other.keys) and torch.equal(n, m)


def test_a_shift_of_the_points_shifts_the_output():
    places = torch.randint(0, 20, (60, 2), generator=torch.Generator().manual_seed(3))
    sample = torch.zeros(60, dtype=torch.int64)
    conv, halve = SubmanifoldConv(1, 4), StridedConv(4, 2)
    found = []
    for shift in (0, 6, 7):
        sites, counts = Sites.of(places + shift, sample, 1)
        coarse, parent, slot = sites.coarser()
        y_NC = conv(counts[:, None].float(), rulebook(sites))
        found.append((sites, y_NC, coarse, halve(y_NC, parent, slot, coarse)))
    (sites, y_NC, coarse, z_NC), even, odd = found
    assert torch.equal(even[0].places, sites.places + 6) and torch.equal(odd[0].places, sites.places + 7)
    assert torch.equal(y_NC, even[1]) and torch.equal(y_NC, odd[1])
    assert torch.equal(even[2].places, coarse.places + 3) and torch.equal(z_NC, even[3])
    assert len(odd[2].keys) != len(coarse.keys)  # by less than the stride it is another plane


def test_halving_is_the_dense_strided_convolution():
    sites, mask = some_sites(seed=2)
    conv = StridedConv(3, 4).double()
    x_NC = drawn(len(sites.keys), 3)
    coarse, parent, slot = sites.coarser()
    expected = F.conv2d(dense(x_NC, sites, 8), kernel(conv.weight, 2), stride=2)
    torch.testing.assert_close(dense(conv(x_NC, parent, slot, coarse), coarse, 4), expected)
    active = F.max_pool2d(mask[:, None].float(), 2)[:, 0] > 0
    assert torch.equal(dense(torch.ones(len(coarse.keys), 1), coarse, 4)[:, 0] > 0, active)


def test_halving_with_a_kernel_of_ones_counts_points():
    places = torch.randint(0, 64, (500, 2), generator=torch.Generator().manual_seed(0))
    sample = torch.arange(500) % 3
    sites, counts = Sites.of(places, sample, 3)
    n_N1 = counts[:, None].double()
    ones = StridedConv(1, 1).double()
    torch.nn.init.ones_(ones.weight)
    for level in range(1, 7):
        coarse, parent, slot = sites.coarser()
        summed = pooled(n_N1, parent, len(coarse.keys), "sum")
        sites, n_N1 = coarse, ones(n_N1, parent, slot, coarse)
        assert torch.equal(n_N1, summed)
        for place, m, n in zip(sites.places, sites.sample, n_N1[:, 0]):
            assert int(((places >> level == place).all(1) & (sample == m)).sum()) == n
    assert n_N1[:, 0].tolist() == torch.bincount(sample).tolist()


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
def test_pooling_sees_active_rows_alone(how):
    x_NC, group = drawn(50, 3) - 5, torch.arange(50) % 7
    found = pooled(x_NC, group, 9, how)
    for k in range(7):
        rows = x_NC[group == k]
        torch.testing.assert_close(found[k], {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.amax(0)}[how])
    assert not found[7:].any()


def test_norms_of_few_rows_take_the_running_statistics():
    norm, few, many = ActiveNorm(3), drawn(FEWEST - 1, 3).float(), drawn(200, 3).float() * 4 + 1
    torch.testing.assert_close(norm(few), few / (1 + norm.eps) ** 0.5)
    assert int(norm.num_batches_tracked) == 0 and not norm.running_mean.any()
    torch.testing.assert_close(norm(many), torch.nn.BatchNorm1d(3)(many))
    assert int(norm.num_batches_tracked) == 1 and bool(norm.running_mean.any())
    assert norm(few[:0]).shape == (0, 3)
    torch.testing.assert_close(norm(few), norm.eval()(few))


def test_gradients_are_right_and_reach_all_weights():
    sites, _ = some_sites(side=4, maps=2, share=0.6)
    rules, (coarse, parent, slot) = rulebook(sites), sites.coarser()
    conv, halve = SubmanifoldConv(2, 3).double(), StridedConv(3, 2).double()
    x_NC = drawn(len(sites.keys), 2).requires_grad_()

    def passed(x_NC, first, second):
        y_NC = torch.func.functional_call(conv, {"weight": first}, (x_NC, rules))
        z_NC = torch.func.functional_call(halve, {"weight": second}, (y_NC.tanh(), parent, slot, coarse))
        return torch.cat([pooled(z_NC, coarse.sample, 2, how) for how in ("sum", "mean", "max")])

    assert torch.autograd.gradcheck(passed, (x_NC, conv.weight, halve.weight))
    passed(x_NC, conv.weight, halve.weight).square().sum().backward()
    assert bool((conv.weight.grad.abs().amax((1, 2)) > 0).all()) and bool(
        (halve.weight.grad.abs().sum((1, 2)) > 0).all()
    )


def test_no_sites_at_all_pass():
    nothing = torch.empty(0, 2, dtype=torch.int64)
    sites, counts = Sites.of(nothing, nothing[:, 0], 2)
    coarse, parent, slot = sites.coarser()
    rules = rulebook(sites)
    assert len(rules) == 9 and not any(len(out) for out, _ in rules)
    y_NC = SubmanifoldConv(1, 3)(counts[:, None].float(), rules)
    assert StridedConv(3, 5)(y_NC, parent, slot, coarse).shape == (0, 5)
    assert pooled(y_NC, sites.sample, 2, "max").tolist() == [[0.0] * 3] * 2


def test_weights_are_drawn_at_he_scale():
    torch.manual_seed(0)
    assert float(SubmanifoldConv(64, 64).weight.detach().std()) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert float(StridedConv(64, 64).weight.detach().std()) == pytest.approx(np.sqrt(2 / (4 * 64)), rel=0.02)


@pytest.mark.parametrize("place", [-1, LARGEST])
def test_places_beyond_the_plane_are_refused(place):
    with pytest.raises(BadInput, match=f"from 0 to {LARGEST - 1}"):
        Sites.of(torch.tensor([[0, place]]), torch.tensor([0]), 1)
