from __future__ import annotations

import json

import numpy as np
import pytest
from plotly.graph_objects import Figure

from farout.bench._figures import critical_difference, heat, published_against_ours, scatter_rival
from farout.errors import BadInput

NAN = float("nan")
NAMES = ["LOF", "ECOD", "KNN", "HBOS", "IForest"]
RANKS = [4.5, 1.25, 2.5, 3.0, 3.75]
CLIQUES = [("ECOD", "KNN"), ("KNN", "IForest", "HBOS"), ("IForest", "LOF")]
UP, ACROSS = [0.9, 0.6, 0.7, 0.5, NAN], [0.8, 0.7, 0.7, 0.4, 0.3]
FIGURES = {
    "diagram": critical_difference(NAMES, np.array(RANKS), CLIQUES),
    "diagram with a ruler": critical_difference(NAMES, RANKS, CLIQUES, cd=1.5),
    "scatter": scatter_rival(NAMES, UP, ACROSS, "ECOD", "LOF"),
    "heat": heat(["A", "B"], ["s", "t", "u"], [[0.5, NAN], [0.9, 0.8], [NAN, NAN]]),
    "published": published_against_ours(["A", "B", "C"], [0.8, NAN, 0.6], [0.7, 0.5, NAN]),
}


def colours(part, path=""):
    """Every key that names a colour, with its path."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from colours(value, f"{path}.{key}")
    elif isinstance(part, list):
        for value in part:
            yield from colours(value, path)
    elif "color" in path.rsplit(".", 1)[-1]:
        yield path, part


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_figures_are_valid_json_and_leave_text_and_ground_to_the_page(figure):
    assert Figure(json.loads(json.dumps(figure, allow_nan=False))).to_plotly_json()["data"]
    for path, colour in colours(figure["layout"]):
        assert "font" not in path
        if "bgcolor" in path:
            assert colour == "rgba(0,0,0,0)"


def by_mode(figure, mode):
    return [trace for trace in figure["data"] if trace["mode"] == mode]


def test_diagram_places_methods_at_their_ranks():
    figure = critical_difference(NAMES, RANKS, CLIQUES)
    (dots,) = by_mode(figure, "markers")
    assert dict(zip(dots["text"], dots["x"])) == dict(zip(NAMES, RANKS))
    assert dots["x"] == sorted(RANKS) and set(dots["y"]) == {0}
    axis = figure["layout"]["xaxis"]
    assert axis["range"] == pytest.approx([1, 5], abs=0.02)
    # The free axis stands where y is 0.
    bottom, top = figure["layout"]["yaxis"]["range"]
    assert bottom + axis["position"] * (top - bottom) == pytest.approx(0)


def test_diagram_joins_each_group_with_dots_at_its_members_alone():
    bars = by_mode(critical_difference(NAMES, RANKS, CLIQUES), "lines+markers")
    assert [bar["x"] for bar in bars] == [[1.25, 2.5], [2.5, 3.0, 3.75], [3.75, 4.5]]
    assert [bar["text"] for bar in bars] == [["ECOD", "KNN"], ["KNN", "HBOS", "IForest"], ["IForest", "LOF"]]
    heights = [set(bar["y"]) for bar in bars]
    assert all(len(height) == 1 for height in heights) and len(set.union(*heights)) == 3


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_leaders_lead_from_rank_to_label_and_never_cross(k):
    rng = np.random.default_rng(k)
    names, ranks = [f"m{i}" for i in range(k)], rng.permutation(np.linspace(1.1, k - 0.1, k))
    figure = critical_difference(names, ranks, [])
    leaders = by_mode(figure, "lines")[0]
    labels = {(note["x"], note["y"]): note["text"] for note in figure["layout"]["annotations"]}
    elbows = [(leaders["x"][i], leaders["y"][i + 1], leaders["x"][i + 2]) for i in range(0, 4 * k, 4)]
    rank_of = dict(zip(names, ranks))
    for rank, depth, edge in elbows:
        (name,) = [name for name in names if name in labels[edge, depth]]
        assert rank == rank_of[name]
        assert f"{rank:.2f}" in labels[edge, depth]
        for other, its_depth, _ in elbows:
            crossed = min(rank, edge) < other < max(rank, edge) and its_depth < depth
            assert other == rank or not crossed
    assert len({(depth, edge) for _, depth, edge in elbows}) == k


def test_ruler_is_as_long_as_the_critical_difference():
    figure = critical_difference(NAMES, RANKS, CLIQUES, cd=5.5)
    ruler = figure["data"][-1]
    assert max(ruler["x"]) - min(ruler["x"]) == pytest.approx(5.5)
    assert figure["layout"]["xaxis"]["range"][1] >= max(ruler["x"])
    assert any(note["text"] == "CD = 5.50" for note in figure["layout"]["annotations"])


def test_scatter_parts_the_sets_by_who_is_better():
    figure = scatter_rival(list("abcde"), UP, ACROSS, "ECOD", "LOF")
    diagonal, better, rest = figure["data"]
    assert diagonal["x"] == diagonal["y"] == figure["layout"]["xaxis"]["range"] == figure["layout"]["yaxis"]["range"]
    assert (better["text"], better["x"], better["y"]) == (["a", "d"], [0.8, 0.4], [0.9, 0.5])
    assert (rest["text"], rest["x"], rest["y"]) == (["b", "c"], [0.7, 0.7], [0.6, 0.7])
    assert figure["layout"]["title"]["text"] == "ECOD is better on 2, equal on 1, worse on 1 sets"


def test_scatter_names_the_largest_differences():
    theirs = np.full(20, 0.5)
    ours = theirs + np.r_[np.linspace(-0.3, -0.21, 4), np.zeros(15), 0.4]
    figure = scatter_rival([f"s{i}" for i in range(20)], ours, theirs, "A", "B")
    notes = figure["layout"]["annotations"]
    assert [note["text"] for note in notes] == ["s19", "s0", "s1", "s2", "s3"]
    assert [note["y"] for note in notes] == pytest.approx([0.9, 0.2, 0.23, 0.26, 0.29])


def test_heat_sorts_by_the_means_of_what_was_run():
    figure = heat(["A", "B", "C"], ["s", "t"], [[0.6, NAN, 0.7], [0.8, 0.9, NAN]], measure="AP")
    (cells,) = figure["data"]
    assert (cells["x"], cells["y"]) == (["B", "A", "C"], ["t", "s"])  # means 0.9, 0.7, 0.7 and 0.85, 0.65
    assert cells["z"] == [[0.9, 0.8, None], [None, 0.6, 0.7]]
    empty_last = heat(["A", "B"], ["s"], [[NAN, 0.1]])["data"][0]
    assert (empty_last["x"], empty_last["z"]) == (["B", "A"], [[0.1, None]])


def test_published_and_ours_are_joined_name_by_name():
    ways, rings, dots = FIGURES["published"]["data"]
    assert (rings["x"], rings["y"]) == ([0.8, None, 0.6], ["A", "B", "C"])
    assert (dots["x"], dots["y"]) == ([0.7, 0.5, None], ["A", "B", "C"])
    assert ways["x"] == [0.8, 0.7, None, None, 0.5, None, 0.6, None, None]
    assert ways["y"] == ["A", "A", None, "B", "B", None, "C", "C", None]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: critical_difference(["A", "B"], [1], []), r"'ranks' must have shape \(2,\).*\(1,\)"),
        (lambda: critical_difference(["A", "B"], [1, NAN], []), "2 names have 1 ranks"),
        (lambda: critical_difference(["A", "A"], [1, 2], []), "2 names have 1 ranks"),
        (lambda: critical_difference([], [], []), "0 names"),
        (lambda: critical_difference(["A", "B"], [1, 2], [("A", "Z")]), "'Z'"),
        (lambda: scatter_rival(["s"], [1, 2], [1], "A", "B"), "'ours'"),
        (lambda: scatter_rival(["s", "t"], [1, NAN], [NAN, 1], "A", "B"), "'A' and 'B' .* of the 2"),
        (lambda: heat(["A"], ["s"], [[1, 2]]), r"'values' must have shape \(1, 1\)"),
        (lambda: published_against_ours(["A"], [1], []), "'ours'"),
    ],
)
def test_unusable_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()
