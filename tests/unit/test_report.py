"""The page of a scored table: its numbers are the result's, it is safe to open, and it is there whatever the table."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from farout.errors import BadInput
from farout.report._figures import bins, picture
from farout.report._page import Section, as_json, figure, page, plain, render, write
from farout.report._strips import BINS, strips
from farout.report._view import View
from farout.report.scores import notebook, write_page
from farout.scoring import score
from pages import Reader

HOSTILE = "</script><script>alert(1)</script><!-- <b>\u2028&amp; %{y} var(--ink) {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def normal():
    X = np.random.default_rng(0).normal(size=(1000, 4))
    X[7], X[500, 2] = 9.0, -8.0
    return X


def read(result, folder):
    write_page(result, folder / "page.html")
    return Reader((folder / "page.html").read_text(encoding="utf-8"))


def test_histogram_holds_every_score_and_the_line_parts_the_rows_that_ring(normal, tmp_path):
    result = score(normal)
    bars, rug = read(result, tmp_path).figures[0]["data"]
    assert sum(bars["y"]) == 1000
    coloured = [count for count, colour in zip(bars["y"], bars["marker"]["color"]) if colour == "var(--accent)"]
    assert sum(coloured) == result.alarms.sum() == 10
    np.testing.assert_allclose(rug["x"], result.scores[result.top_rows[:10]], rtol=1e-4)
    assert rug["text"][0].startswith("<b>row 7</b>")


def test_line_is_the_smallest_score_that_rings(normal, tmp_path):
    result = score(normal)
    layout = read(result, tmp_path).figures[0]["layout"]
    assert layout["shapes"][0]["x0"] == pytest.approx(result.scores[result.alarms].min(), rel=1e-8)

    calibrated = score(normal[:500], fit_on=normal[500:], rate=0.05)
    line = View.of(calibrated).line
    np.testing.assert_array_equal(calibrated.scores >= line, calibrated.alarms)
    held_out = calibrated.detector.calibration_scores_
    assert (held_out >= line).sum() == np.floor(0.05 * (len(held_out) + 1)) - 1


@pytest.mark.parametrize("line", [None, 0.5, 3.0, 250.0])
@pytest.mark.parametrize("draw", ["normal", "heavy", "equal"])
def test_bins_hold_all_and_have_an_edge_on_the_line(line, draw):
    rng = np.random.default_rng(1)
    scores = {"normal": rng.normal(size=300), "heavy": np.exp(3 * rng.normal(size=300)), "equal": np.ones(300)}[draw]
    edges, logarithmic = bins(scores, line)
    assert np.histogram(scores, edges)[0].sum() == 300
    assert (np.diff(edges) > 0).all()
    assert logarithmic == (draw == "heavy" or (draw == "equal" and line == 250))
    if line is not None:
        assert line in edges
        assert np.histogram(scores, edges)[0][edges[:-1] >= line].sum() == (scores >= line).sum()


def test_words_and_bars_are_those_of_the_result(normal, tmp_path):
    result = score(normal, "ecod")
    view = View.of(result)
    for place in range(view.listed):
        assert view.words(place) == result.words(place)
    page_ = read(result, tmp_path)
    for words in result.words(0):
        assert words in page_.text
    parts = re.findall(r'<span class="number">(-?[\d.]+)</span></li>', (tmp_path / "page.html").read_text())
    assert sum(float(part) for part in parts[:4]) == pytest.approx(result.scores[7], abs=0.03)


def test_words_leave_out_what_is_usual_as_the_result_does():
    rng = np.random.default_rng(5)
    frame = pl.DataFrame({"a": rng.normal(size=400), "b": rng.choice(list("xyzw"), 400), "c": rng.poisson(1, 400)})
    result = score(frame)
    view = View.of(result)
    assert [view.words(place) for place in range(view.listed)] == [result.words(p) for p in range(view.listed)]


def test_strips_count_the_rows_and_mark_the_odd_ones(normal):
    result = score(normal)
    shown = {strip.name: strip for strip in strips(View.of(result))}
    assert {strip.counts.sum() for strip in shown.values()} == {1000}
    strip = shown["x2"]
    edges = np.linspace(-8, 9, BINS + 1)
    np.testing.assert_array_equal(strip.counts, np.histogram(normal[:, 2], edges)[0])
    words = {mark.words.split(":")[0]: mark for mark in strip.marks}
    assert len(words) == 10
    assert (words["row 500"].x, words["row 500"].strong, words["row 7"].x) == (0, True, 100)


def test_far_values_pull_the_ends_of_a_strip_in():
    x = np.random.default_rng(0).normal(size=1000)
    x[3] = 1e6
    result = score(np.stack((x, x**2 % 1), axis=1))
    strip = next(s for s in strips(View.of(result)) if s.name == "x0")
    assert strip.pulled
    assert strip.counts.sum() == 1000
    assert (strip.counts > 0).sum() > 10  # on a linear axis all but one row share a bar


def test_strips_of_categories_give_shares_and_odd_rows():
    level = ["a"] * 60 + ["b"] * 38 + ["c", "d"]
    result = score(pl.DataFrame({"level": level, "x": [0.0, 1.0] * 50}), rate=0.02)
    strip = next(s for s in strips(View.of(result)) if s.name == "level")
    assert [(s.name, s.count, s.percent, s.odd) for s in strip.levels] == [
        ("a", 60, 60, 0),
        ("b", 38, 38, 0),
        ("c", 1, 1, 1),
        ("d", 1, 1, 1),
    ]
    assert [level.width for level in strip.levels[:2]] == pytest.approx([100, 100 * 38 / 60])


def test_picture_is_the_principal_plane_of_normal_scores(normal):
    from scipy.stats import norm, rankdata

    result = score(normal)
    fig, caption = picture(View.of(result))
    grey, odd = fig["data"]
    assert sorted([*grey["text"].tolist(), *result.top_rows[:10].tolist()]) == list(range(1000))
    z = norm.ppf(np.clip((rankdata(normal, axis=0) - 0.5) / 1000, 0.0005, 0.9995))
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    plane = np.linalg.svd(z)[2][:2]
    np.testing.assert_allclose(np.abs(z[grey["text"]] @ plane[0]), np.abs(grey["x"]), atol=1e-6)
    np.testing.assert_allclose(np.abs(z[result.top_rows[:10]] @ plane[1]), np.abs(odd["y"]), atol=1e-6)
    share = 100 * (np.linalg.svd(z)[1][:2] ** 2).sum() / (z**2).sum()
    assert f"{share:.0f} % of its variance" in caption


def test_far_values_do_not_squash_the_picture(normal):
    X = normal.copy()
    X[7] = 1e12
    fig, _ = picture(View.of(score(X)))
    assert np.ptp(fig["data"][0]["x"]) > 0.4 * np.ptp(fig["data"][1]["x"])


def test_a_rare_level_does_not_squash_the_picture():
    rng = np.random.default_rng(0)
    level = rng.choice(["a", "b"], 2000)
    frame = pl.DataFrame({"u": np.where(np.arange(2000) == 3, "rare", level), "x": rng.normal(size=2000)})
    fig, _ = picture(View.of(score(frame)))
    grey, odd = fig["data"]
    assert max(np.abs(odd["x"]).max(), np.abs(odd["y"]).max()) < 6  # as it is, it lies 45 deviations out
    assert np.hypot(odd["x"], odd["y"])[0] > np.median(np.hypot(grey["x"], grey["y"]))


def test_hostile_names_and_levels_are_text(tmp_path):
    rng = np.random.default_rng(2)
    level = rng.choice(["a", "b"], 300).tolist()
    level[5] = HOSTILE
    frame = pl.DataFrame({HOSTILE: level, "x": rng.normal(size=300), "id": [f"{HOSTILE}{i}" for i in range(300)]})
    result = score(frame, name=HOSTILE)
    page_ = read(result, tmp_path)
    assert len(page_.scripts) == 4  # two figures, plotly.js, ours
    assert not any(tag in ("b", "i") and not attrs.get("style") for tag, attrs in page_.tags)
    assert page_.text.count(HOSTILE) > 3
    assert "<script>alert" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    texts = page_.figures[1]["data"][1]["text"]
    assert any("&lt;/script&gt;" in text for text in texts)
    assert not any("<script" in text for text in texts)
    fragment = Reader(notebook(result))
    assert "script" not in {tag for tag, _ in fragment.tags}
    assert HOSTILE in fragment.text


def test_only_the_two_scripts_may_run_and_nothing_is_loaded(normal, tmp_path):
    page_ = read(score(normal), tmp_path)
    policy = next(attrs["content"] for tag, attrs in page_.tags if attrs.get("http-equiv"))
    running = [text for attrs, text in page_.scripts if attrs.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert len(hashes) == 2
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    loaded = [attrs for tag, attrs in page_.tags if tag in ("script", "link", "img", "iframe") and "type" not in attrs]
    assert not any({"src", "href"} & set(attrs) for attrs in loaded)


def test_page_without_figures_carries_no_plotly():
    html = page("empty", [Section("Nothing", render("note.html", text="<none>"))])
    assert len(html) < 20_000
    assert "&lt;none&gt;" in html
    assert "script-src 'none'" in html


def test_json_keeps_digits_that_show_and_no_more():
    fig = {"y": np.array([1 / 3, np.nan, np.inf, 2e-7]), "rows": np.array([123456789]), "f": 1 / 3, "b": np.True_}
    assert json.loads(as_json(fig)) == {
        "y": [0.33333, None, None, 2e-7],
        "rows": [123456789],
        "f": 0.3333333333,
        "b": True,
    }
    offset = 1e6 + np.linspace(0, 1, 11)
    assert np.abs(np.array(json.loads(as_json(offset))) - offset).max() <= 1e-5
    assert set("<>&") & set(as_json(["<!--", "</script>", "&"])) == set()
    assert json.loads(as_json(["<!--", "</script>", "&", "\u2028"])) == ["<!--", "</script>", "&", "\u2028"]
    assert plain("a<b>&lt;") == "a&lt;b&gt;&amp;lt;"
    assert '"height":300' in figure({"data": [], "layout": {"height": 300}}, "nothing")


def test_no_row_rings(tmp_path):
    result = score(np.random.default_rng(0).normal(size=(30, 3)))
    page_ = read(result, tmp_path)
    assert not result.alarms.any()
    assert "None of 30 rows" in page_.text
    assert "shapes" not in page_.figures[0]["layout"]
    assert "var(--accent)" not in page_.figures[0]["data"][0]["marker"]["color"]
    assert "None of 30 rows".lower() in notebook(result)


def test_one_row(tmp_path):
    known = score(np.random.default_rng(0).normal(size=(200, 3)), rate=0.05)
    result = score([[9.0, 0.0, 0.1]], saved=known.detector, rate=0.05)
    page_ = read(result, tmp_path)
    assert sum(page_.figures[0]["data"][0]["y"]) == 1
    assert "x0 = 9: above every row seen" in page_.text


def test_one_feature(tmp_path):
    x = np.random.default_rng(0).normal(size=300)
    x[4] = 50.0
    page_ = read(score(x[:, None]), tmp_path)
    assert len(page_.figures) == 1  # no plane to project on
    assert "x0 = 50: above all other rows" in page_.text


def test_categories_only(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.choice(list("abc"), 300, p=[0.6, 0.39, 0.01]) for name in ("u", "v", "w")})
    result = score(frame)
    page_ = read(result, tmp_path)
    assert sum(page_.figures[0]["data"][0]["y"]) == 300
    assert np.isfinite(page_.figures[1]["data"][0]["x"]).all()


def test_missing_and_infinite_cells(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    X[rng.random((300, 3)) < 0.2] = np.nan
    X[3], X[4] = [np.inf, -np.inf, 0], np.nan
    view = View.of(score(X, kinds={"x0": "numeric"}))
    for strip in strips(view):
        assert strip.counts.sum() == (~np.isnan(X[:, int(strip.name[1])])).sum()
        assert all(0 <= mark.x <= 100 for mark in strip.marks)
    fig, _ = picture(view)
    assert np.isfinite(fig["data"][1]["x"]).all()
    read(view.result, tmp_path)


def test_dates_are_shown_as_dates(tmp_path):
    rng = np.random.default_rng(0)
    days = np.datetime64("2024-01-01") + rng.integers(0, 200, 300)
    days[9] = np.datetime64("2031-05-06")
    page_ = read(score(pl.DataFrame({"when": days, "x": rng.normal(size=300)})), tmp_path)
    assert "2031-05-06" in page_.text
    assert "2024-01-01 – 2031-05-06" in page_.text


def test_two_thousand_columns(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 2000))
    X[3, 77] = 30.0
    result = score(X, rate=0.05)
    page_ = read(result, tmp_path)
    assert "1,976 features" in page_.text
    assert "Only the first 300 features are used" in page_.text
    assert sum(tag == "svg" and "role" in attrs for tag, attrs in page_.tags) == 24
    assert (tmp_path / "page.html").stat().st_size < 6_000_000


def test_method_without_reasons_of_its_own(normal, tmp_path):
    result = score(normal, "iforest")
    page_ = read(result, tmp_path)
    assert "IForest" in page_.text
    assert View.of(result).words(0) == result.words(0)
    assert "tick on its bar" not in page_.text


def test_page_of_ten_thousand_rows_is_small(tmp_path):
    read(score(np.random.default_rng(0).normal(size=(10_000, 20))), tmp_path)
    assert (tmp_path / "page.html").stat().st_size < 5_600_000


def test_settings_and_command_stand_in_the_page(normal, tmp_path):
    result = score(normal)
    result.settings["command"] = ["farout", "score", "my data.csv"]
    text = read(result, tmp_path).text
    assert "farout score 'my data.csv'" in text
    assert "Claimed by the paper" in text
    assert result.card.claim in text
    assert json.loads(text[text.index('{\n  "data"') : text.rindex("}") + 1]) == json.loads(json.dumps(result.settings))


def test_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "page.html"
    write(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write(target, "new \ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(BadInput, match="no folder"):
        write(tmp_path / "gone" / "page.html", "x")


def test_neither_torch_nor_figure_objects_are_imported(tmp_path):
    code = (
        "import sys, numpy as np; from farout.scoring import score; "
        f"score(np.random.default_rng(0).normal(size=(50, 3))).save({str(tmp_path / 'p.html')!r}); "
        "bad = {'torch', 'plotly.graph_objects', 'plotly.graph_objs'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notebook_shows_the_first_rows(normal):
    result = score(normal)
    html = notebook(result)
    assert "10 of 1,000 rows" in html
    assert result.words(0)[0] in html
    assert len(html) < 12_000
    assert html.count('fill="#d2600f"') >= 1
    assert result._repr_html_() == html
