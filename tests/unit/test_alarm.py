"""Alarms keep their rate: the guarantee of conformal p-values, measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

import farout
from farout import Alarm
from farout.alarm import benjamini_hochberg
from farout.errors import BadInput, NotFitted
from farout.io.state import read_state, write_state
from farout.table import ECOD


class Identity:
    """Stands for a fitted detector whose score is the number itself."""

    def outlier_score(self, X):
        return np.asarray(X, float)


def calibrated(scores, rate):
    return Alarm(Identity(), rate).calibrate(scores)


@pytest.mark.parametrize(("m", "rate"), [(99, 0.05), (30, 0.1), (150, 0.017)])
def test_the_alarm_rate_on_fresh_normal_rows_is_the_stated_one(m, rate):
    n, seeds, rang = 500, 400, []
    for seed in range(seeds):
        r = np.random.default_rng(seed)
        rang.append((calibrated(r.normal(size=m), rate).predict(r.normal(size=n)) == -1).mean())
    expected = np.floor(rate * (m + 1)) / (m + 1)
    assert expected <= rate
    # given the calibration rows, the rate is beta distributed: that spread, and the binomial one of the fresh rows
    k = np.floor(rate * (m + 1))
    spread = k * (m + 1 - k) / ((m + 1) ** 2 * (m + 2)) + expected * (1 - expected) / n
    assert abs(np.mean(rang) - expected) < 3 * np.sqrt(spread / seeds)


def test_the_rate_holds_end_to_end_with_a_detector_and_held_out_rows():
    rang = []
    for seed in range(200):
        r = np.random.default_rng(seed)
        alarm = Alarm(ECOD(), rate=0.05, random_state=seed).fit(r.normal(size=(330, 2)))
        rang += (alarm.predict(r.normal(size=(50, 2))) == -1).tolist()
        assert len(alarm.calibration_scores_) == 99
    assert abs(np.mean(rang) - 0.05) < 3 * np.sqrt(0.05 * 0.95 * (1 / 100 + 1 / 50) / 200)


def test_p_values_of_normal_rows_are_uniform():
    p = []
    for seed in range(2000):
        r = np.random.default_rng(seed)
        p.append(calibrated(r.normal(size=999), 0.01).p_values(r.normal(size=1))[0])
    assert kstest(p, "uniform").pvalue > 0.001
    assert min(p) >= 1 / 1000 and max(p) <= 1


def test_p_values_by_hand():
    alarm = calibrated([1.0, 2.0, 2.0, 3.0], 0.3)
    assert alarm.p_values([0.0, 2.0, 2.5, 3.0, 4.0]).tolist() == [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    assert alarm.predict([3.0, 3.1]).tolist() == [1, -1]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60),
    st.one_of(st.floats(0.001, 0.999), st.integers(1, 99).map(lambda k: k / 100), st.just(1 - 0.9)),
)
def test_a_row_rings_exactly_when_its_p_value_is_at_most_the_rate(scores, rate):
    if 1 / (len(scores) + 1) > rate:
        with pytest.raises(BadInput, match="at least"):
            calibrated(scores, rate)
        return
    alarm = calibrated(np.array(scores, float), rate)
    new = np.arange(-1, 22) / 1.0
    assert np.array_equal(alarm.predict(new) == -1, alarm.p_values(new) <= rate)


def test_benjamini_hochberg_keeps_the_share_of_false_discoveries():
    rate, shares, found = 0.2, [], []
    for seed in range(300):
        r = np.random.default_rng(seed)
        new = np.concatenate((r.normal(size=180), r.normal(4, 1, size=20)))
        marked = calibrated(r.normal(size=1000), rate).discoveries(new)
        shares.append(marked[:180].sum() / max(marked.sum(), 1))
        found.append(marked[180:].mean())
    assert np.mean(shares) <= rate * 0.9 + 3 * np.std(shares) / np.sqrt(300)
    assert np.mean(found) > 0.8


def test_benjamini_hochberg_by_its_definition():
    r = np.random.default_rng(0)
    for _ in range(100):
        p = r.integers(1, 40, 15) / 200
        largest = max((k for k in range(1, 16) if np.sort(p)[k - 1] <= 0.1 * k / 15), default=0)
        expected = p <= np.sort(p)[largest - 1] if largest else np.zeros(15, bool)
        assert np.array_equal(benjamini_hochberg(p, 0.1), expected)
    assert len(benjamini_hochberg(np.empty(0), 0.1)) == 0


@pytest.mark.parametrize(("rate", "need"), [(0.01, 99), (0.05, 19), (0.001, 999), (0.3, 3)])
def test_too_few_rows_are_refused_with_the_number_that_would_do(rate, need):
    with pytest.raises(BadInput, match=f"at least {need} normal rows to calibrate on, and {need - 1} are held out"):
        calibrated(np.arange(need - 1.0), rate)
    assert calibrated(np.arange(float(need)), rate).predict([-1.0, 1e9]).tolist() == [1, -1]


def test_wrong_shares_are_refused():
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(BadInput, match="rate is a share"):
            calibrated(np.arange(100.0), rate)
    with pytest.raises(BadInput, match="calibration is a share"):
        Alarm(ECOD(), calibration=1.0).fit(np.zeros((100, 1)))


def normal_rows(kind):
    r = np.random.default_rng(1)
    columns = {"x": r.normal(size=1000), "c": r.choice(["a", "b"], 1000).tolist()}
    return {"polars": pl.DataFrame, "pandas": pd.DataFrame}[kind](columns)


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_frames(kind):
    alarm = Alarm(ECOD(), rate=0.02, random_state=0).fit(normal_rows(kind))
    new = pl.DataFrame({"x": [0.0, 50.0], "c": ["a", "never seen"]})
    assert alarm.predict(new).tolist() == [1, -1]
    same = Alarm(ECOD(), rate=0.02, random_state=0).fit(normal_rows("polars"))
    assert np.array_equal(alarm.calibration_scores_, same.calibration_scores_)
    assert alarm.feature_names_ == ["x", "c"] and alarm.reasons(new).shape == (2, 2)


def test_a_detector_that_is_fitted_already_is_calibrated_as_it_is():
    r = np.random.default_rng(2)
    fitted = ECOD().fit(r.normal(size=(500, 2)))
    fresh = r.normal(size=(200, 2))
    alarm = Alarm(fitted, rate=0.05).calibrate(fresh)
    assert alarm.detector_ is fitted
    assert np.array_equal(alarm.calibration_scores_, np.sort(fitted.outlier_score(fresh)))


def test_save_and_load(tmp_path):
    X = np.random.default_rng(3).normal(size=(1000, 2))
    alarm = Alarm(ECOD(), rate=0.05, random_state=0).fit(X)
    alarm.save(tmp_path / "a.farout")
    again = farout.load(tmp_path / "a.farout")
    assert isinstance(again, Alarm) and again.rate == 0.05 and isinstance(again.detector_, ECOD)
    assert np.array_equal(again.p_values(X), alarm.p_values(X))
    assert np.array_equal(again.predict(X), alarm.predict(X))
    assert np.array_equal(again.reasons(X), alarm.reasons(X))


def test_an_alarm_that_is_not_fitted_says_so(tmp_path):
    alarm = Alarm(ECOD())
    for ask in (alarm.p_values, alarm.predict, alarm.outlier_score):
        with pytest.raises(NotFitted, match="'Alarm' is not fitted"):
            ask(np.zeros((2, 2)))
    with pytest.raises(NotFitted, match="not calibrated"):
        alarm.p_values_of(np.zeros(2))
    with pytest.raises(NotFitted):
        alarm.save(tmp_path / "a.farout")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["NoSuchMethod", "os.system", "../ecod", "", None, 3])
def test_states_that_name_no_method_are_refused(tmp_path, name):
    path = tmp_path / "a.farout"
    write_state(
        path, {"detector": {"name": "Alarm", "values": {"detector_": {"nested": {"name": name, "values": {}}}}}}
    )
    with pytest.raises(farout.errors.FaroutError):
        farout.load(path)


@pytest.mark.parametrize("tree", [None, [], {}, {"detector": None}, {"detector": {"name": "ECOD", "values": []}}])
def test_states_that_are_no_detector_are_refused(tmp_path, tree):
    write_state(tmp_path / "a.farout", tree)
    with pytest.raises(BadInput, match="holds no detector"):
        farout.load(tmp_path / "a.farout")


def test_a_state_cannot_change_what_a_detector_is(tmp_path):
    path = tmp_path / "a.farout"
    ECOD().fit(np.arange(9.0)[:, None]).save(path)
    tree = read_state(path)
    tree["detector"]["values"]["__class__"] = "Alarm"
    write_state(path, tree)
    with pytest.raises(BadInput, match="holds no detector"):
        farout.load(path)
