"""Scoring tables of events and logs: which method is taken, and reasons that name pairs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from farout.cli import app
from farout.errors import BadInput, UnknownName
from farout.kit.columns import Columns
from farout.scoring import DEFAULT, default_for, fit, score


def events(n=3000, seed=0):
    """Users who each stay on their own hosts, and event 17, where one does not."""
    rng = np.random.default_rng(seed)
    user = rng.choice(60, n, p=1 / np.arange(1, 61) / (1 / np.arange(1, 61)).sum())
    host = 3 * user + rng.integers(0, 3, n)
    user[17], host[17] = 3, 1
    return pl.DataFrame(
        {
            "user": [f"u{x}" for x in user],
            "host": [f"h{x}" for x in host],
            "outcome": rng.choice(["ok", "failed"], n, p=[0.9, 0.1]),
        }
    )


def test_the_default_follows_from_the_columns():
    frame = events()
    sizes = frame.with_columns(size=pl.Series(np.random.default_rng(0).lognormal(size=3000)))
    for table, expected in (
        (frame, "pair_surprise"),
        (sizes, "pair_surprise"),  # three columns of four
        (sizes.with_columns(other=pl.col("size") ** 2), DEFAULT),
        (frame.select("user", "host"), DEFAULT),
        (frame.with_columns(host=pl.col("outcome"), user=pl.col("outcome")), DEFAULT),  # no column of entities
    ):
        assert default_for(Columns.guess(table), table) == expected
    assert default_for(Columns.guess(frame), frame, streams=True) == "marginal_rarity"
    assert default_for(Columns.guess(frame), frame, "table") == DEFAULT
    assert default_for(Columns.guess(sizes), sizes.select("size"), "events") == "pair_surprise"
    with pytest.raises(UnknownName, match="'event'"):
        default_for(Columns.guess(frame), frame, "event")


def test_reasons_name_the_pair_in_words_tables_and_pages(tmp_path):
    result = score(events())
    assert result.settings["method"] == "pair_surprise" and result.top_rows[0] == 17
    assert result.words(0)[0].startswith("user 'u3' with host 'h1': once together in 3,000 events (")
    assert result.top(1)["reasons"][0] == "; ".join(result.words(0))
    assert result.frame()["reasons"][17] == result.top(1)["reasons"][0]
    result.save(tmp_path / "page.html")
    assert "once together in 3,000 events" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_rows_that_the_method_finds_usual_are_explained_by_their_values():
    result = score(events(), "pair_surprise")
    silent = [place for place, said in enumerate(result.said) if not said]
    assert silent and all(" of rows (" in word for place in silent for word in result.words(place))
    assert all(result.words(place) for place in silent if (result.reasons[place] > 0).any())


@pytest.mark.parametrize("method", ["ape", "marginal_rarity"])
def test_methods_of_events_can_be_named_and_say_what_is_new(method):
    if method == "ape":
        pytest.importorskip("torch")
    new = pl.concat([events(200, seed=1), pl.DataFrame({"user": ["nobody"], "host": ["h1"], "outcome": ["ok"]})])
    result = score(new, method, fit_on=events())
    assert result.card.slug == method and result.calibrated
    place = result.top_rows.tolist().index(200)
    assert "nobody" in result.words(place)[0] and "never seen" in result.words(place)[0]


def test_a_saved_alarm_of_events_scores_and_explains(tmp_path):
    alarm = fit(events().filter(pl.int_range(pl.len()) != 17))
    assert type(alarm.detector_).__name__ == "PairSurprise"
    alarm.save(tmp_path / "saved")
    new = events(500, seed=1)
    result = score(new, saved=tmp_path / "saved")
    np.testing.assert_array_equal(result.scores, alarm.outlier_score(new))
    place = result.top_rows.tolist().index(17)
    assert result.words(place)[0].startswith("user 'u3' with host 'h1': never together in 2,099 events (")


def test_large_tables_of_events_stream(tmp_path):
    events().write_csv(tmp_path / "events.csv")
    result = score(tmp_path / "events.csv", engine="stream")
    assert result.card.slug == "marginal_rarity" and len(result.scores) == 3000
    whole = score(events(), "marginal_rarity")
    np.testing.assert_allclose(result.scores, whole.scores, rtol=1e-9)
    with pytest.raises(BadInput, match=r"needs the whole table.*'marginal_rarity'"):
        score(tmp_path / "events.csv", "pair_surprise", engine="stream")


def test_a_log_is_scored_from_beginning_to_end(tmp_path):
    pytest.importorskip("drain3")
    lines = [
        f"2024-03-05 {8 + i // 200:02d}:{i // 4 % 60:02d}:00 INFO {'shop' if i % 2 else 'mail'}: "
        + (f"order of user{i % 9} shipped" if i % 2 else f"message to user{i % 7} sent")
        for i in range(1000)
    ]
    lines[500] = lines[500].replace("mail:", "shop:")
    (tmp_path / "app.log").write_text("\n".join(lines))
    pairs = score(tmp_path / "app.log", material="events")
    assert pairs.card.slug == "pair_surprise" and pairs.top_rows[0] == 500
    assert pairs.words(0)[0].startswith("component 'shop' with template 'message to <*> sent': once together in 1,000")
    lines[700] = "2024-03-05 11:55:00 ERROR shop: no stock left"
    (tmp_path / "app.log").write_text("\n".join(lines))
    alone = score(tmp_path / "app.log")
    assert alone.card.slug == "marginal_rarity" and alone.top_rows[0] == 700
    assert "template = no stock left: in 0.1 % of rows (1)" in alone.words(0)


def test_the_command_line_takes_events(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    frame = events().select("user", "host")
    frame.write_csv("pairs.csv")
    run = CliRunner().invoke
    plain = run(app, ["score", "pairs.csv", "--top", "1"])
    assert plain.exit_code == 0 and not plain.stdout.startswith("PairSurprise")
    as_events = run(app, ["score", "pairs.csv", "--as", "events", "--top", "1"])
    assert as_events.exit_code == 0 and as_events.stdout.startswith("PairSurprise")
    assert "user 'u3' with host 'h1'" in as_events.stdout
    fitted = run(app, ["fit", "pairs.csv", "--as", "events", "-o", "saved"])
    assert fitted.exit_code == 0 and '"method": "pair_surprise"' in (tmp_path / "saved.farout.json").read_text()
