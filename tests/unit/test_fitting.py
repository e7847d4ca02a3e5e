"""The training loop for classifiers: SGD by hand, schedules, seeds, batches for ever."""

import math
from itertools import chain

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.kit.augment import crop_and_flip  # noqa: E402
from farout.kit.fitting import Cycle, cross_entropy_step, fit, predict, rate_at  # noqa: E402
from farout.kit.nets import SmallCNN, mlp  # noqa: E402


def problem(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0).long()


def weights(net):
    return torch.cat([weight.detach().flatten() for weight in net.parameters()])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, True)])
def test_steps_are_those_of_sgd_written_out(momentum, nesterov):
    x, y = problem(20)
    net, hand = mlp([4, 2], seed=1).double(), mlp([4, 2], seed=1).double()
    x = x.double()
    how = {"epochs": 3, "batch_size": 7, "learning_rate": 0.2, "weight_decay": 0.01}
    history = fit(net, cross_entropy_step, (x, y), momentum=momentum, nesterov=nesterov, seed=5, **how)
    order, at = torch.Generator().manual_seed(5), 0
    speed = {name: torch.zeros_like(weight) for name, weight in hand.named_parameters()}
    means = []
    for _ in range(3):
        total = 0.0
        for rows in torch.randperm(20, generator=order).split(7):
            loss = F.cross_entropy(hand(x[rows]), y[rows])
            total += loss.item() * len(rows)
            hand.zero_grad()
            loss.backward()
            rate = 0.2 * 0.5 * (1 + math.cos(math.pi * at / 9))
            with torch.no_grad():
                for name, weight in hand.named_parameters():
                    slope = weight.grad + 0.01 * weight
                    speed[name] = momentum * speed[name] + slope
                    weight -= rate * (slope + momentum * speed[name] if nesterov else speed[name])
            at += 1
        means.append(total / 20)
    assert torch.allclose(weights(net), weights(hand), atol=1e-12)
    assert [epoch["loss"] for epoch in history] == pytest.approx(means, abs=1e-6)


def test_rates_rise_and_fall_as_the_schedule_says():
    assert [rate_at(step, 10) for step in range(10)] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    )
    warm = [rate_at(step, 10, warmup=4) for step in range(10)]
    assert warm[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and warm[7] == pytest.approx(0.5) and min(warm[4:]) == warm[-1] > 0
    assert {rate_at(step, 10, schedule="constant") for step in range(10)} == {1.0}
    assert rate_at(2, 3, warmup=3) == 1.0  # nothing but warm-up


def test_the_loop_warms_up_by_epochs():
    """Without momentum, one step's change over its slope is its rate."""
    net, x = torch.nn.Linear(1, 1, bias=False), torch.ones(8, 1)
    seen = []

    def step(model, x):
        seen.append(model.weight.item())
        return {"pull": -model(x).mean()}

    plain = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5}
    fit(net, step, (x,), epochs=4, batch_size=4, warmup=2, schedule="constant", **plain)
    rates = [later - now for now, later in zip(seen, [*seen[1:], net.weight.item()])]
    assert rates == pytest.approx([0.5 * share for share in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1)], abs=1e-6)


def test_a_seed_is_a_run_and_the_callers_draws_are_not_disturbed():
    def run(seed, augment=crop_and_flip):
        net = SmallCNN(2, channels=1, width=2, seed=0)
        x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(1))

        def step(model, x, y):
            return {"loss": F.cross_entropy(model(x + 0.1 * torch.randn(x.shape)), y)}

        history = fit(net, step, (x, torch.arange(30) % 2), epochs=2, batch_size=8, seed=seed, augment=augment)
        return history, weights(net)

    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    history, trained = run(4)
    assert torch.rand(1) == expected
    assert run(4)[0] == history and torch.equal(run(4)[1], trained)
    assert run(5)[0] != history and run(4, augment=None)[0] != history


def test_losses_are_added_and_told_apart():
    x, y = problem()

    def two(model, x, y):
        return {"fit": F.cross_entropy(model(x), y), "size": 0.1 * model.linear.weight.square().sum()}

    def one(model, x, y):
        return {"loss": sum(two(model, x, y).values())}

    apart, together = mlp([4, 5, 2], seed=0), mlp([4, 5, 2], seed=0)
    told = fit(apart, two, (x, y), epochs=2, batch_size=20)
    whole = fit(together, one, (x, y), epochs=2, batch_size=20)
    assert torch.allclose(weights(apart), weights(together), atol=1e-6)
    for epoch, total in zip(told, whole):
        assert epoch["fit"] + epoch["size"] == pytest.approx(total["loss"], abs=1e-6)


def test_each_row_is_met_once_an_epoch_with_its_own_label():
    x, met, modes = torch.arange(10.0)[:, None], [], []

    def step(model, x, y, z):
        met.append(x[:, 0].tolist())
        modes.append(model.training)
        assert torch.equal(x[:, 0], y.float()) and torch.equal(y * 2, z)
        return {"loss": model(x).mean()}

    net = mlp([1, 1], seed=0).eval()
    done = []
    fit(net, step, (x, torch.arange(10), 2 * torch.arange(10)), epochs=2, batch_size=4, progress=done.append)
    assert [len(batch) for batch in met] == [4, 4, 2] * 2 and done == [0.5, 1.0]
    first, second = [*chain(*met[:3])], [*chain(*met[3:])]
    assert sorted(first) == sorted(second) == x[:, 0].tolist() and first != second
    assert all(modes) and not net.training


def test_frozen_weights_stay():
    x, y = problem()
    net = mlp([4, 5, 2], seed=0)
    for weight in net.linear1.parameters():
        weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    fit(net, cross_entropy_step, (x, y), epochs=1)
    changed = {name for name, weight in net.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"linear.weight", "linear.bias"}


def test_half_precision_learns_the_same_within_its_precision():
    x, y = problem()
    runs = [
        fit(mlp([4, 8, 2], seed=0), cross_entropy_step, (x, y), epochs=10, batch_size=20, amp=amp)
        for amp in (False, True)
    ]
    full, half = ([epoch["loss"] for epoch in history] for history in runs)
    assert half == pytest.approx(full, rel=0.03) and half != full


def test_weights_are_stored_as_before_so_that_they_can_be_saved():
    net = SmallCNN(2, channels=3, width=2, seed=0)
    seen = []

    def step(model, x, y):
        seen.append(model.layer2[0].weight.is_contiguous())
        return cross_entropy_step(model, x, y)

    fit(net, step, (torch.rand(4, 3, 8, 8), torch.arange(4) % 2), epochs=1)
    assert seen == [False] and all(weight.is_contiguous() for weight in net.parameters())


def test_a_cycle_covers_everything_once_a_round():
    batches = Cycle(torch.arange(7), 10 * torch.arange(7), batch_size=3, seed=0)
    drawn = [next(batches) for _ in range(14)]
    assert all(len(a) == 3 and torch.equal(10 * a, b) for a, b in drawn)
    order = torch.cat([a for a, _ in drawn])
    rounds = order.view(6, 7)
    assert all(sorted(one.tolist()) == list(range(7)) for one in rounds)
    assert len({tuple(one.tolist()) for one in rounds}) > 1
    again = Cycle(torch.arange(7), batch_size=3, seed=0)
    assert torch.equal(torch.cat([next(again)[0] for _ in range(14)]), order)
    assert not torch.equal(torch.cat([next(Cycle(torch.arange(7), batch_size=7, seed=1))[0]]), order[:7])
    assert len(next(Cycle(torch.arange(2), batch_size=5, seed=0))[0]) == 5


def test_prediction_is_in_evaluation_mode_and_leaves_the_mode_alone():
    net = SmallCNN(3, channels=1, width=2, seed=0).train()
    x = torch.rand(5, 1, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = predict(net, x, batch_size=2)
    assert net.training and not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.allclose(found, net.eval()(x), atol=1e-6)


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda net, x: fit(net, cross_entropy_step, (x, x[:3]), epochs=1), BadInput, r"lengths are \[60, 3\]"),
        (lambda net, x: fit(net, cross_entropy_step, (), epochs=1), BadInput, r"\[\]"),
        (lambda net, x: fit(net, cross_entropy_step, (x[:0],), epochs=1), BadInput, r"\[0\]"),
        (lambda net, x: fit(net, lambda m, x: {"l": m(x).sum() * 1e40}, (x,), epochs=1), BadInput, "loss 'l' is"),
        (lambda net, x: fit(net, cross_entropy_step, (x, x), epochs=1, schedule="cosin"), UnknownName, "'cosine'"),
        (lambda net, x: Cycle(x, x[:3], batch_size=2), BadInput, r"\[60, 3\]"),
        (lambda net, x: Cycle(x, batch_size=0), BadInput, "'batch_size' is 0"),
    ],
)
def test_what_cannot_be_trained_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act(mlp([4, 2], seed=0), problem()[0])
