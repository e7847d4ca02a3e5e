"""BoA and TurboBoA: the solver against its definition, Hessians of attention against formulas, recipes at work."""

import copy

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from naive import quantize_boa as naive

torch = pytest.importorskip("torch")

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.inside._attention import Products  # noqa: E402
from farout.quantize import turboboa  # noqa: E402
from farout.quantize._attention_hessians import attention_hessians  # noqa: E402
from farout.quantize._attention_watch import attention_maps  # noqa: E402
from farout.quantize.grid import Grid, Steps  # noqa: E402
from farout.quantize.recipe import quantize, recipe_of  # noqa: E402
from farout.quantize.round import _search  # noqa: E402
from farout.quantize.round import boa as solver  # noqa: E402
from farout.quantize.round._search import searched_steps  # noqa: E402
from farout.quantize.round.boa import boa  # noqa: E402
from farout.quantize.round.gptq import gptq  # noqa: E402
from farout.quantize.turboboa import TurboBoA  # noqa: E402

ASYMMETRIC = Grid(3, rule="asymmetric")


def layer(heads=2, d=6, inputs=10, seed=0):
    """A weight, Hessians with correlations and of full rank, and the cross term of inputs with errors; in float64."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    W = normal(heads * d, inputs)
    X = normal(60, inputs) @ normal(inputs, inputs)
    full = X + 0.3 * normal(60, inputs) @ normal(inputs, inputs)
    K = normal(heads, 40, d) @ normal(heads, d, d)
    return W, X.T @ X / 30, K.mT @ K / 20, (full - X).T @ X / 30


def cost(W, V, H_in, H_out, R=None):
    """The objective, summed over heads."""
    W, V, H_in = W.numpy(), V.numpy(), H_in.numpy()
    R = None if R is None else R.numpy()
    h, d = H_out.shape[:2]
    heads = [slice(i * d, i * d + d) for i in range(h)]
    return sum(naive.objective(W[own], V[own], H_in, H_out[i].numpy(), R) for i, own in enumerate(heads))


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("grid", [ASYMMETRIC, Grid(3), Grid(2, "group", 5), Grid(3, "tensor")])
def test_without_hessian_of_outputs_and_errors_of_inputs_it_is_gptq(grid, order):
    W, H, _, _ = layer()
    steps = grid.steps(W)
    expected = gptq(W, H, grid, order=order, steps=steps).weight
    eye = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    for H_out, rows in ((None, 16), (eye, 1), (eye, 4), (eye, 16)):
        found = boa(W, H, H_out, grid, rows=rows, steps=steps, refine=0, order_columns=order)
        torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_it_is_what_its_definition_says(rows, corrected):
    W, H, H_out, R = layer()
    R = R if corrected else None
    steps = ASYMMETRIC.steps(W)
    settings = {"rows": rows, "cross": R, "steps": steps, "refine": 0, "damping": 0.0, "alpha": 0.7}
    found = boa(W, H, H_out, ASYMMETRIC, order_columns=False, **settings).weight
    scale, zero = steps.scale[:, 0].numpy(), steps.zero[:, 0].numpy()
    R = None if R is None else 0.7 * R.numpy()
    for head in range(2):
        own = slice(6 * head, 6 * head + 6)
        args = W[own].numpy(), H.numpy(), H_out[head].numpy(), scale[own], zero[own], 7, rows, R
        np.testing.assert_allclose(found[own], naive.boa(*args), rtol=0, atol=1e-10)


def test_orders_are_those_of_the_diagonals():
    W, H, H_out, R = layer(heads=1)
    steps = ASYMMETRIC.steps(W)
    settings = {"rows": 2, "refine": 0}
    columns = H.diagonal().argsort(descending=True)
    rows = H_out[0].diagonal().argsort(descending=True)
    expected = boa(
        W[rows][:, columns],
        H[columns][:, columns],
        H_out[:, rows][:, :, rows],
        ASYMMETRIC,
        cross=R[columns][:, columns],
        steps=Steps(steps.scale[rows], steps.zero[rows]),
        order_columns=False,
        **settings,
    ).weight
    found = boa(W, H, H_out, ASYMMETRIC, cross=R, steps=steps, order_rows=True, **settings).weight
    torch.testing.assert_close(found[rows][:, columns], expected, rtol=0, atol=1e-12)
    assert not torch.equal(found, boa(W, H, H_out, ASYMMETRIC, cross=R, steps=steps, **settings).weight)


def handed(monkeypatch, *args, **settings):
    """Run the solver, and return what its pass over columns was called with, block by block."""
    calls = []

    def pass_over_columns(flat, *rest, steps):
        rounded = gptq(flat, *rest, steps=steps)
        calls.append((flat.clone(), rounded.weight, steps))
        return rounded

    monkeypatch.setattr(solver, "gptq", pass_over_columns)
    return boa(*args, **settings), calls


def test_rows_behind_a_block_stand_at_their_optimum(monkeypatch):
    W, H, H_out, _ = layer(heads=1)
    _, calls = handed(monkeypatch, W, H, H_out, ASYMMETRIC, rows=4, damping=0.0)
    (_, V, _), (rest, _, _) = calls
    gradient = H_out[0] @ (W - torch.cat([V, rest])) @ H
    assert gradient[4:].abs().max() < 1e-10 * gradient[:4].abs().max()


@pytest.mark.parametrize("grid", [ASYMMETRIC, Grid(2, "group", 5)])
def test_steps_are_searched_when_the_turn_of_their_rows_comes(monkeypatch, grid):
    W, H, H_out, _ = layer(heads=2)
    found, calls = handed(monkeypatch, W, H, H_out, grid, rows=4, refine=0, damping=0.0)
    assert len(calls) == 2
    for start, (flat, _, steps) in zip((0, 4), calls):
        torch.testing.assert_close(steps.scale, searched_steps(flat, H, grid).scale, rtol=0, atol=1e-12)
        rows = [6 * head + i for head in range(2) for i in range(start, min(start + 4, 6))]
        assert torch.equal(found.steps.scale[rows], steps.scale)
    fixed = boa(W, H, H_out, grid, rows=4, refine=0, damping=0.0, adaptive=False)
    assert torch.equal(fixed.steps.scale, searched_steps(W, H, grid).scale)
    assert not torch.equal(fixed.steps.scale, found.steps.scale)


@pytest.mark.parametrize("held", [100, 1 << 19])  # numbers at a time: with few, most candidates are dropped early
def test_search_finds_the_best_of_all_candidates(monkeypatch, held):
    monkeypatch.setattr(_search, "HELD", held)
    W, H, _, _ = layer()
    found = searched_steps(W, H, ASYMMETRIC)
    for row, scale, zero in zip(W.numpy(), found.scale[:, 0], found.zero[:, 0]):
        assert (float(scale), float(zero)) == pytest.approx(naive.searched(row, H.numpy(), 3))
    groups = searched_steps(W, H, Grid(3, "group", 5))
    for i in range(2):
        part = slice(5 * i, 5 * i + 5)
        alone = searched_steps(W[:, part], H[part, part], Grid(3))
        torch.testing.assert_close(groups.scale[:, i], alone.scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["full", "narrow", "asymmetric", "clamped", "free"])
def test_searched_steps_are_no_worse_than_those_of_the_range(rule):
    W, H, _, _ = layer()
    grid = Grid(3, rule=rule)
    for search, error in (
        ("hessian", lambda V: ((W - V) @ H * (W - V)).sum(1)),
        ("mse", lambda V: (W - V).abs().pow(2.4).sum(1)),
    ):
        best, plain = (error(grid.rounded(W, searched_steps(W, H, grid, how))) for how in (search, "minmax"))
        assert (best <= plain + 1e-12).all()
        assert best.sum() < plain.sum()


@pytest.mark.parametrize("corrected", [False, True])
def test_each_step_is_refined_to_its_optimum_given_the_others(corrected):
    W, H, H_out, R = layer(heads=1)
    R = R if corrected else None
    settings = {"damping": 0.0, "cross": R, "alpha": 1.0, "rows": 3}
    plain = boa(W, H, H_out, ASYMMETRIC, refine=0, **settings)
    codes = ASYMMETRIC.codes(plain.weight, plain.steps)
    steps = plain.steps.scale.clone()

    def of(scale):
        V = ASYMMETRIC.values(codes, Steps(scale, plain.steps.zero), W.shape)
        return cost(W, V, H, H_out, R)

    for row in range(6):

        def along(s, row=row):
            return of(torch.cat([steps[:row], torch.tensor([[s]]), steps[row + 1 :]]))

        best = minimize_scalar(along, bracket=(0.5 * float(steps[row, 0]), float(steps[row, 0])), tol=1e-12)
        assert best.fun <= of(steps)
        steps[row] = best.x
    refined = boa(W, H, H_out, ASYMMETRIC, refine=1, **settings)
    assert torch.equal(ASYMMETRIC.codes(refined.weight, refined.steps), codes)
    torch.testing.assert_close(refined.steps.scale, steps, rtol=1e-6, atol=0)
    costs = [cost(W, boa(W, H, H_out, ASYMMETRIC, refine=n, **settings).weight, H, H_out, R) for n in range(4)]
    assert all(np.diff(costs) < 0)


def test_rows_that_do_not_meet_are_refined_in_closed_form():
    W, H, _, R = layer(heads=1)
    settings = {"damping": 0.0, "cross": R, "alpha": 1.0}
    alone = boa(W, H, None, ASYMMETRIC, refine=1, **settings)
    eye = torch.eye(6, dtype=torch.float64)[None]
    same = boa(W, H, eye, ASYMMETRIC, refine=1, rows=6, **settings)
    torch.testing.assert_close(alone.weight, same.weight, rtol=0, atol=1e-12)
    plain = boa(W, H, None, ASYMMETRIC, refine=0, **settings)
    assert cost(W, alone.weight, H, eye, R) < cost(W, plain.weight, H, eye, R)


def test_a_row_of_zeros_keeps_its_step():
    W, H, H_out, _ = layer(heads=1)
    W[2] = 0
    for out in (H_out, None):
        steps = Grid(3).steps(W)
        found = boa(W, H, out, Grid(3), steps=steps, rows=6)
        assert found.weight[2].abs().max() == 0
        assert found.steps.scale[2] == steps.scale[2]
        assert found.weight.isfinite().all()


def test_heads_with_inputs_of_their_own_are_rounded_alone():
    W, H, _, R = layer()
    both = torch.stack([H, H + torch.diag(torch.arange(10.0, dtype=torch.float64))])
    for grid, refine in ((ASYMMETRIC, 1), (Grid(3, "tensor"), 0)):
        found = boa(W, both, None, grid, cross=R, refine=refine)
        steps = [None] * 2 if grid.per == "channel" else [grid.steps(W)] * 2
        alone = [boa(W[6 * i : 6 * i + 6], both[i], None, grid, cross=R, steps=steps[i], refine=refine) for i in (0, 1)]
        assert torch.equal(found.weight, torch.cat([one.weight for one in alone]))
        torch.testing.assert_close(grid.rounded(found.weight, found.steps), found.weight)


def test_it_beats_gptq_on_its_objective():
    gains = []
    for seed in range(8):
        W, H, H_out, _ = layer(heads=2, d=16, inputs=24, seed=seed)
        steps = ASYMMETRIC.steps(W)
        errors = [
            cost(W, V.weight, H, H_out)
            for V in (
                gptq(W, H, ASYMMETRIC, steps=steps),
                boa(W, H, H_out, ASYMMETRIC, rows=1, steps=steps, refine=0),
                boa(W, H, H_out, ASYMMETRIC, rows=4, steps=steps, refine=0),
                boa(W, H, H_out, ASYMMETRIC, rows=4),
            )
        ]
        gains.append([error / errors[0] for error in errors])
    _, one, four, turbo = np.mean(gains, axis=0)
    assert one < four < 0.9
    assert turbo < four


def test_errors_of_inputs_are_corrected():
    ratios = []
    for seed in range(8):
        W, H, H_out, R = layer(d=16, inputs=24, seed=seed)
        H, R = 10 * H, 10 * R  # the unit does not matter
        plain, half, whole = (boa(W, H, H_out, ASYMMETRIC, cross=R, alpha=a, damping=0.0) for a in (0, 0.25, 1))
        assert torch.equal(plain.weight, boa(W, H, H_out, ASYMMETRIC, damping=0.0).weight)
        costs = [cost(W, V.weight, H, H_out, R) for V in (plain, half, whole)]
        full = cost(W, torch.zeros_like(W), H, H_out)
        ratios.append([(one - costs[0]) / full for one in costs])
    _, half, whole = np.mean(ratios, axis=0)
    assert whole < half < 0


def test_what_it_is_given_stays_as_it_is():
    W, H, H_out, R = layer()
    given = [W, H, H_out, R]
    copies = [one.clone() for one in given]
    boa(W, H, H_out, ASYMMETRIC, cross=R, order_rows=True)
    assert all(torch.equal(a, b) for a, b in zip(given, copies))
    found = boa(W.float(), H.float(), H_out.float(), ASYMMETRIC, cross=R.float())
    assert found.weight.dtype == torch.float32


def test_unused_inputs_and_heads_that_nobody_reads():
    W, H, H_out, _ = layer()
    H[3], H[:, 3], H_out[1] = 0, 0, 0
    found = boa(W, H, H_out, ASYMMETRIC)
    assert found.weight.isfinite().all()
    assert found.weight[:, 3].abs().max() == 0
    torch.testing.assert_close(found.weight[6:], boa(W[6:], H, None, ASYMMETRIC).weight, rtol=0, atol=0.8)


def test_damping_adds_to_both_diagonals_and_more_where_that_is_not_enough():
    W, H, H_out, R = layer()
    eye, own = torch.eye(10, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    mean = H_out.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damped = H + 0.3 * H.diagonal().mean() * eye, H_out + 0.3 * mean * own
    expected = boa(W, *damped, ASYMMETRIC, cross=R, rows=4, damping=0.0)
    found = boa(W, H, H_out, ASYMMETRIC, cross=R, rows=4, damping=0.3)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=1e-10)
    assert not torch.allclose(found.weight, boa(W, H, H_out, ASYMMETRIC, cross=R, rows=4, damping=0.0).weight)
    few = torch.ones(2, 6, 6, dtype=torch.float64)  # of keys that are all the same
    assert boa(W, H, few, ASYMMETRIC, rows=2, damping=0.0).weight.isfinite().all()
    with pytest.raises(BadInput, match="head 1 is not positive definite"):
        boa(W, H, torch.stack([own, -own]), ASYMMETRIC)


def test_what_does_not_fit_is_refused():
    W, H, H_out, _ = layer()
    with pytest.raises(BadInput, match="heads d = 12"):
        boa(W, H, H_out[:1], ASYMMETRIC)
    with pytest.raises(BadInput, match="'rows' is a number of rows"):
        boa(W, H, H_out, ASYMMETRIC, rows=0)
    with pytest.raises(BadInput, match="per 'channel'"):
        boa(W, H, H_out, Grid(3, "input", 6))
    with pytest.raises(BadInput, match="do not make 5 heads"):
        boa(W, H.expand(5, 10, 10), None, ASYMMETRIC)
    with pytest.raises(UnknownName, match="hessian"):
        boa(W, H, H_out, ASYMMETRIC, search="hesian")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("grid", [ASYMMETRIC, Grid(3), Grid(2, "group", 8)])
def test_gpu(grid):
    W, H, H_out, R = layer(heads=3, d=16, inputs=40)
    for out in (H_out, None):
        here = boa(W, H, out, grid, rows=8, cross=R)
        there = boa(*(None if one is None else one.cuda() for one in (W, H, out)), grid, rows=8, cross=R.cuda())
        assert there.weight.is_cuda
        torch.testing.assert_close(there.weight.cpu(), here.weight, rtol=0, atol=1e-8)


def rotations(T, D, base=10_000):
    """RoPE by halves: ``R_t`` (T, D, D) turns channels i and i + D/2 by ``t base^(-2i/D)``."""
    R = np.zeros((T, D, D))
    for t in range(T):
        for i in range(D // 2):
            a = t * base ** (-2 * i / D)
            R[t, i, i] = R[t, i + D // 2, i + D // 2] = np.cos(a)
            R[t, i, i + D // 2], R[t, i + D // 2, i] = -np.sin(a), np.sin(a)
    return R


def small_llama(attention, **changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 4, "vocab_size": 50}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2, **changes)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = transformers.LlamaModel(config).eval().double()
    return model, model.layers[0].self_attn


def given(modules, run):
    """Return inputs and outputs of modules in a run."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return {name: [x.double().numpy() for x in both] for name, both in seen.items()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hessians_with_rope_and_shared_keys_are_those_of_the_formula(attention):
    model, layer = small_llama(attention)
    maps = {"q": layer.q_proj, "k": layer.k_proj, "v": layer.v_proj}
    batches = [torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    found = attention_hessians(model, batches, query=maps["q"], key=maps["k"], value=maps["v"])
    assert found["q"].rows.tolist() == np.arange(24).reshape(6, 4).tolist()
    assert found["k"].rows.tolist() == found["v"].rows.tolist() == np.arange(8).reshape(2, 4).tolist()
    R, hidden = rotations(7, 4), np.triu(np.ones((7, 7), bool), 1)
    q_expected, k_expected, v_expected = np.zeros((6, 4, 4)), np.zeros((2, 4, 4)), np.zeros((2, 24, 24))
    for batch in batches:
        seen = given(maps, lambda batch=batch: model(batch))
        for at in range(2):
            X = seen["v"][0][at]
            q, k = (np.einsum("tij,thj->hti", R, seen[name][1][at].reshape(7, -1, 4)) for name in "qk")
            for head in range(6):
                shared = head // 3
                q_expected[head] += naive.attention_hessian(k[shared], R) / 4
                k_expected[shared] += naive.attention_hessian(q[head], R) / 4
                scores = np.where(hidden, -np.inf, q[head] @ k[shared].T / 2)
                A = np.exp(scores - scores.max(1, keepdims=True))
                mixed = A / A.sum(1, keepdims=True) @ X
                v_expected[shared] += 2 / 28 * mixed.T @ mixed
    for name, expected in (("q", q_expected), ("k", k_expected), ("v", v_expected)):
        np.testing.assert_allclose(found[name].hessian, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_gpu_finds_the_same_hessians():
    model, layer = small_llama("sdpa")
    ids, found = torch.randint(0, 50, (3, 7)), []
    for device in ("cpu", "cuda"):
        model.to(device)
        maps = {"query": layer.q_proj, "key": layer.k_proj, "value": layer.v_proj}
        found.append(attention_hessians(model, [ids.to(device)], **maps))
    for here, there in zip(*(one.values() for one in found)):
        torch.testing.assert_close(there.hessian.cpu(), here.hessian, rtol=1e-4, atol=1e-6)


def test_hessians_without_rope_are_products_of_keys_and_leave_padding_out():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 6}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50)).eval()
    layer = model.encoder.layer[0].attention.self
    maps = {"q": layer.query, "k": layer.key, "v": layer.value}
    ids, mask = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0

    def run(ids):
        return model(input_ids=ids, attention_mask=mask)

    found = attention_hessians(run, [ids], query=maps["q"], key=maps["k"], value=maps["v"], keep=[mask.bool()])
    seen, keep = given(maps, lambda: run(ids)), mask.bool().flatten().numpy()
    q, k = (seen[name][1].reshape(14, 6, 4) for name in "qk")
    for word, other in (("q", k), ("k", q)):
        expected = np.zeros((6, 4, 4))
        for at, length in ((0, 7), (1, 4)):  # each sequence counts for as many queries as it has
            some = other[7 * at : 7 * at + length]
            expected += 2 / 11 * length * np.einsum("thi,thj->hij", some, some)
        np.testing.assert_allclose(found[word].hessian, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    flat = attention_hessians(run, [ids], query=maps["q"], key=maps["k"], keep=[mask.bool().flatten()])
    assert torch.equal(flat["q"].hessian, found["q"].hessian)
    assert keep.sum() == 11
    alone = given(maps, lambda: run(ids))["v"][0]
    probs = []
    for at, length in ((0, 7), (1, 4)):
        scores = np.einsum("thi,shi->hts", *(x[7 * at : 7 * at + length] for x in (q, k))) / 2
        A = np.exp(scores)
        probs.append(A / A.sum(2, keepdims=True) @ alone[at, :length])
    expected = 2 / 11 * sum(mixed.transpose(0, 2, 1) @ mixed for mixed in probs)
    np.testing.assert_allclose(found["v"].hessian, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_projections_that_are_one_map_are_told_apart():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=3, vocab_size=50
    )
    model = transformers.GPTNeoXModel(config).eval()
    fused = model.layers[0].attention.query_key_value
    found = attention_hessians(model, [torch.randint(0, 50, (2, 7))], query=fused, key=fused, value=fused)
    for word, start in zip("qkv", (0, 8, 16)):  # heads one after another, each its query, key and value
        assert found[word].rows.tolist() == [list(range(start + 24 * i, start + 24 * i + 8)) for i in range(3)]
    assert found["v"].hessian.shape == (3, 24, 24)
    maps = {name: module for name, module in model.layers[0].named_modules() if isinstance(module, torch.nn.Linear)}
    which = attention_maps(model, torch.randint(0, 50, (2, 7)), maps)
    assert which == dict.fromkeys("qkv", "attention.query_key_value")


def test_of_a_norm_of_queries_the_jacobian_at_the_tokens_counts():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        vocab_size=50,
    )
    model = transformers.Qwen3Model(config).eval()
    layer, data = model.layers[0].self_attn, [torch.randint(0, 50, (2, 5)) for _ in range(2)]
    found = attention_hessians(model, data, query=layer.q_proj, key=layer.k_proj)
    R = rotations(5, 4, base=config.rope_parameters["rope_theta"])
    expected = np.zeros((2, 4, 4))
    for ids in data:
        maps = {"q": layer.q_proj, "norm": layer.k_norm}
        seen = given(maps, lambda ids=ids: model(ids))
        for at in range(2):
            keys = np.einsum("tij,tj->ti", R, seen["norm"][1][at, :, 0])
            for t, head in np.ndindex(5, 2):
                query = torch.tensor(seen["q"][1][at, t].reshape(2, 4)[head], dtype=torch.float32)
                J = R[t] @ torch.autograd.functional.jacobian(layer.q_norm, query).numpy()
                expected[head] += 2 / 20 * J.T @ keys.T @ keys @ J
    np.testing.assert_allclose(found["q"].hessian, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_attention_that_is_not_seen_is_said_so():
    model, layer = small_llama("sdpa")
    ids = torch.randint(0, 50, (1, 7))
    with pytest.raises(BadInput, match="1 products of attention were seen"):
        attention_hessians(model, [ids], query=model.layers[0].mlp.up_proj, key=layer.k_proj)
    with pytest.raises(BadInput, match="no batches"):
        attention_hessians(model, [], query=layer.q_proj, key=layer.k_proj)


def test_errors_of_what_values_read_are_mixed_like_it():
    model, layer = small_llama("sdpa")
    ids = torch.randint(0, 50, (2, 7))
    x = given({"v": layer.v_proj}, lambda: model(ids))["v"][0]
    maps = {"query": layer.q_proj, "key": layer.k_proj, "value": layer.v_proj}
    found = attention_hessians(model, [ids], **maps, full=lambda ids: 3 * torch.tensor(x))["v"]
    torch.testing.assert_close(found.cross, 2 * found.hessian, rtol=1e-5, atol=1e-5)
    assert attention_hessians(model, [ids], **maps)["v"].cross is None


def small_model(kind="Llama", **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, vocab_size=50, **changes)
    return getattr(transformers, f"{kind}Model")(config).eval()


def with_correlated_heads(model, seed=0):
    """Mix the channels of each head, so that they carry little but a few directions, as those of trained models do."""
    draw = torch.Generator().manual_seed(seed)
    for block in model.encoder.layer:
        for one in (block.attention.self.query, block.attention.self.key):
            heads = one.weight.data.unflatten(0, (-1, 8))
            mix = torch.randn(len(heads), 8, 8, generator=draw) * torch.logspace(0, -1.5, 8)
            one.weight.data = 3 * (mix @ heads).flatten(0, 1)
    return model


def batches(seed=0, count=4):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (4, 24), generator=draw) for _ in range(count)]


def scores(model, ids):
    """What heads make of queries and keys, of each product."""
    found, kept = [], []
    with torch.no_grad(), Products(lambda word, x: kept.append(x), lambda shape, make: None):
        model(ids)
    for q, k in zip(kept[::3], kept[1::3]):
        found.append(q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT)
    return found


PLAIN = {"alpha": 0.0, "adaptive": False, "refine": 0}
AS_GPTQ = {**PLAIN, "attention": False, "values": False}


def test_the_recipe_without_all_it_adds_is_gptq():
    model = small_model(num_key_value_heads=2)
    for scheme in ("w3a16-asym", "w4a8g16"):
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        quantize(ours, TurboBoA(**AS_GPTQ, search="minmax"), scheme, batches())
        quantize(theirs, "gptq", scheme, batches())
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters()):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


def test_scores_change_less_than_with_gptq_and_with_each_addition():
    model = with_correlated_heads(small_model("Bert"))
    expected = scores(model, batches(9)[0])
    ratios = []
    for seed in range(2):
        errors = []
        for settings in (
            AS_GPTQ,
            {**PLAIN, "rows": 1},
            {**PLAIN, "rows": 4},
            {"rows": 4, "adaptive": False},
            {"rows": 4},
        ):
            done = copy.deepcopy(model)
            quantize(done, TurboBoA(**settings), "w2a16-asym", batches(seed))
            got = scores(done, batches(9)[0])
            errors.append(sum(float((x - y).square().sum()) for x, y in zip(got, expected)))
        ratios.append(np.array(errors[1:]) / errors[0])
    one, four, refined, turbo = np.mean(ratios, axis=0)
    assert one < 0.75
    assert four < 0.9
    assert four > refined > turbo


def test_the_cross_term_is_that_of_what_maps_read(monkeypatch):
    model = small_model(num_key_value_heads=2)
    done, seen = copy.deepcopy(model), []

    def watched(weight, hessian_in, hessian_out, grid, **settings):
        seen.append((hessian_in, settings["cross"]))
        return boa(weight, hessian_in, hessian_out, grid, **settings)

    monkeypatch.setattr(turboboa, "boa", watched)
    data = batches()
    quantize(done, TurboBoA(), "w3a16-asym", data)
    hessian, cross = 0, 0  # of the last map: all before it is rounded when its turn comes
    for ids in data:
        full, x = (given({"down": one.layers[1].mlp.down_proj}, lambda one=one: one(ids)) for one in (model, done))  # noqa: B023
        full, x = (one["down"][0].reshape(-1, 64) for one in (full, x))
        hessian, cross = hessian + x.T @ x * 2 / 384, cross + (full - x).T @ x * 2 / 384
    np.testing.assert_allclose(seen[-1][0], hessian, rtol=0, atol=1e-4 * np.abs(hessian).max())
    np.testing.assert_allclose(seen[-1][1], cross, rtol=0, atol=1e-4 * np.abs(cross).max())
    assert [len(h_in.shape) for h_in, _ in seen[:3]] == [2, 2, 3]  # values have one for each head
    assert np.abs(cross).max() > 1e-3 * np.abs(hessian).max()


@pytest.mark.parametrize("scheme", ["w3a16-asym", "w4a16g16", "fp8-tensor", "mxfp4a16", "nvfp4a16"])
@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX", "Bert"])
def test_weights_stand_on_their_grid(kind, scheme):
    model = small_model(kind)
    found = quantize(model, {"recipe": "turboboa", "rows": 4}, scheme, batches())
    assert len(found.maps) == {"Llama": 14, "GPTNeoX": 8, "Bert": 12}[kind]
    for module in found.maps.values():
        rounded = module.rounded
        on_grid = rounded.grid.rounded(rounded.weight, rounded.steps)
        torch.testing.assert_close(on_grid, rounded.weight, rtol=0, atol=1e-6)
    assert recipe_of(found.recipe) == TurboBoA(rows=4)


def test_maps_without_an_attention_are_rounded_with_a_word_about_it():
    block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))  # noqa: E731
    model = torch.nn.Sequential(block(), block())
    x = torch.randn(4, 64, 16)
    with pytest.warns(UserWarning, match="no attention was seen in '0'"):
        found = quantize(model, "turboboa", "w3a16", [x])
    assert len(found.maps) == 2
    with pytest.raises(BadInput, match="share steps of an input"):
        TurboBoA().check(type("Scheme", (), {"weights": Grid(3, "input", 16)}))
