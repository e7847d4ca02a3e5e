"""The training loop: seeds, early stopping, weights in and out."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.errors import BadInput  # noqa: E402
from farout.kit.training import arrays_of, device_named, fill, seeded, train  # noqa: E402


def line(seed=0):
    with seeded(seed):
        return torch.nn.Linear(3, 1, dtype=torch.float64)


def problem(n=200, noise=0.0):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = X @ [1.0, -2.0, 0.5] + 0.25 + noise * rng.normal(size=n)
    return torch.from_numpy(np.column_stack([X, y]))


def squared(module):
    return lambda rows: (module(rows[:, :3])[:, 0] - rows[:, 3]) ** 2


def test_it_finds_the_least_squares_line():
    module, rows = line(), problem()
    train(module, squared(module), rows, epochs=300, batch_size=50, learning_rate=0.05, seed=0)
    assert module.weight.detach().numpy() == pytest.approx(np.array([[1.0, -2.0, 0.5]]), abs=1e-6)
    assert module.bias.item() == pytest.approx(0.25, abs=1e-6)


def test_a_seed_is_a_run_and_leaves_the_callers_draws_alone():
    def run(seed):
        module = line()
        return train(module, squared(module), problem(), epochs=3, batch_size=20, learning_rate=0.1, seed=seed)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert run(1) == run(1) != run(2)
    assert torch.rand(1) == expected


def test_early_stopping_keeps_the_best_weights():
    module, rows = line(), problem(noise=1.0)
    history = train(
        module, squared(module), rows, epochs=200, batch_size=10, learning_rate=0.2, seed=3, held_out=0.25, patience=4
    )
    assert len(history) < 200 and len(history) == int(np.argmin(history)) + 1 + 4
    held = rows[torch.randperm(200, generator=torch.Generator().manual_seed(3))[:50]]
    assert squared(module)(held).mean().item() == pytest.approx(min(history), rel=1e-12)


def test_after_step_projects():
    module = line()
    train(
        module, squared(module), problem(), epochs=20, batch_size=50, learning_rate=0.1, seed=0,
        after_step=lambda: module.weight.data.clamp_(min=0),
    )  # fmt: skip
    assert module.weight.min().item() == 0.0


def test_weights_travel_as_arrays():
    module = line()
    twin = fill(line(seed=9), arrays_of(module))
    assert torch.equal(twin.weight, module.weight) and not twin.training


def test_a_loss_that_explodes_is_said():
    module = line()
    with pytest.raises(BadInput, match="after epoch 1"):
        train(
            module, lambda r: squared(module)(r) * np.inf, problem(), epochs=2, batch_size=50, learning_rate=1, seed=0
        )


def test_a_device_that_is_not_there_is_said():
    with pytest.raises(BadInput, match="'nowhere'"):
        device_named("nowhere")
