"""The events room: codes of entities, counts of one and two, and APE's energy and loss."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from farout.bench.metrics import auroc
from farout.data import DataMissing, find
from farout.errors import BadInput
from farout.events import APE, MarginalRarity, PairSurprise
from farout.events._common import Vocabulary, surprise
from farout.events._pair_counts import PairCounts
from farout.kit.columns import Codes
from farout.kit.sketch import LevelCounts, RankTable
from naive import events as naive

torch = pytest.importorskip("torch")
from farout.events._ape_net import Energy, Noise, contrast  # noqa: E402


def drawn(n, seed=0, holes=True):
    """Events of three types, skewed and dependent, with a value seen once here and there and missing ones."""
    rng = np.random.default_rng(seed)
    a = rng.choice(8, n, p=np.arange(8, 0, -1) / 36)
    b = np.where(rng.random(n) < 0.8, a % 4, rng.integers(0, 9, n))
    c = rng.zipf(1.6, n) % 40
    frame = pl.DataFrame({"a": [f"a{x}" for x in a], "b": [f"b{x}" for x in b], "c": [f"c{x}" for x in c]})
    hole = pl.Series(rng.random(n) < (0.05 if holes else -1))
    return frame.with_columns(b=pl.when(~hole).then(pl.col("b")))


def clubs(n, seed=0):
    """Users, hosts and shells of five clubs: everyone stays in the club; the marginals are even."""
    rng = np.random.default_rng(seed)
    club = rng.integers(0, 5, n)
    return pl.DataFrame(
        {name: [f"{name}{x}" for x in 4 * club + rng.integers(0, 4, n)] for name in ("user", "host", "shell")}
    )


# codes


def test_values_that_are_few_are_entities_and_many_fall_into_bins():
    few = Vocabulary.of(RankTable.of(np.sort(np.repeat([0.0, 22.0, 443.0], 10))))
    assert few.kind == "value" and few.counts.tolist() == [10, 10, 10, 0, 0]
    assert few.encode(np.array([22.0, 23.0, np.nan, -1.0, 999.0])).tolist() == [1, 3, 4, 3, 3]
    values = np.sort(np.concatenate((np.random.default_rng(0).lognormal(3, 2, 999), [1e9])))
    bins = Vocabulary.of(RankTable.of(values, missing=7))
    assert bins.kind == "bin" and 10 < bins.unseen < 80
    assert bins.counts.sum() == 1007 and bins.counts[bins.missing] == 7 and bins.counts[bins.unseen] == 0
    codes = bins.encode(values)
    assert (np.diff(codes) >= 0).all() and bins.counts[codes[-1]] == 1  # what is far out is alone
    np.testing.assert_array_equal(np.bincount(codes, minlength=bins.unseen), bins.counts[: bins.unseen])
    assert (bins.encode(np.array([-1e12, 1e12, 1e7])) == bins.unseen).all()  # the last one in an empty bin


@pytest.mark.parametrize("values", [[0.0] * 99 + [1e-300], [1e308, -1e308] * 50 + list(range(60)), [5e-324] * 70])
def test_bins_hold_every_value_that_they_were_made_from(values):
    values = np.sort(np.concatenate((values, np.random.default_rng(0).normal(size=200))))
    vocabulary = Vocabulary.of(RankTable.of(values))
    codes = vocabulary.encode(values)
    assert (codes < vocabulary.unseen).all()
    np.testing.assert_array_equal(np.bincount(codes, minlength=vocabulary.unseen), vocabulary.counts[:-2])


def test_levels_are_found_in_any_order():
    vocabulary = Vocabulary.of(LevelCounts(["Monday", "Friday"], np.array([3, 4]), 7, 2))
    assert vocabulary.known == ["Friday", "Monday"] and vocabulary.counts.tolist() == [4, 3, 0, 2]
    codes = vocabulary.encode(Codes(np.array([0, 1, 2, -1]), ["Monday", "Zeus", "Friday"]))
    assert codes.tolist() == [1, 2, 0, 3]


def test_surprise_of_counts():
    found = surprise(np.array([6.0, 2.0, 0.0, 5.0]))
    np.testing.assert_allclose(found, [-np.log(3 / 4), np.log(4), np.log(9), 0.75 * np.log(4 / 3) + 0.25 * np.log(4)])


# counts


def test_marginal_rarity_is_the_sum_over_single_counts():
    train, new = drawn(300), drawn(60, seed=1)
    new = new.with_columns(a=pl.when(pl.int_range(60) % 7 == 0).then(pl.lit("new")).otherwise(pl.col("a")))
    expected = [naive.marginal_rarity(train.rows(), row) for row in new.rows()]
    np.testing.assert_allclose(MarginalRarity().fit(train).outlier_score(new), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", ["max", "sum", "frequency"])
def test_pair_surprise_is_that_of_slow_counting(rule):
    train, new = drawn(300), drawn(60, seed=1)
    new = new.with_columns(a=pl.when(pl.int_range(60) % 7 == 0).then(pl.lit("new")).otherwise(pl.col("a")))
    detector = PairSurprise(rule).fit(train)
    expected = [naive.pair_surprise(train.rows(), row, rule) for row in new.rows()]
    np.testing.assert_allclose(detector.outlier_score(new), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(detector.reasons(new).sum(axis=1), expected, rtol=1e-12, atol=1e-12)


def test_a_new_entity_is_odd_where_new_ones_are_rare():
    rare = pl.DataFrame({"kind": ["x", "y"] * 50, "user": [f"u{i}" for i in range(100)]})
    detector = PairSurprise().fit(rare)
    scores = detector.outlier_score(pl.DataFrame({"kind": ["z", "x"], "user": ["u1", "u999"]}))
    np.testing.assert_allclose(scores, [np.log(101), 0.0])  # no kind was seen once; every user was


def test_pair_counts_of_a_table_and_of_a_sort_are_the_same():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 30, (500, 3))
    wide = codes * np.array([1, 400, 1])  # so many codes that keys are sorted
    for given in (codes, wide):
        sizes = given.max(axis=0) + 3
        made = PairCounts.of(given, [Vocabulary("level", [], np.zeros(size)) for size in sizes])
        for i, j in ((0, 1), (0, 2), (1, 2)):
            found = made.lookup(i, j, given[:, i], given[:, j])
            expected = [((given[:, [i, j]] == row).all(axis=1)).sum() for row in given[:, [i, j]]]
            np.testing.assert_array_equal(found, expected)
            assert made.lookup(i, j, given[:1, i], np.array([sizes[j] - 1])).tolist() == [0]
    assert made.counts.sum() == 1500


def test_words_name_the_pair_once_and_new_entities():
    train = clubs(2000).select("user", "host", twin=pl.col("user"))
    odd = pl.DataFrame({"user": ["user0"] * 2, "host": ["host9", "nowhere"], "twin": ["user0"] * 2})
    said = PairSurprise().fit(train).words(odd)
    n_0, n_9 = (train["user"] == "user0").sum(), (train["host"] == "host9").sum()
    expected = float(f"{n_0 * n_9 / 2000:.2g}")
    # and not the same again of the twin
    assert said[0] == [f"user 'user0' with host 'host9': never together in 2,000 events ({expected:g} expected)"]
    assert said[1][0] == "host 'nowhere': never seen in 2,000 events"


def test_words_of_numbers_and_of_missing_values():
    rng = np.random.default_rng(0)
    train = pl.DataFrame({"bytes": rng.lognormal(5, 1, 500), "port": rng.choice([22.0, 80.0], 500)})
    detector = PairSurprise().fit(train)
    odd = pl.DataFrame({"bytes": [1e12, None], "port": [22.0, 443.0]})
    said = detector.words(odd)
    assert said == [
        ["bytes 1,000,000,000,000: nothing near it seen in 500 events"],
        ["port 443: never seen in 500 events"],
    ]


@pytest.mark.parametrize("method", [MarginalRarity, PairSurprise, APE])
def test_an_event_of_nothing_known_and_a_single_type(method):
    detector = method(random_state=0) if method is APE else method()
    detector.fit(clubs(300))
    known = detector.outlier_score(clubs(300))
    nothing = pl.DataFrame({"user": ["x"], "host": ["y"], "shell": ["z"]})
    assert detector.outlier_score(nothing)[0] > known.max()
    single = detector.fit(clubs(300).select("user")).outlier_score(pl.DataFrame({"user": ["user1", "x"]}))
    assert np.isfinite(single).all() and single[1] > single[0]


def test_rules_that_do_not_exist_are_refused():
    with pytest.raises(BadInput, match="not 'mean'"):
        PairSurprise("mean").fit(clubs(50))
    with pytest.raises(BadInput, match="not 'no'"):
        APE(correction="no").fit(clubs(50))
    with pytest.raises(BadInput, match="at least 1, not 10, 0"):
        APE(epochs=0).fit(clubs(50))


@pytest.mark.slow
@pytest.mark.parametrize("method", [MarginalRarity, PairSurprise])
def test_a_million_events_with_a_million_entities(method):
    rng = np.random.default_rng(0)
    n = 1_000_000
    X = np.column_stack((rng.permutation(n), rng.zipf(1.3, n) % 1000, rng.zipf(1.3, n) % 50)).astype(str)
    frame = pl.DataFrame(X, schema=["id", "host", "kind"], orient="row")
    scores = method().fit_score(frame)
    assert np.isfinite(scores).all() and len(scores) == n


@pytest.mark.parametrize(("name", "published"), [("chess", 0.639), ("solar_flare", 0.852), ("cmc", 0.567)])
def test_marginals_on_labelled_tables_are_those_measured_before(name, published):
    try:
        table = pl.read_parquet(find(f"events/categorical/{name}.parquet"))
    except DataMissing:
        pytest.skip("the categorical tables are not here")
    scores = MarginalRarity().fit_score(table.drop("anomaly").select(pl.all().cast(pl.String)))
    assert auroc(table["anomaly"], scores) == pytest.approx(published, abs=6e-4)


# APE


def energy(entities=12, types=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Energy(entities, types, 5, weighted=True)
        with torch.no_grad():
            made.vectors.normal_()
            made.weights.uniform_(0, 2)
            made.bias.fill_(0.3)
    return made


def slow_energy(vectors, weights, rows):
    """``sum_{i<j} w_ij <v_i, v_j>`` by loops."""
    m = len(rows[0])
    pairs = [(i, j) for i in range(m) for j in range(i + 1, m)]
    return np.array([sum(w * vectors[r[i]] @ vectors[r[j]] for w, (i, j) in zip(weights, pairs)) for r in rows])


def test_energy_is_the_sum_over_pairs():
    made = energy()
    rows = torch.randint(12, (7, 4), generator=torch.Generator().manual_seed(0))
    vectors, weights = made.vectors.detach().numpy(), made.weights.detach().numpy()
    found = made(rows).detach().numpy()
    np.testing.assert_allclose(found, slow_energy(vectors, weights, rows.numpy()), rtol=1e-5)
    with torch.no_grad():
        made.weights.fill_(1)
    v = vectors[rows.numpy()]
    factored = ((v.sum(axis=1) ** 2).sum(axis=1) - (v**2).sum(axis=(1, 2))) / 2
    np.testing.assert_allclose(made(rows).detach().numpy(), factored, rtol=1e-4, atol=1e-5)


def test_the_loss_is_cross_entropy_of_data_against_replaced_events():
    counts = [np.array([3.0, 5, 0, 0]), np.array([4.0, 2, 2, 0, 0]), np.array([8.0, 0, 0])]
    made, k = energy(12, 3), 6
    rows = torch.tensor([[0, 4, 9], [1, 5, 9], [1, 6, 9], [1, 4, 9]])
    found = contrast(made, Noise(counts, 0.75, "unigram", 1, torch.device("cpu")), k)(rows)
    twin = Noise(counts, 0.75, "unigram", 1, torch.device("cpu"))
    t, other = twin.draw(4, k)
    assert t in (0, 1)  # the third type has one entity only
    start, share = (0, counts[0] / 8) if t == 0 else (4, counts[1] / 8)
    fake = rows[:, None].repeat(1, k, 1)
    fake[:, :, t] = other
    assert ((fake != rows[:, None]).sum(dim=2) <= 1).all()
    logits = lambda events: made(events) + made.bias - torch.tensor(np.log(k * share[events[:, t] - start])).float()  # noqa: E731
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    data = bce(logits(rows), torch.ones(4), reduction="none")
    noise = bce(logits(fake.reshape(-1, 3)), torch.zeros(4 * k), reduction="none").reshape(4, k)
    same = other == rows[:, t, None]
    assert same.any() and not same.all()
    torch.testing.assert_close(found, data + (noise * ~same).sum(dim=1))


def test_noise_is_drawn_by_the_power_of_the_counts():
    counts = [np.array([81.0, 16, 0, 1, 0]), np.array([7.0, 0])]
    noise = Noise(counts, 0.75, "drawn", 0, torch.device("cpu"))
    t, rows = noise.draw(20_000, 5)
    assert t == 0
    share = np.bincount(rows.numpy().ravel(), minlength=5) / 1e5
    expected = np.array([27, 8, 0, 1, 0]) / 36
    np.testing.assert_allclose(share, expected, atol=0.005)
    np.testing.assert_allclose(noise.log_p[0].exp(), expected, atol=1e-6)
    plain = Noise(counts, 0.75, "unigram", 0, torch.device("cpu"))
    np.testing.assert_allclose(plain.log_p[0].exp(), np.array([81, 16, 0, 1, 0]) / 98, atol=1e-6)


def test_gradients_reach_vectors_weights_and_bias():
    made = energy(9, 3)
    noise = Noise([np.array([2.0, 2, 2])] * 3, 0.75, "unigram", 0, torch.device("cpu"))
    contrast(made, noise, 5)(torch.tensor([[0, 3, 6], [1, 4, 7], [2, 5, 8]])).mean().backward()
    assert all((parameter.grad != 0).all() for parameter in made.parameters())


def test_weights_never_fall_below_zero(monkeypatch):
    made = energy()
    with torch.no_grad():
        made.weights.copy_(torch.tensor([1.0, -1, 0.5, -0.1, 0, 2]))
    made.project()
    assert made.weights.tolist() == [1, 0, 0.5, 0, 0, 2]
    projected, project = [], Energy.project
    monkeypatch.setattr(Energy, "project", lambda energy: (projected.append(energy), project(energy)))
    APE(epochs=3, batch_size=50, random_state=0).fit(clubs(200))
    assert len(projected) == 3 * 4  # after every step
    rng = np.random.default_rng(0)
    alone = clubs(2000).with_columns(noise=pl.Series(rng.choice(["p", "q", "r"], 2000)))
    detector = APE(learning_rate=0.1, random_state=0).fit(alone)
    assert (detector.weights_ >= 0).all() and (detector.weights_ == detector.weights_.T).all()
    assert (np.diag(detector.weights_) == 0).all()
    assert detector.weights_[:3, :3].sum() / 6 > detector.weights_[3, :3].mean()  # a type that says nothing counts less
    fixed = APE(weighted=False, random_state=0).fit(alone)
    np.testing.assert_array_equal(fixed.weights_, 1 - np.eye(4))


@pytest.mark.parametrize("correction", ["unigram", "drawn"])
def test_the_optimum_is_pointwise_mutual_information_over_its_complement(correction):
    """Draws that equal the data are left out, so that log p(a | b) comes as log p(a | b) / (1 - p(a | b))."""
    joint = np.array([[12, 5, 3], [3, 12, 5], [5, 3, 12]])  # even marginals, so that both types agree on one optimum
    cells = np.repeat(np.arange(9), 25 * joint.ravel())
    events = pl.DataFrame({"a": [f"a{c // 3}" for c in cells], "b": [f"b{c % 3}" for c in cells]})
    detector = APE(dimensions=6, epochs=60, batch_size=100, n_noise=20, correction=correction, random_state=0)
    detector.fit(events)
    grid = pl.DataFrame({"a": [f"a{c // 3}" for c in range(9)], "b": [f"b{c % 3}" for c in range(9)]})
    energies = -detector.outlier_score(grid)
    share = joint.ravel() / 20  # p(a | b) = p(b | a) = p(a, b) / p(a)
    difference = energies - np.log(share / (1 - share))
    np.testing.assert_allclose(difference, difference.mean(), atol=0.1)


def test_among_many_entities_the_optimum_is_pointwise_mutual_information():
    i, j = np.divmod(np.arange(400), 20)
    joint = 1 + 4 * ((i + j) % 5 == 0)  # a pair is five times as frequent, or not; p(a | b) is 1/36 or 5/36
    cells = np.repeat(np.arange(400), 3 * joint)
    events = pl.DataFrame({"a": [f"a{i[c]}" for c in cells], "b": [f"b{j[c]}" for c in cells]})
    detector = APE(epochs=60, batch_size=100, random_state=0).fit(events)
    grid = pl.DataFrame({"a": [f"a{x}" for x in i], "b": [f"b{x}" for x in j]})
    energies = -detector.outlier_score(grid)
    gap = energies[joint == 5].mean() - energies[joint == 1].mean()
    assert gap == pytest.approx(np.log(5), abs=0.2)
    assert max(energies[joint == 5].std(), energies[joint == 1].std()) < 0.2


def test_scores_are_energies_and_do_not_depend_on_the_order_of_types():
    events = clubs(1000)
    detector = APE(random_state=0).fit(events)
    codes = detector._codes(detector._features(events, reset=False))
    rows = codes + np.cumsum([0, *[len(v.counts) for v in detector.vocabularies_]])[:-1]
    weights = detector.weights_[np.triu_indices(3, 1)]
    slow = -slow_energy(detector.vectors_, weights, rows[:50])
    scores = detector.outlier_score(events)[:50]
    np.testing.assert_allclose(scores, slow, rtol=1e-10)
    np.testing.assert_allclose(detector.reasons(events)[:50].sum(axis=1), scores, rtol=1e-9, atol=1e-12)
    turned = np.array([2, 0, 1])
    again = -slow_energy(
        detector.vectors_, detector.weights_[np.ix_(turned, turned)][np.triu_indices(3, 1)], rows[:50, turned]
    )
    np.testing.assert_allclose(again, scores, rtol=1e-10)
    shuffled = np.random.default_rng(0).permutation(len(detector.vectors_))
    vectors = np.empty_like(detector.vectors_)
    vectors[shuffled] = detector.vectors_
    np.testing.assert_allclose(-slow_energy(vectors, weights, shuffled[rows[:50]]), scores, rtol=1e-10)


def test_an_unseen_entity_has_the_mean_vector_and_a_part_of_its_own():
    events = clubs(1000)
    detector = APE(random_state=0).fit(events)
    new = pl.DataFrame({"user": ["nobody"], "host": ["host1"], "shell": ["shell1"]})
    starts = np.cumsum([0, *[len(v.counts) for v in detector.vocabularies_]])
    v = detector.vectors_[[starts[0] + 20, starts[1] + 1, starts[2] + 1]]
    places = [detector.vocabularies_[t].known.index(name) for t, name in ((1, "host1"), (2, "shell1"))]
    v[1:] = detector.vectors_[[starts[1] + places[0], starts[2] + places[1]]]
    np.testing.assert_allclose(v[0], detector.vectors_[:20].mean(axis=0))
    expected = np.log(1001) - slow_energy(v, detector.weights_[np.triu_indices(3, 1)], [[0, 1, 2]])[0]
    assert detector.outlier_score(new)[0] == pytest.approx(expected)
    assert detector.reasons(new)[0].argmax() == 0
    assert detector.words(new)[0][0] == "user 'nobody': never seen in 1,000 events"


def test_ape_finds_who_is_in_the_wrong_club_where_marginals_see_nothing():
    train, new = clubs(3000), clubs(300, seed=1)
    stray = new.with_columns(host=pl.Series([f"host{(int(h[4:]) + 4) % 20}" for h in new["host"]]))
    both = pl.concat([new, stray])
    y = np.repeat([0, 1], 300)
    detector = APE(random_state=0).fit(train)
    assert auroc(y, detector.outlier_score(both)) > 0.99
    assert abs(auroc(y, MarginalRarity().fit(train).outlier_score(both)) - 0.5) < 0.06
    np.testing.assert_allclose(detector.rarity(both), MarginalRarity().fit(train).outlier_score(both))
    said = detector.words(stray[:20])
    assert all("host" in word[0] and "a worse fit than usual" in word[0] for word in said)
    assert detector.history_[-1] < detector.history_[0]


def test_a_seed_repeats_and_another_differs():
    events = clubs(300)
    first, again, other = (APE(epochs=2, random_state=seed).fit(events).vectors_ for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
