"""AutoOD: the space, the children's losses, the controller, curiosity, and the search as a whole."""

import threading
from itertools import product

import joblib
import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from sklearn.decomposition import PCA  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

import farout  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.table import AutoOD  # noqa: E402
from farout.table import _autood_children as children  # noqa: E402
from farout.table import _autood_controller as control  # noqa: E402
from farout.table import _autood_curiosity as curious  # noqa: E402
from farout.table._autood_net import _k_means, distance, energy, sharpened, soft_assignment  # noqa: E402
from farout.table._autood_space import Configuration, Space, kind_at  # noqa: E402
from farout.table._autood_trial import Trial, auroc, labelled_trial, made_outliers, made_trial  # noqa: E402

SMALL = Space(depths=(1, 2), widths=(3, 8), norms=("none", "batch"), activations=("tanh", "relu"))
DEFINITIONS = Space().definitions


def rng(seed=0):
    return np.random.default_rng(seed)


def every(space):
    """All strings of a space, the slow and obvious way."""
    strings = []
    for depth in space.depths:
        kinds = [space.definitions, space.distances, (depth,)]
        layer = list(product(space.widths, space.norms, space.activations))
        for definition, measure, _ in product(*kinds):
            strings += [space.encode(Configuration(definition, measure, ls)) for ls in product(layer, repeat=depth)]
    return strings


# the space


@pytest.mark.parametrize("space", [Space(), SMALL], ids=["whole", "small"])
def test_tokens_and_configurations_are_the_same_thing(space):
    drawn = [space.draw(rng(seed)) for seed in range(300)]
    for tokens in drawn:
        configuration = space.decode(tokens)
        assert space.encode(configuration) == tokens
        assert space.decode(space.encode(configuration)) == configuration
        assert len(set(space.slots(tokens))) == len(tokens) == 3 + 3 * len(configuration.layers)
    assert {len(space.decode(tokens).layers) for tokens in drawn} == set(space.depths)


def test_the_size_is_the_number_of_strings_and_slots_tell_them_apart():
    strings = every(SMALL)
    assert SMALL.size == len(strings) == len(set(strings)) == 12 * (8 + 64)
    assert len({tuple(SMALL.slots(tokens)) for tokens in strings}) == SMALL.size
    assert Space().size > 1e10


def test_draws_are_even():
    drawn = [SMALL.decode(SMALL.draw(rng(seed))) for seed in range(2000)]
    shares = [np.mean([c.definition == word for c in drawn]) for word in DEFINITIONS]
    assert shares == pytest.approx([0.25] * 4, abs=0.04)


def test_what_is_no_configuration_is_refused():
    good = SMALL.encode(Configuration("density", "l2", ((8, "none", "tanh"),)))
    for tokens, words in (((0,), "1 tokens"), (good[:-1], "5 tokens"), ((*good[:1], 0, *good[2:]), "position 1")):
        with pytest.raises(BadInput, match=words):
            SMALL.decode(tokens)
    with pytest.raises(UnknownName, match="'sine'"):
        SMALL.encode(Configuration("density", "l2", ((8, "none", "sine"),)))


# losses and scores


def test_distances_are_the_norms():
    a, b = rng(0).normal(size=(2, 5, 3))
    expected = {"l1": np.abs(a - b).sum(1), "l2": ((a - b) ** 2).sum(1), "l21": np.linalg.norm(a - b, axis=1)}
    for kind, value in expected.items():
        np.testing.assert_allclose(distance(kind, torch.tensor(a), torch.tensor(b)), value, rtol=1e-14)


def test_the_energy_is_minus_the_log_density_of_a_mixture():
    from scipy.stats import multivariate_normal

    x, means, variances = rng(0).normal(size=(7, 3)), rng(1).normal(size=(2, 3)), rng(2).uniform(0.5, 2, (2, 3))
    shares = np.array([0.3, 0.7])
    density = sum(s * multivariate_normal(m, np.diag(v)).pdf(x) for s, m, v in zip(shares, means, variances))
    np.testing.assert_allclose(energy(*map(torch.tensor, (x, shares, means, variances))), -np.log(density), rtol=1e-12)


def test_clusters_are_assigned_and_sharpened_as_in_deep_embedded_clustering():
    d = rng(0).uniform(0, 4, (6, 3))
    q = np.array([[1 / (1 + v) for v in row] for row in d])
    q = np.array([row / row.sum() for row in q])
    p = np.array([[v**2 / q[:, j].sum() for j, v in enumerate(row)] for row in q])
    p = np.array([row / row.sum() for row in p])
    np.testing.assert_allclose(soft_assignment(torch.tensor(d)), q, rtol=1e-12)
    np.testing.assert_allclose(sharpened(torch.tensor(q)), p, rtol=1e-9)


def child_of(definition, layers=((4, "none", "tanh"), (3, "none", "tanh")), measure="l2", columns=5, seed=0):
    configuration = Configuration(definition, measure, layers)
    return children._child(configuration, children.shared_weights(definition, Space(), columns, seed), columns, "cpu")


def by_hand(child, x):
    """Embedding and reconstruction of a network of two tanh layers, in numpy."""
    w = {name: value.detach().numpy() for name, value in child.named_parameters()}
    bias = lambda name: w.get(name, 0.0)  # noqa: E731
    h = np.tanh(x @ w["encoder.0.weight"].T + bias("encoder.0.bias"))
    z = np.tanh(h @ w["encoder.1.weight"].T + bias("encoder.1.bias"))
    back = np.tanh(z @ w["decoder.1.weight"].T + w["decoder.1.bias"]) @ w["decoder.0.weight"].T + w["decoder.0.bias"]
    return z, back, w


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_losses_and_scores_are_those_of_the_definition(definition):
    x = rng(3).normal(size=(40, 5))
    child = child_of(definition)
    x_BC = torch.tensor(x)
    child.begin(x_BC, seed=0)
    z, back, w = by_hand(child, x)
    error = ((x - back) ** 2).sum(axis=1)
    if definition == "reconstruction":
        loss, score = error, error
    elif definition == "centroid":
        np.testing.assert_allclose(child.centre, z.mean(axis=0), rtol=1e-12)
        score = ((z - z.mean(axis=0)) ** 2).sum(axis=1)
        loss = score + error
    elif definition == "cluster":
        to = ((z[:, None] - w["centres"]) ** 2).sum(axis=2)
        q = 1 / (1 + to)
        q /= q.sum(axis=1, keepdims=True)
        p = q**2 / q.sum(axis=0)
        p /= p.sum(axis=1, keepdims=True)
        loss, score = (p * np.log(p / q)).sum(axis=1) + error, to.min(axis=1)
    else:
        cosine = (x * back).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(back, axis=1)
        features = np.column_stack((np.log1p(error), cosine, z))
        hidden = np.tanh(features @ w["memberships.0.weight"].T + w["memberships.0.bias"])
        logits = hidden @ w["memberships.1.weight"].T + w["memberships.1.bias"]
        belongs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        means = [np.average(features, axis=0, weights=g) for g in belongs.T]
        variances = [np.average((features - m) ** 2, axis=0, weights=g) + 1e-4 for m, g in zip(means, belongs.T)]
        density = sum(
            g.mean() * np.exp(-0.5 * ((features - m) ** 2 / v).sum(axis=1)) / np.sqrt(np.prod(2 * np.pi * v))
            for g, m, v in zip(belongs.T, means, variances)
        )
        score = -np.log(density)
        loss = score + 10 * error + 0.05 * sum((1 / v).sum() for v in variances)
        child.finish(x_BC)
    np.testing.assert_allclose(child.loss(x_BC).detach(), loss, rtol=1e-8)
    np.testing.assert_allclose(child.score(x_BC).detach(), score, rtol=1e-8)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("norm", Space().norms)
def test_the_gradient_reaches_every_weight(definition, norm):
    child = child_of(definition, layers=((8, norm, "tanh"), (4, norm, "elu")))
    x_BC = torch.tensor(rng(0).normal(size=(30, 5)))
    child.begin(x_BC, seed=0)
    child.train()
    child.loss(x_BC).mean().backward()
    for name, weight in child.named_parameters():
        # a bias before batch normalisation moves nothing, and neither does one that all units of a row share
        if norm == "none" or not name.endswith("bias"):
            assert weight.grad.abs().max() > 1e-9, f"no gradient reaches {name}"


@pytest.mark.parametrize("activation", Space().activations)
def test_every_activation_can_be_trained(activation):
    trial = labelled_trial(rng(0).normal(size=(200, 4)), 5 + rng(1).normal(size=(20, 4)), rng(2))
    configuration = Configuration("reconstruction", "l2", ((16, "none", activation), (3, "batch", activation)))
    weights = children.shared_weights("reconstruction", Space(), 4, 0)
    reward, blocks = children.raise_child(configuration, weights, trial, 0)
    assert reward > 0.95
    for name, block in blocks.items():
        assert np.abs(block - weights[name][tuple(map(slice, block.shape))]).max() > 0


def test_centres_of_clusters_begin_as_the_means_of_their_rows():
    z = np.repeat([[9.0, 9], [9, -9], [-9, 9], [-9, -9]], 50, axis=0) + rng(0).normal(size=(200, 2))
    centres = _k_means(torch.tensor(z), rng(1)).numpy()
    nearest = ((z[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert len(set(nearest)) > 1
    for k in set(nearest):
        np.testing.assert_allclose(centres[k], z[nearest == k].mean(axis=0), rtol=1e-12)


def test_the_centroids_encoder_cannot_be_constant():
    child = child_of("centroid")
    assert not [name for name, _ in child.named_parameters() if name.startswith("encoder") and name.endswith("bias")]
    assert torch.equal(child.encode(torch.zeros(1, 5, dtype=torch.float64)), torch.zeros(1, 3, dtype=torch.float64))


def test_the_centre_is_the_mean_embedding_before_training():
    x = rng(0).normal(size=(200, 5))
    child = child_of("centroid")
    expected = child.encode(torch.tensor(x)).mean(dim=0).detach()
    children.grow(child, x, seed=0, epochs=3, held_out=0.0)
    torch.testing.assert_close(child.centre, expected, rtol=1e-12, atol=0)
    assert (child.encode(torch.tensor(x)).mean(dim=0) - expected).abs().max() > 1e-3


def test_a_linear_autoencoder_comes_to_the_principal_components():
    X = rng(0).normal(size=(600, 6)) @ np.diag([3, 2, 1.5, 0.4, 0.3, 0.2]) @ np.linalg.qr(rng(1).normal(size=(6, 6)))[0]
    X -= X.mean(axis=0)
    configuration = Configuration("reconstruction", "l2", ((3, "none", "linear"),))
    child = children._child(configuration, children.shared_weights("reconstruction", Space(), 6, 0), 6, "cpu")
    children.grow(child, X, seed=0, epochs=300, held_out=0.0)
    error = children.scores_of(child, X)
    pca = PCA(3).fit(X)
    best = ((X - pca.inverse_transform(pca.transform(X))) ** 2).sum(axis=1)
    assert best.mean() < error.mean() < 1.05 * best.mean()
    assert np.corrcoef(error, best)[0, 1] > 0.97


def test_batch_normalisation_ends_with_the_statistics_of_the_rows():
    x = rng(0).normal(3, 2, size=(500, 5))
    child = child_of("reconstruction", layers=((4, "batch", "linear"),))
    children.grow(child, x, seed=0, epochs=1, held_out=0.0)
    z = child.encode(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.var(axis=0, ddof=1), 1, rtol=1e-4)


def test_instance_normalisation_is_over_the_units_of_a_row():
    child = child_of("reconstruction", layers=((16, "instance", "linear"),))
    z = child.encode(torch.tensor(rng(0).normal(size=(4, 5))))
    np.testing.assert_allclose(z.detach().mean(dim=1), 0, atol=1e-12)
    np.testing.assert_allclose(z.detach().var(dim=1, unbiased=False), 1, rtol=1e-2)


# shared weights and rewards


def test_a_child_takes_the_leading_block_and_gives_it_back():
    weights = children.shared_weights("density", Space(), 5, seed=0)
    child = child_of("density", layers=((8, "none", "relu"),))
    np.testing.assert_allclose(child.encoder[0].weight.detach(), weights["encoder.0.weight"][:8] / np.sqrt(5))
    np.testing.assert_allclose(child.decoder[0].weight.detach(), weights["decoder.0.weight"][:, :8] / np.sqrt(8))
    for name, block in children._blocks(child).items():
        np.testing.assert_allclose(block, weights[name][tuple(map(slice, block.shape))], rtol=1e-12)


def test_shared_weights_become_the_mean_over_the_children_that_trained_them():
    weights = {"w": np.zeros((2, 3))}
    merged = children.averaged(weights, [{"w": np.full((1, 2), 4.0)}, {"w": np.full((2, 1), 2.0)}, {}])
    np.testing.assert_array_equal(merged["w"], [[3, 4, 0], [2, 0, 0]])
    assert not weights["w"].any()


def test_the_reward_counts_ranks_as_scikit_learn_does():
    usual, far = rng(0).integers(0, 6, 50).astype(float), rng(1).integers(2, 8, 20).astype(float)
    expected = roc_auc_score(np.repeat([0, 1], [50, 20]), np.concatenate((usual, far)))
    assert auroc(usual, far) == pytest.approx(expected, abs=1e-12)
    assert auroc(np.exp(usual), np.exp(far)) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(auroc(usual, np.array([np.inf])))


def test_a_child_that_explodes_gets_nothing_and_leaves_the_weights_alone():
    trial = Trial(np.full((50, 2), 1e200), np.zeros((5, 2)), (np.ones((5, 2)),))
    configuration = Configuration("reconstruction", "l2", ((3, "none", "linear"),))
    weights = children.shared_weights("reconstruction", Space(), 2, 0)
    assert children.raise_child(configuration, weights, trial, 0) == (0.0, {})


def test_made_outliers_are_what_they_say():
    learned, rows = rng(0).normal(size=(300, 5)), rng(1).normal(size=(200, 5))
    rows[:, 3:] = np.eye(2)[rng(2).integers(0, 2, 200)]
    owner, numbers = np.array([0, 1, 2, 3, 3]), np.array([True] * 3 + [False] * 2)
    shuffled, scattered, pushed = made_outliers(rows, learned, owner, numbers, rng(3))
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(rows, axis=0))
    assert abs(np.corrcoef(shuffled[:, 0], rows[:, 0])[0, 1]) < 0.2
    for made in (shuffled, scattered, pushed):  # a code of a category stays one
        np.testing.assert_array_equal(made[:, 3:].sum(axis=1), 1)
    reach = 0.1 * np.ptp(learned[:, :3], axis=0)
    low, high = scattered[:, :3].min(axis=0), scattered[:, :3].max(axis=0)
    assert (low >= learned[:, :3].min(axis=0) - reach).all() and (low < learned[:, :3].min(axis=0) + reach).all()
    assert (high <= learned[:, :3].max(axis=0) + reach).all() and (high > learned[:, :3].max(axis=0) - reach).all()
    mean = learned[:, :3].mean(axis=0)
    np.testing.assert_allclose(pushed[:, :3] - mean, 5 * (rows[:, :3] - mean), rtol=1e-12)


def test_a_trial_keeps_its_parts_apart():
    usual = np.arange(100.0)[:, None]
    trial = labelled_trial(usual, np.array([[500.0]]), rng(0))
    assert len(trial.rows) == 70 and len(trial.usual) == 30
    assert set(trial.rows.ravel()) | set(trial.usual.ravel()) == set(range(100))
    made = made_trial(usual, np.array([0]), np.array([True]), rng(0))
    np.testing.assert_array_equal(made.usual, trial.usual)
    assert set(made.far_out[0].ravel()) == set(made.usual.ravel())  # made from the validation part only


# the controller


def log_probability(controller, strings):
    log_p, _, _, there = controller(strings)
    return (log_p * there).sum(dim=1).detach().numpy()


def test_probabilities_of_all_strings_add_up_to_one():
    controller = control.Controller(SMALL, seed=0)
    assert np.exp(log_probability(controller, every(SMALL))).sum() == pytest.approx(1, rel=1e-12)


def test_draws_follow_the_probabilities():
    controller = control.Controller(SMALL, seed=1)
    drawn = controller.draw(4000, rng(0))
    definitions = [SMALL.decode(tokens).definition for tokens in drawn]
    p = np.exp(log_probability(controller, every(SMALL)))
    chance = {d: sum(q for q, s in zip(p, every(SMALL)) if SMALL.decode(s).definition == d) for d in DEFINITIONS}
    for word in DEFINITIONS:
        assert definitions.count(word) / 4000 == pytest.approx(chance[word], abs=0.03)
    assert np.mean([len(tokens) for tokens in drawn]) == pytest.approx(
        sum(q * len(s) for q, s in zip(p, every(SMALL))), abs=0.15
    )


def test_the_policy_loss_is_the_formula():
    controller = control.Controller(SMALL, seed=0)
    controller.usual = 0.5
    strings = [SMALL.draw(rng(seed)) for seed in range(6)]
    advantages, rewards = rng(1).normal(size=6), rng(2).uniform(size=6)
    policy = entropy = critic = n = 0.0
    for string, advantage, reward in zip(strings, advantages, rewards):
        for t, token in enumerate(string):
            start, end = SMALL.starts[kind_at(t)], SMALL.starts[kind_at(t) + 1]
            before = torch.tensor([[SMALL.vocabulary, *string[:t]]])
            hidden = controller.lstm(controller.embedding(before))[0][0, -1]
            p = torch.softmax(controller.policy(hidden)[start:end], dim=0).detach().numpy()
            policy -= advantage * np.log(p[token - start]) / 6
            entropy -= (p * np.log(p)).sum()
            critic += (reward - 0.5 - controller.value(hidden).item()) ** 2 / 2
            n += 1
    expected = policy - 1e-4 * entropy / n + critic / n
    assert control.on_policy_loss(controller, strings, advantages, rewards).item() == pytest.approx(expected, rel=1e-10)


def gradients(controller, loss):
    controller.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in controller.named_parameters() if weight.grad is not None}


def test_self_imitation_has_no_gradient_at_or_below_the_value():
    controller = control.Controller(SMALL, seed=0)
    strings = [SMALL.draw(rng(seed)) for seed in range(8)]
    _, value, _, there = controller(strings)
    below = value[there].min().item()
    for rewards in (np.full(8, below), np.full(8, below - 0.3)):
        found = gradients(controller, control.self_imitation_loss(controller, strings, rewards))
        assert all((gradient == 0).all() for gradient in found.values())
    above = gradients(controller, control.self_imitation_loss(controller, strings, np.full(8, below + 2)))
    assert all(gradient.abs().max() > 0 for gradient in above.values())


def test_self_imitation_is_the_formula_and_a_child_below_the_value_adds_nothing():
    controller = control.Controller(SMALL, seed=0)
    good, bad = [next(s for s in map(SMALL.draw, map(rng, range(k, 99))) if len(s) == 9) for k in (0, 50)]
    log_p, value, _, _ = controller([good])
    better = (1.0 - value).detach()
    expected = (-log_p * better + 0.01 / 2 * better**2).mean().item()
    alone = control.self_imitation_loss(controller, [good], np.array([1.0]))
    assert alone.item() == pytest.approx(expected, rel=1e-12)
    of_one = gradients(controller, alone)
    of_both = gradients(controller, control.self_imitation_loss(controller, [good, bad], np.array([1.0, -1.0])))
    for name, gradient in of_one.items():
        torch.testing.assert_close(of_both[name], gradient / 2, rtol=1e-10, atol=1e-14)


def test_replay_draws_by_how_much_better_and_never_below_the_value(monkeypatch):
    search = control.Search(SMALL, "curiosity", 0)
    strings = [SMALL.draw(rng(seed)) for seed in range(3)]
    search.remember(strings, [0.5, 2.0, -3.0])
    drawn = []
    real = control.self_imitation_loss
    monkeypatch.setattr(control, "self_imitation_loss", lambda c, s, r: drawn.extend(zip(s, r)) or real(c, s, r))
    monkeypatch.setattr(search, "_step", lambda loss: None)
    for seed in range(60):
        search.replay(rng(seed))
    counts = [sum(string == one for one, _ in drawn) for string in strings]
    priority = search.priorities(strings, np.array([0.5, 2.0, -3.0]))
    assert counts[2] == 0 and priority[2] == 0
    assert counts[1] / sum(counts) == pytest.approx(priority[1] / priority.sum(), abs=0.06)
    assert {reward for _, reward in drawn} == {0.5, 2.0}


def test_replay_of_nothing_but_losses_changes_no_weight():
    search = control.Search(SMALL, "curiosity", 0)
    strings = [SMALL.draw(rng(seed)) for seed in range(4)]
    search.remember(strings, [-2.0] * 4)
    before = log_probability(search.controller, strings)
    search.replay(rng(0))
    np.testing.assert_array_equal(log_probability(search.controller, strings), before)
    search.remember(strings, [2.0] * 4)
    search.replay(rng(0))
    assert (log_probability(search.controller, strings) > before).any()


def test_the_buffer_keeps_the_best():
    search = control.Search(SMALL, "curiosity", 0)
    strings = every(SMALL)[: control.BUFFER + 20]
    search.remember(strings, np.arange(len(strings), dtype=float))
    assert sorted(search.buffer.values()) == list(range(20, len(strings)))


@pytest.mark.parametrize("strategy", ["reinforce", "curiosity"])
def test_a_bandit_with_one_good_arm_is_won(strategy):
    search = control.Search(SMALL, strategy, 0, learning_rate=0.02)
    for _ in range(25):
        strings = search.propose()
        search.tell(strings, [float(SMALL.decode(tokens).definition == "cluster") for tokens in strings])
    rewards = [reward for _, reward in search.tried]
    assert np.mean(rewards[:10]) < 0.7 < 0.95 < np.mean(rewards[-50:])


def test_even_draws_learn_nothing_and_the_others_do():
    for strategy, learns in (("random", False), ("reinforce", True), ("curiosity", True)):
        one, other = (control.Search(SMALL, strategy, 0, learning_rate=0.05) for _ in range(2))
        strings = one.propose()
        assert other.propose() == strings
        one.tell(strings, list(np.linspace(0, 1, 10)))
        other.tell(strings, list(np.linspace(1, 0, 10)))
        assert (one.propose(200) != other.propose(200)) == learns
    with pytest.raises(UnknownName, match="'curiosity'"):
        control.Search(SMALL, "curious", 0)


def third_batch(monkeypatch, strategy, eta=0.1, replays=10):
    monkeypatch.setattr(control, "CURIOUS", eta)
    monkeypatch.setattr(control, "REPLAYS", replays)
    search = control.Search(SMALL, strategy, 0, learning_rate=0.01)
    for _ in range(2):
        strings = search.propose(40)
        search.tell(strings, [float(len(tokens) == 9) for tokens in strings])
    return search.propose(40)


def test_beliefs_follow_the_children_of_each_batch():
    search = control.Search(SMALL, "curiosity", 0)
    before = search.curiosity.beliefs.mean.detach().clone()
    search.tell(search.propose(), [0.5] * 10)
    search.propose()
    assert (search.curiosity.beliefs.mean - before).abs().max() > 1e-3


def test_without_bonus_and_replay_it_is_reinforce_and_with_either_it_is_not(monkeypatch):
    plain = third_batch(monkeypatch, "reinforce")
    assert third_batch(monkeypatch, "curiosity", eta=0, replays=0) == plain
    assert third_batch(monkeypatch, "curiosity", replays=0) != plain
    assert third_batch(monkeypatch, "curiosity", eta=0) != plain


def test_the_advantage_is_over_a_moving_baseline(monkeypatch):
    seen = []
    real = control.on_policy_loss
    monkeypatch.setattr(control, "on_policy_loss", lambda c, s, a, r: seen.append((a, r)) or real(c, s, a, r))
    search = control.Search(SMALL, "reinforce", 0)
    rewards = rng(0).uniform(size=(3, 10))
    for batch in rewards:
        search.tell(search.propose(), list(batch))
    search.propose()
    baseline = rewards[0].mean()
    for (advantages, told), batch in zip(seen, rewards):
        np.testing.assert_array_equal(told, batch)
        np.testing.assert_allclose(advantages, batch - baseline, rtol=1e-12)
        for reward in batch:
            baseline += 0.05 * (reward - baseline)
    assert search.baseline == search.controller.usual == pytest.approx(baseline, rel=1e-12)


# curiosity


def test_the_information_gain_is_zero_for_equal_beliefs_and_else_the_divergence():
    normal = torch.distributions.Normal
    mean, sd = torch.tensor(rng(0).normal(size=(2, 20))), torch.tensor(rng(1).uniform(0.1, 2, (2, 20)))
    expected = torch.distributions.kl_divergence(normal(mean[1], sd[1]), normal(mean[0], sd[0])).sum()
    assert curious.divergence(mean[1], sd[1], mean[0], sd[0]).item() == pytest.approx(expected.item(), rel=1e-12)
    assert curious.divergence(mean[0], sd[0], mean[0], sd[0]).item() == 0.0


def test_the_gain_of_each_transition_is_that_of_a_step_on_it_alone(monkeypatch):
    made = curious.Curiosity(SMALL, 0)
    beliefs = made.beliefs
    strings = [SMALL.draw(rng(seed)) for seed in range(2)]
    x, y = made.transitions(strings, [0.7, 0.4])
    noise = torch.tensor(rng(0).normal(size=(curious.DRAWS, len(beliefs.mean))))
    expected = []
    for row in range(len(x)):
        mean, raw = (p.detach().clone().requires_grad_() for p in (beliefs.mean, beliefs.raw))
        loss = 0.0
        for draw in noise:
            weights = mean + torch.nn.functional.softplus(raw) * draw
            first, second = weights[: beliefs.shapes[0][0] * 16].view(-1, 16), weights[beliefs.shapes[0][0] * 16 :]
            hidden = torch.tanh(x[row] @ first[:-1] + first[-1])
            second = second.view(17, -1)
            error = y[row] - hidden @ second[:-1] - second[-1]
            loss = loss + (error**2).sum() / (2 * 0.5**2) / curious.DRAWS
        loss.backward()
        soft = torch.nn.functional.softplus
        new = torch.distributions.Normal(mean - 0.01 * mean.grad, soft(raw - 0.01 * raw.grad))
        expected.append(torch.distributions.kl_divergence(new, torch.distributions.Normal(mean, soft(raw))).sum())
    found = beliefs.gain(x, y, noise).detach()
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-9, atol=0)
    monkeypatch.setattr(curious, "STEP", 0.0)
    assert (beliefs.gain(x, y, noise) == 0).all()


def test_transitions_lead_from_history_to_history_and_end_with_the_reward():
    string = SMALL.draw(rng(0))
    x, y = curious.Curiosity(SMALL, 0).transitions([string], [0.7])
    slots = SMALL.slot_starts[-1]
    state, action, after = x[:, : slots + 1].numpy(), x[:, slots + 1 :].numpy(), y.numpy()
    np.testing.assert_array_equal(action.argmax(axis=1), SMALL.slots(string))
    np.testing.assert_array_equal(state[:, :slots] + action, after[:, :slots])
    np.testing.assert_array_equal(after[:-1], state[1:])
    assert after[-1, slots] == 0.7 and not after[:-1, slots].any()


def test_what_is_known_well_teaches_less_than_what_is_new():
    made = curious.Curiosity(SMALL, 0)
    known = SMALL.encode(Configuration("density", "l1", ((3, "none", "tanh"), (3, "none", "tanh"))))
    new = SMALL.encode(Configuration("centroid", "l2", ((8, "batch", "relu"), (8, "batch", "relu"))))
    for seed in range(80):
        made.learn([known] * 5, [0.5] * 5, rng(seed))
    bonus = made.bonus([known, new], [0.5, 0.5], rng(0))
    assert bonus[1] > 2 * bonus[0] > 0


def test_bonuses_are_in_medians_and_clipped(monkeypatch):
    made = curious.Curiosity(SMALL, 0)
    strings = [SMALL.encode(Configuration("density", "l1", ((3, "none", "tanh"),)))] * 2
    monkeypatch.setattr(
        curious.Beliefs, "gain", lambda *_: torch.tensor([1, 1, 1, 1, 1, 7, 2, 2, 2, 2, 2, 1000], dtype=torch.float64)
    )
    np.testing.assert_allclose(made.bonus(strings, [0.5, 0.5], rng(0)), [(5 + 7) / 2 / 6, (5 + 5) / 6])  # median 2


# the detector


def table(n=120, seed=0):
    """Rows on a curve, and outliers beside it."""
    draw = rng(seed)
    t = draw.normal(size=n)
    X = np.column_stack((t, t**2, -t)) + 0.1 * draw.normal(size=(n, 3))
    y = np.arange(n) < n // 8
    X[y] += draw.normal(0, 3, (y.sum(), 3))
    return X, y.astype(int)


@pytest.fixture
def few(monkeypatch):
    """A small space, so that a search takes a moment."""
    monkeypatch.setattr("farout.table.autood.Space", lambda: SMALL)


def small(**parameters):
    return AutoOD(**{"trials": 20, "epochs": 3, "random_state": 0, "device": "cpu", **parameters})


def test_labels_lead_the_search_and_the_winner_is_trained_anew(few):
    X, y = table()
    found = small(reward="labels").fit(X, y)
    assert len(found.children_) == 20
    assert found.reward_ == max(reward for _, reward in found.children_)
    assert (found.configuration_, found.reward_) in found.children_
    matrix = found.encoder_.transform(found._features(X, reset=False))
    seed = np.random.RandomState(0).randint(2**31 - 1)
    trial = labelled_trial(matrix[y == 0], matrix[y == 1], rng(seed))
    for i, (configuration, reward) in enumerate(found.children_[:4]):
        weights = children.shared_weights(configuration.definition, SMALL, 3, seed)
        assert children.raise_child(configuration, weights, trial, seed + i)[0] == reward
    arrays = children.grow_up(found.configuration_, matrix[y == 0], 3, seed)
    np.testing.assert_array_equal(children.outlier_scores(found.configuration_, arrays, matrix), found.outlier_score(X))


def test_shared_weights_are_carried_from_batch_to_batch(few):
    X, y = table()
    found = small(reward="labels").fit(X, y)
    matrix = found.encoder_.transform(found._features(X, reset=False))
    seed = np.random.RandomState(0).randint(2**31 - 1)
    trial = labelled_trial(matrix[y == 0], matrix[y == 1], rng(seed))
    weights = {word: children.shared_weights(word, SMALL, 3, seed) for word in DEFINITIONS}
    first = [c for c, _ in found.children_[:10]]
    for word in DEFINITIONS:
        blocks = [
            children.raise_child(c, weights[word], trial, seed + i)[1]
            for i, c in enumerate(first)
            if c.definition == word
        ]
        weights[word] = children.averaged(weights[word], blocks)
    configuration, reward = found.children_[10]
    assert children.raise_child(configuration, weights[configuration.definition], trial, seed + 10)[0] == reward


def test_labelled_outliers_are_never_trained_on(few):
    X, y = table()
    X = np.column_stack((X, np.where(y == 1, 4.0, 1.0)))  # varies by the outliers only
    found = small(reward="labels").fit(X, y)
    np.testing.assert_array_equal(found.varies_, [True, True, True, False])
    step = found.outlier_score([[0, 0, 0, 4.0]]) - found.outlier_score([[0, 0, 0, 1.0]])
    assert step == pytest.approx((3 / X[:, 3].std()) ** 2, rel=1e-9)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (None, "needs y"),
        (np.zeros(120), "all 120 labels are 0"),
        (np.ones(120), "all 120 labels are 1"),
        (np.arange(120) % 3, "it holds '2'"),
        (np.array(["a", "b"] * 60), "it holds 'a'"),
        (np.array([0, 1]), r"\(2,\)"),
    ],
)
def test_labels_that_cannot_reward_are_refused(y, words, few):
    with pytest.raises(BadInput, match=words):
        small(reward="labels").fit(table()[0], y)


def test_made_outliers_need_no_labels_and_given_ones_are_not_dropped_silently(few):
    X, y = table()
    plain = small().fit_score(X)
    with pytest.warns(UserWarning, match="reward='labels'"):
        np.testing.assert_array_equal(small().fit_score(X, y), plain)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"search": "luck"}, "'luck'"),
        ({"reward": "praise"}, "'praise'"),
        ({"trials": 0}, "trials is at least 1"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"minutes": -1}, "minutes is at least 0"),
        ({"device": "nowhere"}, "'nowhere'"),
    ],
)
def test_wrong_parameters_are_refused(parameters, words, few):
    with pytest.raises((BadInput, UnknownName), match=words):
        small(**parameters).fit(table()[0])


def test_strategies_try_other_children_once_they_have_learned(few):
    X, _ = table()
    tried = {word: [c for c, _ in small(search=word, trials=30).fit(X).children_] for word in control.STRATEGIES}
    assert tried["curiosity"][:10] == tried["reinforce"][:10] != tried["random"][:10]
    assert tried["curiosity"] != tried["reinforce"]


def test_a_search_that_was_interrupted_ends_like_one_that_was_not(tmp_path, monkeypatch, few):
    X, y = table()
    whole = small(reward="labels", trials=30).fit(X, y)
    path = tmp_path / "search"
    real, calls = children.raise_child, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 25:  # in the third batch
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(children, "raise_child", interrupted)
    parts = small(reward="labels", trials=30, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        parts.fit(X, y)
    monkeypatch.setattr(children, "raise_child", lambda *arguments: calls.append(arguments) or real(*arguments))
    calls.clear()
    parts.fit(X, y)
    assert len(calls) == 10
    assert parts.children_ == whole.children_
    np.testing.assert_array_equal(parts.outlier_score(X), whole.outlier_score(X))
    parts.fit(X, y)  # nothing is left to do
    assert len(calls) == 10
    assert parts.children_ == whole.children_


def test_a_search_stops_in_time_and_can_be_taken_up_again(tmp_path, few):
    X, _ = table()
    hasty = small(trials=30, minutes=0, checkpoint=tmp_path / "search").fit(X)
    assert len(hasty.children_) == 10
    longer = small(trials=30, checkpoint=tmp_path / "search", random_state=None).fit(X)  # the seed is the search's
    assert longer.children_ == small(trials=30).fit(X).children_


def test_a_detector_with_a_checkpoint_can_be_saved(tmp_path, few):
    X, _ = table()
    found = small(trials=10, checkpoint=tmp_path / "search").fit(X)
    found.save(tmp_path / "saved")
    again = farout.load(tmp_path / "saved")
    assert again.children_ == found.children_ and again.checkpoint == str(tmp_path / "search")
    np.testing.assert_array_equal(again.outlier_score(X), found.outlier_score(X))


def test_a_checkpoint_of_another_search_is_refused(tmp_path, few):
    X, y = table()
    path = tmp_path / "search"
    small(trials=10, checkpoint=path).fit(X)
    for parameters, data in (({}, X + 1e-9 * rng().normal(size=X.shape)), ({"search": "random"}, X)):
        with pytest.raises(BadInput, match="other data"):
            small(checkpoint=path, **parameters).fit(data)
    with pytest.raises(BadInput, match="other data"):
        small(checkpoint=path, reward="labels").fit(X, y)
    with pytest.raises(BadInput, match="random_state"):
        small(checkpoint=path, random_state=1).fit(X)
    small(trials=10).fit(X).save(tmp_path / "detector")
    with pytest.raises(BadInput, match="no search"):
        small(checkpoint=tmp_path / "detector").fit(X)


def test_an_active_backend_of_joblib_is_used_with_the_same_result(monkeypatch, few):
    X, _ = table()
    alone = small().fit(X)
    threads = set()
    real = children.raise_child
    monkeypatch.setattr(children, "raise_child", lambda *a: threads.add(threading.get_ident()) or real(*a))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        shared = small().fit(X)
    assert threading.get_ident() not in threads and threads
    assert shared.children_ == alone.children_
    np.testing.assert_array_equal(shared.outlier_score(X), alone.outlier_score(X))


def test_threads_and_draws_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(3)
    small(trials=10).fit(table()[0])
    assert torch.rand(1) == expected and torch.get_num_threads() == threads


def test_progress_is_shown_on_stderr_where_it_is_asked_for(capsys):
    small(trials=10, verbose=True).fit(table()[0])
    assert "10/10" in capsys.readouterr().err
    small(trials=10).fit(table()[0])
    assert capsys.readouterr().err == ""


def test_rows_off_a_curve_that_no_column_shows_are_found(few):
    X, y = table(600)
    assert roc_auc_score(y, small(trials=30, epochs=30, reward="labels").fit_score(X, y)) > 0.9
    frame = pl.DataFrame(X, schema=["a", "b", "c"]).with_columns(pl.lit("same").alias("d"))
    found = small().fit(frame)
    assert found.outlier_score(frame.with_columns(pl.lit("new").alias("d"))).min() >= 0.5
