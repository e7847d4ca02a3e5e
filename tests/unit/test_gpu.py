"""What a GPU computes is what the CPU computes, from the same seed; skipped where there is no GPU."""

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from farout.events import APE  # noqa: E402
from farout.kit.training import seeded, train  # noqa: E402
from farout.table import APRE, AutoOD  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def rows(n=400, seed=0):
    X = np.random.default_rng(seed).normal(size=(n, 5))
    X[:, 4] = X[:, 0] * X[:, 1]
    return X


def test_training_takes_the_same_course():
    def history(device):
        with seeded(0):
            module = torch.nn.Linear(4, 1, dtype=torch.float64).to(device)
        data = torch.from_numpy(rows()).to(device)
        loss = lambda batch: (module(batch[:, :4])[:, 0] - batch[:, 4]) ** 2  # noqa: E731
        return train(module, loss, data, epochs=20, batch_size=50, learning_rate=0.01, seed=1, held_out=0.2, patience=5)

    assert history("cuda") == pytest.approx(history("cpu"), rel=1e-9)


@pytest.mark.parametrize("net", ["AE", "PAE"])
def test_apre(net):
    scores = [
        APRE(net=net, epochs=5, random_state=0, device=device).fit(rows()).outlier_score(rows(50, 1))
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-2, atol=1e-2)


def test_autood():
    found = [AutoOD(trials=10, epochs=3, random_state=0, device=device).fit(rows()) for device in ("cpu", "cuda")]
    rewards = [[reward for _, reward in one.children_] for one in found]
    assert rewards[1] == pytest.approx(rewards[0], abs=0.02)
    assert [child for child, _ in found[0].children_] == [child for child, _ in found[1].children_]


def test_ape():
    rng = np.random.default_rng(0)
    team = rng.integers(3, size=3000)
    columns = {name: [f"{name}{t}{i}" for t, i in zip(team, rng.integers(4, size=3000))] for name in ("user", "host")}
    events = pl.DataFrame(columns)
    scores = [
        APE(epochs=3, random_state=0, device=device).fit(events).outlier_score(events[:200])
        for device in ("cpu", "cuda")
    ]
    assert np.corrcoef(scores)[0, 1] > 0.999
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.05, atol=0.05)
