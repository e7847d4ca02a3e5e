"""A table from beginning to end: in memory, in a stream and on a cluster, with the same answers."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from farout.alarm import Alarm
from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.kit.columns import Columns
from farout.kit.engine import Dask
from farout.rows import TableDetector
from farout.scoring import SKETCH, _passes, fit, score
from farout.table import ECOD


def rows(n, seed=0):
    r = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "price": r.normal(100, 10, n),
            "weight": r.exponential(size=n),
            "city": r.choice(["Rome", "Oslo", "Bern"], n).tolist(),
            "gaps": np.where(r.random(n) < 0.2, np.nan, r.normal(size=n)),
        }
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A table of 3,000 rows with one far row on disk, cut into a dozen parts, and 4,000 normal rows beside it."""
    monkeypatch.setattr(_passes, "PART", 8_000)
    table = rows(3000)
    table[17, "price"], table[17, "city"] = 500.0, "Atlantis"
    paths = tmp_path / "table.parquet", tmp_path / "normal.parquet"
    for frame, path in zip((table, rows(4000, 1)), paths):
        frame.write_parquet(path, row_group_size=250)
    return paths


def same(one, other, words=True, rtol=0.0):
    np.testing.assert_allclose(one.scores, other.scores, rtol=rtol, atol=0)
    assert np.array_equal(one.p_values, other.p_values)
    assert np.array_equal(one.top_rows, other.top_rows)
    if words:  # streams draw another sample to tell what is usual
        assert one.frame().equals(other.frame())


def test_a_stream_gives_the_scores_of_memory(files):
    memory = score(files[0], "ecod")
    stream = score(files[0], engine="stream", parameters={"sketch": 0})
    assert len(_passes.Table.of(files[0], "stream").parts) > 5
    same(memory, stream, words=False)
    sketched = score(files[0], engine="stream")
    assert sketched.detector.sketch == SKETCH
    depth = max(getattr(column, "depth", 0) for column in sketched.profile.columns)
    assert np.abs(sketched.scores - memory.scores).max() <= max(depth, 1) * SKETCH * 4
    assert sketched.top_rows[0] == memory.top_rows[0] == 17


def test_results_repeat(files):
    for more in (
        {"engine": "stream"},
        {"fit_on": files[1]},
        {"fit_on": files[1], "engine": "stream"},
        {"method": "iforest"},
    ):
        same(score(files[0], **more), score(files[0], **more))


@pytest.mark.parametrize("engine", ["memory", "stream"])
def test_p_values_against_normal_rows_keep_the_rate(files, engine):
    result = score(files[0], fit_on=files[1], rate=0.05, engine=engine)
    assert result.calibrated and result.alarms[17] and result.p_values[17] == result.p_values.min()
    held_out = len(result.detector.calibration_scores_)
    assert abs(held_out - 1200) < (1 if engine == "memory" else 4 * np.sqrt(4000 * 0.3 * 0.7))
    assert result.detector.profile_.n == 4000 - held_out  # no row is both learned from and calibrated on
    assert abs(result.alarms.mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 * (1 / held_out + 1 / 3000))
    assert np.array_equal(result.p_values, result.detector.p_values_of(result.scores))


def test_batches_of_which_all_rows_are_held_out_are_passed_over(files, monkeypatch):
    monkeypatch.setattr(
        _passes, "hashed", lambda start, n, seed=0: np.full(n, 0 if start == 0 else 2**64 - 1, np.uint64)
    )
    file = _passes.Table.of(files[1], "stream").parts[0]
    part = type("Part", (), {"batches": lambda self: file.batches(50)})()
    columns = Columns.of(file.read())
    learned = _passes._learned((ECOD(), columns, 0.3, 0), (0, part))
    assert learned.profile_.n == file.read().height - 50


def test_a_saved_alarm_scores_like_the_one_that_was_saved(files, tmp_path):
    alarm = fit(files[1], rate=0.03)
    alarm.save(tmp_path / "a.farout")
    direct = score(files[0], fit_on=files[1], rate=0.03)
    again = score(files[0], saved=tmp_path / "a.farout")
    same(direct, again)
    assert again.rate == 0.03 and again.calibrated
    same(again, score(files[0], saved=alarm, engine="stream"), words=False)
    assert score(files[0], saved=alarm, rate=0.1).alarms.sum() > again.alarms.sum()
    with pytest.raises(BadInput, match="a rate of 1e-05 needs at least 99,999 normal rows"):
        score(files[0], saved=alarm, rate=1e-5)
    plain = score(files[0], saved=alarm.detector_)
    assert not plain.calibrated and plain.rate == 0.01 and np.array_equal(plain.scores, again.scores)


def test_rank_p_values_top_order_and_words():
    X = np.random.default_rng(0).normal(size=(400, 3))
    X[5], X[9, 1], X[11] = 20.0, -30.0, X[12]
    result = score(X, "ecod", name="demo", rate=0.02)
    expected = [(result.scores >= s).mean() for s in result.scores]
    assert result.p_values.tolist() == expected and not result.calibrated
    assert np.array_equal(result.alarms, result.p_values <= 0.02)
    order = np.lexsort((np.arange(400), -result.scores))
    assert np.array_equal(result.top_rows, order[:100])  # ties in the order of the table
    assert result.words(0) == [f"x{j} = 20: above all other rows" for j in (0, 1, 2)]
    place = int(np.flatnonzero(result.top_rows == 9)[0])
    assert result.words(place)[0] == "x1 = -30: below all other rows"
    frame, top = result.frame(), result.top(7)
    assert frame["row"].to_list() == list(range(400)) and np.array_equal(frame["score"], result.scores)
    assert frame["reasons"].is_not_null().sum() == 100 and frame["reasons"][9] == top["reasons"][place]
    assert top["row"].to_list() == order[:7].tolist() and np.array_equal(top["p_value"], result.p_values[order[:7]])
    np.testing.assert_allclose(result.reasons.sum(axis=1), result.scores[result.top_rows])
    assert result.settings["rows"] == 400 and result.settings["rate"] == 0.02 and "demo" in repr(result)


def test_every_alarm_gets_its_reasons():
    result = score(np.random.default_rng(1).normal(size=(3000, 2)), rate=0.1)
    assert result.alarms.sum() == 300 == len(result.top_rows)
    assert result.frame().filter(pl.col("alarm"))["reasons"].is_not_null().all()


def test_all_kinds_of_tables_give_the_same_scores():
    frame = rows(500)
    expected = score(frame).scores
    assert np.array_equal(score(frame.to_pandas()).scores, expected)
    assert np.array_equal(score(frame.to_arrow()).scores, expected)
    assert np.array_equal(score(frame.lazy()).scores, expected)
    numbers = frame.select("price", "weight", "gaps")
    X = numbers.to_numpy()
    for same_table in (X, np.asfortranarray(X), pd.DataFrame(X), pa.table(numbers.to_dict(as_series=False)), numbers):
        assert np.array_equal(score(same_table).scores, score(numbers).scores)


def test_kinds_that_are_said():
    frame = rows(300).with_columns(zip=pl.Series(np.random.default_rng(2).integers(1000, 1004, 300)))
    result = score(frame, kinds={"zip": "category", "city": "left out"})
    assert {c.name: c.kind for c in result.columns.columns}["zip"] == "category"
    assert "city" not in result.profile.names
    with pytest.raises(BadInput, match="no column 'zipp'; nearest: 'zip'"):
        score(frame, kinds={"zipp": "category"})


def test_other_columns_at_scoring_time():
    alarm = fit(rows(1000))
    new = rows(50, seed=3)
    expected = score(new, saved=alarm).scores
    more = new.with_columns(surprise=pl.lit("x")).select(sorted([*new.columns, "surprise"]))
    assert np.array_equal(score(more, saved=alarm).scores, expected)
    with pytest.raises(BadInput, match=r"1 of the 4 columns that were fitted are missing: 'price'"):
        score(new.drop("price"), saved=alarm)
    with pytest.raises(BadInput, match="column 'price' held numbers when it was fitted and holds text now: 'much'"):
        score(new.with_columns(price=pl.lit("much")), saved=alarm)
    whole = new.with_columns(pl.col("price").round().cast(pl.Int64))
    floats = new.with_columns(pl.col("price").round())
    assert np.array_equal(score(whole, saved=alarm).scores, score(floats, saved=alarm).scores)


def test_a_detector_of_arrays_refuses_tables_of_another_width():
    X = np.random.default_rng(4).normal(size=(200, 5))
    fitted = ECOD().fit(X)
    assert np.array_equal(score(X, saved=fitted).scores, fitted.outlier_score(X))
    for d in (3, 6):
        with pytest.raises(BadInput, match=rf"the table has {d} features .* fitted on 5"):
            score(np.zeros((10, d)), saved=fitted)


def test_unknown_names_offer_the_nearest(files):
    X = np.random.default_rng(5).normal(size=(50, 2))
    with pytest.raises(UnknownName, match="no method is called 'ecodd'; nearest: 'ecod'"):
        score(X, "ecodd")
    with pytest.raises(UnknownName, match="no parameter of 'ecod' is called 'rulez'; nearest: 'rule'"):
        score(X, "ecod", parameters={"rulez": "paper"})
    with pytest.raises(UnknownName, match="no engine is called 'streams'; nearest: 'stream'"):
        score(files[0], engine="streams")
    with pytest.raises(BadInput, match="the engine 'stream' reads files"):
        score(X, engine="stream")
    with pytest.raises(BadInput, match="rate is a share"):
        score(X, rate=2)
    with pytest.raises(BadInput, match="no column to score: 'x0': constant"):
        score(np.ones((50, 1)))
    with pytest.raises(BadInput, match="no Dask scheduler answers at 'nowhere'"):
        score(files[0], engine="dask", scheduler="nowhere")


def test_a_method_that_cannot_stream_says_which_can(files):
    with pytest.raises(BadInput, match=r"'lof' needs the whole table in memory: .*'ecod'"):
        score(files[0], "lof", engine="stream")


@paper("ECOD")
class Second(TableDetector):
    """Scores by the distance of the column 'b' from its median, and gives no reasons."""

    def fit_score(self, X, y=None):
        self.middle_ = np.median(self._features(X, reset=True).columns[1])
        scores = self.outlier_score(X)
        self._set_offset(scores)
        return scores

    def outlier_score(self, X):
        return np.abs(self._features(X, reset=False).columns[1] - self.middle_)


def test_a_method_without_reasons_is_explained_by_leaving_columns_out():
    X = np.random.default_rng(6).normal(size=(300, 3))
    X[4] = [9.0, 50.0, 9.0]
    result = score(pl.DataFrame(X, schema=["a", "b", "c"]), Second())
    assert result.top_rows[0] == 4 and result.words(0) == ["b = 50: above all other rows"]
    assert (result.reasons[:, [0, 2]] == 0).all()
    np.testing.assert_allclose(result.reasons[:, 1], result.scores[result.top_rows], atol=0.1)


def test_any_seed_and_progress():
    told = []
    X = np.random.default_rng(7).normal(size=(100, 2))
    for seed in (0, 7, 2**32 - 1):
        score(X, fit_on=np.random.default_rng(8).normal(size=(400, 2)), seed=seed, progress=lambda *a: told.append(a))
    assert told[-1] == ("explaining", 1.0) and all(0 <= done <= 1 for _, done in told)


def test_an_alarm_that_was_fitted_by_hand():
    frame = rows(800)
    alarm = Alarm(ECOD(), rate=0.05, random_state=0).fit(frame)
    result = score(rows(60, 9), saved=alarm)
    assert np.array_equal(result.p_values, alarm.p_values(rows(60, 9)))


def _slowly(shared, part):
    time.sleep(0.1)
    return _passes._learned(shared, part)


def test_a_cluster_gives_the_same_scores_also_when_a_worker_is_killed(files, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs Dask")
    exact = {"sketch": 0}
    expected = score(files[0], engine="stream", parameters=exact)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        same(score(files[0], engine="dask", scheduler=address, parameters=exact), expected)

        monkeypatch.setattr(_passes, "_learned", _slowly)
        victim, done = next(iter(cluster.workers.values())).pid, threading.Event()
        map_reduce = Dask.map_reduce

        def killing(self, work, merge, items, shared, finished):
            def first_is_done():
                finished()
                if not done.is_set():
                    done.set()
                    os.kill(victim, signal.SIGKILL)

            return map_reduce(self, work, merge, items, shared, first_is_done)

        monkeypatch.setattr(Dask, "map_reduce", killing)
        # a part that is lost, or counted twice, is what must not be; of the last bit this says nothing
        found = score(files[0], engine="dask", scheduler=address, parameters=exact)
        same(found, expected, words=False, rtol=1e-12)
        assert done.is_set()
        with pytest.raises(ProcessLookupError):
            os.kill(victim, 0)
