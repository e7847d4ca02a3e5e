"""NAP: patterns by counting, bounds and programs against all activation regions, proofs, searches, and the score."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.optimize import linprog  # noqa: E402
from torch import nn  # noqa: E402

from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.kit.nets import mlp  # noqa: E402
from farout.ood._bounds import Region, ReluNet, bounds, greatest  # noqa: E402
from farout.ood._nap_proofs import branch, falsify, prove  # noqa: E402
from farout.ood._patterns import mine  # noqa: E402
from farout.ood._programs import Program, _safe_minimum  # noqa: E402
from farout.ood.nap_specs import (  # noqa: E402
    NAP,
    Pattern,
    class_patterns,
    class_robust,
    counterexamples,
    largest_radius,
    never,
    pattern_facts,
    robust,
    small_pattern,
    unambiguous,
)
from farout.ood.views import Views, extract  # noqa: E402


def net_of(seed: int, sizes: tuple[int, ...] = (2, 3, 2, 3)) -> ReluNet:
    """A network whose numbers are large enough for several activation regions in the unit box."""
    drawn = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o, i, generator=drawn, dtype=torch.float64) * 2 for i, o in pairwise(sizes)]
    return ReluNet(weights, [torch.randn(len(w), generator=drawn, dtype=torch.float64) for w in weights])


def pattern_of(net: ReluNet, active: tuple[int, ...] = (), inactive: tuple[int, ...] = ()) -> Pattern:
    masks = [torch.zeros(net.neurons, dtype=torch.bool) for _ in range(2)]
    masks[0][list(active)], masks[1][list(inactive)] = True, True
    return Pattern(*masks)


def box_of(net: ReluNet, pattern: Pattern, low: float = 0.0, high: float = 1.0) -> Region:
    ends = torch.full((2, net.weights[0].shape[1]), low, dtype=torch.float64)
    ends[1] = high
    return Region(ends[0], ends[1], pattern)


def random_pattern(net: ReluNet, region: Region, seed: int, share: float = 0.4) -> Pattern:
    """States of some neurons of an input of the box, so that something follows it."""
    drawn = torch.Generator().manual_seed(seed)
    x = region.lower + (region.upper - region.lower) * torch.rand(1, len(region.lower), generator=drawn)
    states, chosen = net.states(x)[0], torch.rand(net.neurons, generator=drawn) < share
    return Pattern(states & chosen, ~states & chosen)


def enumerated(net: ReluNet, region: Region, row: torch.Tensor) -> float:
    """The greatest logits @ row: a linear program for each of all ways in which ReLUs can be on and off."""
    best = -np.inf
    for states in product((True, False), repeat=net.neurons):
        on = torch.tensor(states)
        if not region.pattern.follows(on[None]).all():
            continue
        gives, shift = torch.eye(len(region.lower), dtype=torch.float64), torch.zeros_like(region.lower)
        rows, rest = [], []
        for weight, bias, mask in zip(net.weights, net.biases, on.split(net.widths)):
            reads, add = weight @ gives, weight @ shift + bias
            sign = torch.where(mask, -1.0, 1.0).double()
            rows.append(sign[:, None] * reads)
            rest.append(-sign * add)
            gives, shift = mask[:, None] * reads, mask * add
        goal, constant = row @ net.weights[-1] @ gives, float(row @ (net.weights[-1] @ shift + net.biases[-1]))
        limits = torch.stack([region.lower, region.upper], 1).numpy()
        solved = linprog(-goal.numpy(), torch.cat(rows).numpy(), torch.cat(rest).numpy(), bounds=limits)
        if solved.status == 0:
            best = max(best, constant - solved.fun)
    return best


def test_patterns_are_mined_by_counting():
    states = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 30)
    for delta in (0.6, 0.75, 0.9, 0.95, 1.0):
        pattern = class_patterns_by_loop(states, delta)
        found = mine(states, delta)
        assert found.active.tolist() == pattern[0] and found.inactive.tolist() == pattern[1]


def class_patterns_by_loop(states, delta):
    shares = [(round(sum(column), 9), len(column)) for column in states.T.tolist()]
    return (
        [on >= round(delta * n, 6) for on, n in shares],
        [n - on >= round(delta * n, 6) for on, n in shares],
    )


def test_nineteen_of_twenty_are_a_share_of_95_percent():
    states = torch.ones(20, 2, dtype=torch.bool)
    states[0] = torch.tensor([False, True])
    states[:19, 1] = False
    pattern = mine(states, 0.95)
    assert pattern.active.tolist() == [True, False] and pattern.inactive.tolist() == [False, True]


def test_smaller_delta_puts_more_neurons_in_and_recalls_fewer_inputs():
    net, drawn = net_of(0, (5, 12, 12, 3)), torch.Generator().manual_seed(1)
    x, fresh = torch.rand(200, 5, generator=drawn).double(), torch.rand(300, 5, generator=drawn).double()
    labels, of_fresh = net.run(x)[1].argmax(1), net.run(fresh)[1].argmax(1)
    before, recall = None, []
    for delta in (1.0, 0.99, 0.95, 0.9, 0.75):
        patterns = class_patterns(model_of(net), x, labels, delta)
        if delta == 1.0:
            for c, pattern in patterns.items():
                assert pattern.follows(net.states(x[labels == c])).all()
        for c, pattern in patterns.items():
            assert before is None or before[c].subsumes(pattern)
        states = net.states(fresh)
        facts = pattern_facts(patterns, states, of_fresh)
        follows = {c: pattern.follows(states) for c, pattern in patterns.items()}
        for c, found in follows.items():
            assert facts.recall[c] == pytest.approx(float(found[of_fresh == c].double().mean()))
            assert facts.leakage[c] == pytest.approx(float(found[of_fresh != c].double().mean()))
            assert facts.size[c] == patterns[c].size / 24
        times = sum(found.long() for found in follows.values())
        assert facts.coverage == pytest.approx(float((times >= 1).double().mean()))
        assert facts.ambiguous == pytest.approx(float((times >= 2).double().mean()))
        recall.append(facts.means()["recall"])
        before = patterns
    assert recall == sorted(recall, reverse=True) and recall[0] > recall[-1]


def model_of(net: ReluNet) -> nn.Sequential:
    sizes = [net.weights[0].shape[1], *(len(bias) for bias in net.biases)]
    model = mlp(sizes, seed=0).double()
    maps = [child for child in model if isinstance(child, nn.Linear)]
    with torch.no_grad():
        for one, weight, bias in zip(maps, net.weights, net.biases):
            one.weight.copy_(weight)
            one.bias.copy_(bias)
    return model


def test_patterns_are_mined_from_inputs_that_are_predicted_rightly():
    net = net_of(0)
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)).double()
    right = net.run(x)[1].argmax(1)
    c = int(right.mode().values)
    labels = torch.full((100,), c)  # most inputs of other classes carry this label too
    (label,) = class_patterns(model_of(net), x, labels, 1.0)
    found, expected = class_patterns(model_of(net), x, labels, 1.0)[c], mine(net.states(x[right == c]), 1.0)
    assert label == c and found.subsumes(expected) and expected.subsumes(found)
    assert not found.subsumes(mine(net.states(x), 1.0)) or found.size > mine(net.states(x), 1.0).size


def test_a_patterns_relations():
    general = Pattern(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
    special = Pattern(torch.tensor([True, False, True]), torch.tensor([False, True, False]))
    other = Pattern(torch.tensor([False, True, False]), torch.tensor([True, False, False]))
    assert general.subsumes(special) and not special.subsumes(general) and general.subsumes(general)
    assert general.conflicts(other) == 2 and general.conflicts(special) == 0
    assert general.joined(special).size == 3 and Pattern.empty(3).size == 0
    states = torch.tensor([[True, False, False], [False, True, True]])
    assert special.violated(states).tolist() == [1, 2] and general.follows(states).tolist() == [True, False]
    with pytest.raises(BadInput, match="neuron 0 is both active and inactive"):
        general.joined(other)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_all_that_follow_and_a_pattern_never_enlarges_them(seed):
    net = net_of(seed, (3, 6, 6, 5, 3))
    plain = box_of(net, Pattern.empty(net.neurons))
    region = Region(plain.lower, plain.upper, random_pattern(net, plain, seed))
    x = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x[region.holds(net, x)]
    z, logits = net.run(x)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for (least, most), (active, inactive) in zip(bounds(net, region), region.masks(net)):
        assert (least[active] >= 0).all() and (most[inactive] <= 0).all()
    loose, wide, tight = bounds(net, region, linear=False), bounds(net, plain, linear=False), bounds(net, region)
    within = bounds(net, region, bounds(net, plain))
    for found in (loose, tight, within):
        for (least, most), seen in zip(found, z.split(net.widths, dim=1)):
            assert (least <= seen).all() and (seen <= most).all()
        assert (logits @ rows.T <= greatest(net, region, found, rows)).all()
    for (least, most), (low, high), (lower, upper) in zip(tight, loose, wide):
        assert (low <= least).all() and (most <= high).all() and (lower <= low).all() and (high <= upper).all()
    for (least, most), (low, high) in zip(within, bounds(net, plain)):
        assert (low <= least).all() and (most <= high).all()


def test_linear_bounds_are_exact_where_all_neurons_are_settled_and_intervals_are_not():
    weights = [torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])]
    net = ReluNet([w.double() for w in weights], [torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double()])
    region = box_of(net, Pattern.empty(2))
    # Both neurons are on: the logits are 2 x + 1 and 2 y - 1.
    found = greatest(net, region, bounds(net, region), torch.eye(2).double())
    assert found.tolist() == pytest.approx([3.0, 1.0], abs=1e-6)
    by_hand = net.weights[0].clamp(min=0) @ region.upper + net.weights[0].clamp(max=0) @ region.lower + net.biases[0]
    assert bounds(net, region, linear=False)[0][1].tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)


def test_a_triangle_is_bounded_by_its_chord_and_the_nearer_of_two_lines():
    # One neuron with z in [-1, 3]; the logit is +-relu(z).
    net = ReluNet([torch.tensor([[4.0]]).double(), torch.tensor([[1.0]]).double()], [torch.tensor([-1.0]).double()] * 2)
    net = ReluNet(net.weights, [net.biases[0], torch.zeros(1).double()])
    region = box_of(net, Pattern.empty(1))
    found = greatest(net, region, bounds(net, region), torch.tensor([[1.0], [-1.0]]).double())
    assert found.tolist() == pytest.approx([3.0, 1.0], abs=1e-6)  # below relu(z) lies z, since 3 > 1
    off = ReluNet(net.weights, [torch.tensor([-3.0]).double(), net.biases[1]])
    found = greatest(off, region, bounds(off, region), torch.tensor([[1.0], [-1.0]]).double())
    assert found.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)  # and here 0, since 1 < 3


@pytest.mark.parametrize("seed", range(6))
def test_the_mixed_integer_optimum_is_that_of_all_activation_regions(seed):
    for sizes in ((2, 2, 2), (2, 3, 2, 2)):
        net = net_of(seed, sizes)
        plain = box_of(net, Pattern.empty(net.neurons))
        for pattern in (plain.pattern, random_pattern(net, plain, seed)):
            region = Region(plain.lower, plain.upper, pattern)
            row = torch.tensor([-1.0, 1.0]).double()
            program = Program(net, region, bounds(net, region), row)
            most, solution = program.exact(10)
            assert most == pytest.approx(enumerated(net, region, row), abs=1e-5)
            assert float(net.run(solution[None, :2])[1] @ row) == pytest.approx(most, abs=1e-4)
            depth, _, _ = program.deepest()
            assert pattern.size or depth >= most - 1e-6  # with no pattern the depth is a bound of the goal


def test_a_bound_by_weak_duality_is_the_optimum_and_never_above_it():
    drawn = np.random.default_rng(0)
    for _ in range(5):
        A, b, cost = drawn.normal(size=(6, 4)), drawn.random(6) + 0.5, drawn.normal(size=4)
        low, high = np.full(4, -1.0), np.full(4, 2.0)
        expected = linprog(cost, A, b, bounds=list(zip(low, high))).fun
        bound, solution, multipliers = _safe_minimum(cost, A, b, low, high)
        assert expected - 1e-6 < bound <= expected + 1e-12
        assert (A @ solution <= b + 1e-7).all() and (multipliers >= 0).all()
    bound, solution, _ = _safe_minimum(cost, np.ones((1, 4)), np.array([-9.0]), low, high)
    assert solution is None and bound == -np.inf


def test_proofs_agree_with_all_activation_regions():
    seen = set()
    for seed in (0, 1, 5, 8):
        net = net_of(seed)
        x = torch.rand(50, 2, generator=torch.Generator().manual_seed(seed)).double()
        label = int(net.run(x[:1])[1].argmax())
        others = [c for c in range(3) if c != label]
        rows = torch.eye(3).double()[others] - torch.eye(3).double()[label]
        states = net.states(x[:1])[0]
        chosen = torch.rand(net.neurons, generator=torch.Generator().manual_seed(seed)) < 0.4
        for high, pattern in product((0.2, 0.7), (Pattern.empty(5), Pattern(states & chosen, ~states & chosen))):
            region = Region((x[0] - high).clamp(min=0), (x[0] + high).clamp(max=1), pattern)
            most = max(enumerated(net, region, row) for row in rows)
            for solver in ("branch", "milp"):
                found = prove(net, region, label, others, x, solver=solver, seconds=20)
                if abs(most) > 1e-4:
                    assert found.status == ("proved" if most < 0 else "falsified"), (seed, high, most)
                if found.counterexample is not None:
                    one = found.counterexample[None]
                    assert region.holds(net, one).all() and int(net.run(one)[1].argmax()) != label
                seen.add((found.status, found.by))
    expected = {("proved", by) for by in ("bounds", "branch", "milp")} | {("falsified", "gradient steps")}
    assert expected <= seen


def test_branching_alone_proves_finds_counterexamples_and_stops_at_its_limits():
    x = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for seed, row, expected in ((1, (1.0, 0.0, -1.0), "proved"), (16, (0.0, -1.0, 1.0), "falsified")):
        net, goal = net_of(seed, (3, 5, 4, 3)), torch.tensor(row).double()
        region = box_of(net, random_pattern(net, box_of(net, Pattern.empty(9)), seed, 0.2))
        status, found, used = branch(net, region, goal, 1000, 20)
        assert status == expected and used > 3
        if found is None:
            inside = x[region.holds(net, x)]
            assert len(inside) and (net.run(inside)[1] @ goal < 0).all()
        else:
            assert region.holds(net, found[None]).all() and float(net.run(found[None])[1] @ goal) >= 0
        assert branch(net, region, goal, used - 1, 20)[::2] == ("unknown", used - 1)
        assert branch(net, region, goal, 1000, 0.0)[0] == "unknown"


def toy() -> ReluNet:
    """Class 0 where |x| <= .5 x .. of two inputs: logit 1 is 2 relu(x) + 2 relu(y) - 1, logit 0 is 0."""
    weights = [torch.eye(2).double(), torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double()]
    return ReluNet(weights, [torch.zeros(2).double(), torch.tensor([0.0, -1.0]).double()])


def test_a_ball_is_proved_where_the_pattern_is_followed_and_falsified_elsewhere():
    net, x = toy(), torch.tensor([0.1, -0.1]).double()
    off = pattern_of(net, inactive=(1,))
    how = {"box": (-1.0, 1.0)}
    plain = robust(model_of(net), x, 0, 0.35, **how)
    assert plain.status == "falsified" and not off.follows(net.states(plain.counterexample[None]))
    assert robust(model_of(net), x, 0, 0.35, off, **how).status == "proved"
    assert robust(model_of(net), x, 0, 0.45, off, **how).status == "falsified"
    both = pattern_of(net, inactive=(0, 1))
    assert class_robust(model_of(net), both, 0, x[None] - 1, **how).status == "proved"
    assert class_robust(model_of(net), off, 0, x[None], **how).status == "falsified"
    assert never(model_of(net), off, 0, 1, x[None], **how).status == "falsified"


def test_only_the_named_class_is_asked_about():
    net = toy()
    # A third class that wins everywhere.
    net = ReluNet(
        [net.weights[0], torch.cat([net.weights[1], torch.zeros(1, 2).double()])],
        [net.biases[0], torch.tensor([0.0, -1.0, 1.0]).double()],
    )
    both, x = pattern_of(net, inactive=(0, 1)), torch.tensor([[-0.5, -0.5]]).double()
    assert never(model_of(net), both, 0, 1, x, box=(-1.0, 1.0)).status == "proved"
    assert never(model_of(net), both, 0, 2, x, box=(-1.0, 1.0)).status == "falsified"
    assert class_robust(model_of(net), both, 0, x, box=(-1.0, 1.0)).status == "falsified"


def test_what_no_input_follows_is_never_called_proved():
    net = toy()
    x = torch.tensor([[0.5, 0.5]]).double()
    none = pattern_of(net, inactive=(0,))
    assert robust(model_of(net), x[0], 0, 0.1, none).status == "empty"
    # No neuron is ruled out by itself: x + y > 1.5 and x - y > 0.9 have no common point of the box.
    weights = [torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), net.weights[1]]
    thin = ReluNet(weights, [torch.tensor([-1.5, -0.9]).double(), net.biases[1]])
    found = class_robust(model_of(thin), pattern_of(thin, active=(0, 1)), 1, x)
    assert found.status == "unknown" and "no input is known" in found.by
    assert branch(thin, box_of(thin, pattern_of(thin, active=(0, 1))), None, 100, 10)[0] == "proved"


def test_non_ambiguity_is_symmetric_and_right():
    statuses = set()
    for seed in range(8):
        net = net_of(seed)
        plain = box_of(net, Pattern.empty(net.neurons))
        first, second = (random_pattern(net, plain, 10 * seed + i, 0.6) for i in range(2))
        one, two = unambiguous(model_of(net), first, second), unambiguous(model_of(net), second, first)
        assert one.status == two.status
        if one.status == "falsified":
            states = net.states(one.counterexample[None])
            assert first.follows(states).all() and second.follows(states).all()
        elif not first.conflicts(second):
            region = box_of(net, first.joined(second))
            assert enumerated(net, region, torch.zeros(3).double()) == -np.inf
        statuses.add((one.status, first.conflicts(second) > 0))
    assert {("proved", True), ("falsified", False)} <= statuses
    weights = [torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), toy().weights[1]]
    thin = ReluNet(weights, [torch.tensor([-1.5, -0.9]).double(), toy().biases[1]])
    sides = pattern_of(thin, active=(0,)), pattern_of(thin, active=(1,))
    assert unambiguous(model_of(thin), *sides).status == unambiguous(model_of(thin), *sides[::-1]).status == "proved"


def test_gradient_steps_stay_in_the_ball_and_follow_the_pattern():
    net, x = toy(), torch.tensor([0.1, 0.1]).double()
    found = counterexamples(model_of(net), x, 0, 0.5)
    assert len(found) == 5 and ((found - x).abs() <= 0.5 + 1e-12).all() and (found >= 0).all()
    assert (net.run(found)[1][:, 1] >= net.run(found)[1][:, 0]).all()
    assert torch.equal(found, counterexamples(model_of(net), x, 0, 0.5))
    # Where y must be off, x alone has to grow past .5; a step against the pattern would lower the loss.
    off = pattern_of(net, inactive=(1,))
    found = counterexamples(model_of(net), x, 0, 0.5, off, box=(-1.0, 1.0))
    assert len(found) and (found[:, 0] >= 0.5).all() and (found[:, 1] <= 0).all()
    assert len(counterexamples(model_of(net), x, 0, 0.39, off, box=(-1.0, 1.0))) == 0
    # x + y > 1.28 with x up to .3: both grow alike, so that x must be held back until y is there.
    weights = [torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])]
    held = ReluNet(
        [w.double() for w in weights], [torch.tensor([0, 0, -0.3]).double(), torch.tensor([0, -1.28]).double()]
    )
    region = box_of(held, pattern_of(held, inactive=(2,)))
    found = falsify(held, region, 0, [1], torch.zeros(2).double())
    assert len(found) and region.holds(held, found).all()
    # With no class anything of the region will do.
    on = box_of(net, pattern_of(net, active=(0,), inactive=(1,)), -1.0)
    any_of = falsify(net, on, None, [], torch.tensor([-0.9, 0.9]).double())
    assert len(any_of) and on.holds(net, any_of).all()


def test_the_largest_radius_is_the_distance_to_the_border():
    net, x = toy(), torch.tensor([0.1, 0.1]).double()
    plain = largest_radius(model_of(net), x, 0, box=(-1.0, 1.0), precision=1.02)
    assert 0.15 / 1.03 < plain.proved < 0.15 <= plain.falsified < 0.155  # 2 (.1 + r) + 2 (.1 + r) = 1
    x = torch.tensor([0.1, -0.1]).double()
    followed = largest_radius(model_of(net), x, 0, pattern_of(net, inactive=(1,)), box=(-1.0, 1.0), precision=1.02)
    assert 0.4 / 1.03 < followed.proved < 0.4 <= followed.falsified < 0.41  # 2 (.1 + r) = 1
    whole = largest_radius(model_of(net), x - 0.5, 0, pattern_of(net, inactive=(0, 1)), box=(-1.0, 1.0))
    assert whole.proved == 2.0 and whole.falsified == float("inf")
    near = largest_radius(model_of(net), torch.tensor([0.25, 0.2499]).double(), 0)
    assert near.proved == 0 and near.falsified < 1e-3
    with pytest.raises(BadInput, match="not predicted to be of class 1"):
        largest_radius(model_of(net), x, 1)
    with pytest.raises(BadInput, match="violates 1 of 1 neurons"):
        largest_radius(model_of(net), x, 0, pattern_of(net, active=(1,)))


def test_a_small_pattern_is_enough_and_part_of_what_may_be_used():
    net, x = toy(), torch.tensor([0.1, -0.1]).double()
    wide = ReluNet(  # with three more neurons that change nothing
        [torch.cat([net.weights[0]] * 2 + [net.weights[0][:1]]), torch.cat([net.weights[1], torch.zeros(2, 3)], 1)],
        [torch.zeros(5).double(), net.biases[1]],
    )
    states = wide.states(x[None])[0]
    within = Pattern(states, ~states)
    how = {"box": (-1.0, 1.0), "at_once": 1}
    pattern, answer = small_pattern(model_of(wide), x, 0, 0.35, within, **how)
    assert answer.status == "proved" and pattern.subsumes(within) and 0 < pattern.size < 5
    assert robust(model_of(wide), x, 0, 0.35, pattern, box=(-1.0, 1.0)).status == "proved"
    pattern, answer = small_pattern(model_of(wide), x, 0, 0.1, within, **how)
    assert answer.status == "proved" and pattern.size == 0
    pattern, answer = small_pattern(model_of(wide), x, 0, 0.6, within, **how)
    assert answer.status == "falsified" and within.follows(wide.states(answer.counterexample[None])).all()
    with pytest.raises(BadInput, match="violates"):
        small_pattern(model_of(wide), -x, 0, 0.1, within)
    with pytest.raises(BadInput, match="at least one neuron"):
        small_pattern(model_of(wide), x, 0, 0.1, within, at_once=0)


def test_the_score_is_the_share_of_the_predicted_classs_pattern_that_is_violated():
    net, drawn = net_of(3, (4, 10, 8, 3)), torch.Generator().manual_seed(0)
    model = model_of(net)
    x, fresh = (torch.rand(n, 4, generator=drawn).double() for n in (300, 200))
    labels = net.run(x)[1].argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    views, seen = (extract(model, rows, needs=("logits", "stages")) for rows in (x, fresh * 4 - 2))
    score = NAP(delta=0.9).fit(views, labels).score(seen)
    patterns = class_patterns(model, x, labels, 0.9)
    states, predicted = net.states(fresh * 4 - 2), net.run(fresh * 4 - 2)[1].argmax(1)
    for i, c in enumerate(predicted.tolist()):
        expected = int(patterns[c].violated(states[i : i + 1])) / patterns[c].size if c in patterns else 1.0
        assert float(score[i]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(score[5:9], NAP(0.9).fit(views, labels).score(seen[5:9]))  # by itself
    everything = NAP(1.0).fit(views).score(views)
    assert (
        (everything == 0).all() and (NAP(1.0).fit(views, labels).score(views) > 0).any() == bool((everything > 0).any())
    ) or (NAP(1.0).fit(views, labels).score(views[labels == views.logits.argmax(1)]) == 0).all()


def test_what_is_predicted_to_be_of_a_class_without_a_pattern_is_farthest_out():
    logits = torch.eye(3)[[0, 0, 1, 2]]
    views = Views(logits, stages={"relu": torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])})
    found = NAP().fit(views, torch.tensor([0, 0, 1, 1]))
    assert found.score(views).tolist() == [0, 0, 0, 1]
    restored = NAP().restore(found.state())
    assert restored.score(views).tolist() == [0, 0, 0, 1]


def test_bad_input():
    views = Views(torch.eye(2), stages={"relu": torch.ones(2, 3)})
    with pytest.raises(BadInput, match="no stages"):
        NAP().fit(Views(torch.eye(2)))
    with pytest.raises(BadInput, match="none of 2 inputs"):
        NAP().fit(views, torch.tensor([1, 0]))
    with pytest.raises(BadInput, match="3 neurons, and the stages have 4"):
        NAP().fit(views).score(Views(torch.eye(2), stages={"relu": torch.ones(2, 4)}))
    with pytest.raises(NotFitted):
        NAP().score(views)
    for delta in (0.5, 1.1):
        with pytest.raises(BadInput, match=r"delta is above 0\.5"):
            NAP(delta).fit(views)
    with pytest.raises(BadInput, match="no inputs"):
        mine(torch.zeros(0, 3, dtype=torch.bool), 1.0)
    with pytest.raises(BadInput, match="two masks"):
        Pattern(torch.zeros(3), torch.zeros(3))
    with pytest.raises(BadInput, match="some must be, not all"):
        pattern_facts({0: Pattern.empty(3)}, torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4))
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)),
                  nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))):  # fmt: skip
        with pytest.raises(BadInput, match=r"nn.Sequential of Linear, ReLU, Linear"):
            ReluNet.of(model)
    x, model = torch.zeros(2), model_of(toy())
    with pytest.raises(BadInput, match="eps is -1"):
        robust(model, x, 0, -1.0)
    with pytest.raises(BadInput, match="none is 2"):
        robust(model, x, 2, 0.1)
    with pytest.raises(UnknownName, match="solver"):
        robust(model, x, 0, 0.1, solver="mip")
    bare = ReluNet.of(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)))
    assert bare.biases[0].tolist() == [0, 0, 0] and bare.weights[0].dtype == torch.float64
