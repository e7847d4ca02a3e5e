"""Local-Prompt: losses against loops, regions and learned words against a CLIP model run by hand, and learning."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.ood._dual_encoder import DualEncoder  # noqa: E402
from farout.ood._regions import (  # noqa: E402
    diversity,
    local_loss,
    negative_loss,
    random_crops,
    regional_confidence,
)
from farout.ood.local_prompt import LocalPrompt  # noqa: E402

WORDS = ["X", ".", "a", "photo", "of", "red", "green", "blue", "box"]
BEGIN, END = len(WORDS), len(WORDS) + 1
CLASSES = ("red box", "green box", "blue")


def tokenize(texts: list[str]) -> torch.Tensor:
    rows = [[BEGIN, *(WORDS.index(w) for w in text.replace(".", " .").split()), END] for text in texts]
    length = max(map(len, rows))
    return torch.tensor([row + [END] * (length - len(row)) for row in rows])


def clip(seed: int = 0) -> nn.Module:
    """A CLIP of two small towers with random weights and lively norms."""
    torch.manual_seed(seed)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
    text = {"vocab_size": END + 1, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 24}
    text |= {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": END}
    image = {"image_size": 16, "patch_size": 4, "hidden_size": 20, "intermediate_size": 28}
    config = transformers.CLIPConfig(text_config=text | tower, vision_config=image | tower, projection_dim=12)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def images(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def prompt(**options) -> LocalPrompt:
    small = {"context": 3, "negatives": 5, "regions": 4, "crops": 6, "positives": 2}
    return LocalPrompt(clip(), CLASSES, tokenize, images(1), **(small | options))


def logits(B=2, R=6, C=3, N=4, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(B, R, C, generator=drawn), 3 * torch.randn(B, R, N, generator=drawn)


def test_one_region_and_no_negatives_is_cross_entropy():
    a, b = logits(R=1, N=0)
    labels = torch.tensor([2, 0])
    torch.testing.assert_close(local_loss(a, b, labels, regions=1), F.cross_entropy(a[:, 0], labels))
    torch.testing.assert_close(
        local_loss(a, b, labels, regions=1, temperature=2.0), F.cross_entropy(a[:, 0] / 2, labels)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_losses_are_those_of_loops(temperature):
    (a, b), labels, k = logits(), [2, 0], 3
    local, negative = [], []
    for i, y in enumerate(labels):
        largest = [sorted(a[i, :, c].tolist())[-k:] for c in range(3)]
        theirs = [sorted(b[i, :, j].tolist())[-k:] for j in range(4)]
        powers = [sum(math.exp(v / temperature) for v in values) for values in largest + theirs]
        local.append(-math.log(powers[y] / sum(powers)))
        at = sorted(range(6), key=lambda r: float(a[i, r, y]))[-k:]
        mass = sum(math.exp(float(b[i, r, j]) / temperature) for r in at for j in range(4))
        negative.append(-math.log(mass / (mass + sum(powers[:3]))))
    given = (a, b, torch.tensor(labels), k, temperature)
    assert float(local_loss(*given)) == pytest.approx(sum(local) / 2, rel=1e-5)
    assert float(negative_loss(*given)) == pytest.approx(sum(negative) / 2, rel=1e-5)


def test_the_negative_loss_falls_as_negatives_rise_where_the_label_looks():
    a, b = logits()
    labels = torch.tensor([2, 0])
    at = a[torch.arange(2), :, labels].topk(3, dim=1).indices
    raised, elsewhere = b.clone(), b + 2
    raised[torch.arange(2)[:, None], at] += 2
    elsewhere[torch.arange(2)[:, None], at] -= 2
    before = negative_loss(a, b, labels, 3)
    assert negative_loss(a, raised, labels, 3) < before
    torch.testing.assert_close(negative_loss(a, elsewhere, labels, 3), before)


def test_losses_bear_large_logits_and_more_regions_than_there_are():
    a, b = logits()
    labels = torch.tensor([2, 0])
    for loss in (local_loss, negative_loss):
        assert torch.isfinite(loss(100 * a, 100 * b, labels, 50))
        torch.testing.assert_close(loss(a, b, labels, 50), loss(a, b, labels, 6))


def test_diversity_of_orthogonal_and_of_equal_prompts():
    N = 6
    assert float(diversity(torch.eye(N))) == pytest.approx(1 / (N - 1))
    assert float(diversity(F.normalize(torch.ones(N, 3), dim=1))) == pytest.approx(N / (N - 1))


def test_the_regional_confidence_is_a_mean_of_the_largest_probabilities():
    a, b = logits()
    found = regional_confidence(a, b, regions=5)
    for i in range(2):
        shares = []
        for r in range(6):
            powers = [math.exp(v) for v in a[i, r].tolist()] + [math.exp(v) for v in b[i, r].tolist()]
            shares += [power / sum(powers) for power in powers[:3]]
        assert float(found[i]) == pytest.approx(sum(sorted(shares)[-5:]) / 5, rel=1e-5)
    shift = torch.randn(2, 6, 1)
    torch.testing.assert_close(regional_confidence(a + shift, b + shift, regions=5), found)
    assert (regional_confidence(a, b, regions=5, temperature=1e4) - 1 / 7).abs().max() < 1e-3
    assert float(found.min()) > 0 and float(found.max()) < 1


def test_crops_are_parts_of_their_image():
    x = torch.linspace(0, 1, 16)[None, None, None].expand(2, 3, 16, 16) + torch.tensor([0.0, 10.0])[:, None, None, None]
    crops = random_crops(x, 50, torch.Generator().manual_seed(0))
    assert crops.shape == (50, 2, 3, 16, 16)
    assert float(crops[:, 0].max()) <= 1 and float(crops[:, 1].min()) >= 10
    steps = (crops[:, 0, 0, 0].diff(dim=1)).mean(1) * 15  # the width of the part; negative where it is mirrored
    assert 0.3 < float((steps < 0).float().mean()) < 0.7
    assert float(steps.abs().min()) < 0.5 < float(steps.abs().max())
    whole = random_crops(x, 40, torch.Generator().manual_seed(0), least_area=1.0)
    assert float((whole[:, 0, 0, 0].diff(dim=1)).mean(1).abs().min()) * 15 > 0.8


def by_hand(model, x):
    """Whole and region features of images, attention written out."""
    tower = model.vision_model
    h = tower.pre_layrnorm(tower.embeddings(x))

    def attended(block, h):
        y, attention = block.layer_norm1(h), block.self_attn
        B, T, D = y.shape
        q, k, v = (getattr(attention, f"{n}_proj")(y).view(B, T, 2, D // 2).transpose(1, 2) for n in ("q", "k", "v"))
        mixed = ((q @ k.mT) * (D // 2) ** -0.5).softmax(-1) @ v
        return attention.out_proj(mixed.transpose(1, 2).reshape(B, T, D))

    first, last = tower.encoder.layers
    h = h + attended(first, h)
    h = h + first.mlp(first.layer_norm2(h))
    v = h + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(h)))
    v = v + last.mlp(last.layer_norm2(v))
    h = h + attended(last, h)
    h = h + last.mlp(last.layer_norm2(h))
    whole, regions = (model.visual_projection(tower.post_layernorm(one)) for one in (h[:, 0], v[:, 1:]))
    return F.normalize(whole, dim=-1), F.normalize(regions, dim=-1)


def test_regions_take_the_value_path_of_the_last_block():
    model, x = clip(), images(3)
    whole, regions = DualEncoder(model, images(1)).images(x)
    with torch.no_grad():
        expected = by_hand(model, x)
    assert regions.shape == (3, 16, 12)
    torch.testing.assert_close(whole, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(regions, expected[1], atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_learned_words_stand_in_the_places_of_their_tokens():
    model = clip()
    encoder = DualEncoder(model, images(1))
    ids = tokenize(["X X red box.", "X X blue."])
    table = model.text_model.get_input_embeddings().weight
    spoken = tokenize(["a photo red box.", "of green blue."])
    words = table[spoken[:, 1:3]].detach().clone().requires_grad_()
    found = encoder.texts(ids, words)
    torch.testing.assert_close(found, encoder.texts(spoken))
    expected = model.get_text_features(input_ids=spoken)
    expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))
    found[:, 0].sum().backward()
    assert bool((words.grad.abs().sum(-1) > 0).all())
    assert all(weight.grad is None for weight in model.parameters())
    assert encoder.scale == pytest.approx(float(model.logit_scale.exp())) and encoder.width == 16


def test_only_words_learn_and_all_of_them_do():
    method = prompt()
    assert [name for name, _ in method.named_parameters()] == ["local_words", "negative_words"]
    assert method.local_words.shape == (3, 3, 16) and method.negative_words.shape == (5, 3, 16)
    drawn = torch.cat([method.local_words.flatten(), method.negative_words.flatten()]).detach()
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.2)
    regions = [method.encoder.images(images(4, seed))[1] for seed in (0, 1)]
    losses = method.losses(*regions, torch.tensor([0, 1, 2, 0]))
    assert list(losses) == ["local", "negative", "diversity"]
    for name, also_local in (("local", True), ("negative", True), ("diversity", False)):
        method.zero_grad()
        losses[name].backward(retain_graph=True)
        assert bool((method.negative_words.grad.abs().sum(-1) > 0).all()), name
        assert (method.local_words.grad is not None and bool(method.local_words.grad.abs().sum() > 0)) == also_local


def test_losses_are_scaled_weighted_and_left_out():
    regions = [prompt().encoder.images(images(4, seed))[1] for seed in (0, 1)]
    labels = torch.tensor([0, 1, 2, 0])
    method = prompt(negative_weight=3.0, diversity_weight=0.2)
    local, negative = method.prompts()
    scale = method.encoder.scale
    plain = (
        local_loss(scale * regions[0] @ local.T, scale * regions[0] @ negative.T, labels, 4),
        3 * negative_loss(scale * regions[1] @ local.T, scale * regions[1] @ negative.T, labels, 4),
        0.2 * diversity(negative),
    )
    for found, expected in zip(method.losses(*regions, labels).values(), plain):
        torch.testing.assert_close(found, expected)
    assert list(prompt(negative_weight=0, diversity_weight=0).losses(*regions, labels)) == ["local"]


def test_crops_are_chosen_by_the_global_prompt_of_the_label():
    method = prompt(crops=8, positives=3)
    x, labels = images(4), torch.tensor([0, 1, 2, 1])
    state = method.generator.get_state()
    positive, negative = method.chosen(x, labels)
    crops = random_crops(x, 8, torch.Generator().set_state(state))
    for i, y in enumerate(labels.tolist()):
        whole, regions = method.encoder.images(crops[:, i])
        order = (whole @ method.global_CD[y]).argsort(descending=True)
        torch.testing.assert_close(positive[:, i], regions[order[:3]])
        torch.testing.assert_close(negative[i], regions[order[-1]])


def test_learning_lowers_the_losses_and_scores_are_minus_both_confidences():
    method = prompt(negatives=3, positives=2, crops=4)
    x, labels = images(6), torch.arange(6) % 3
    weights = {name: value.clone() for name, value in method.encoder.model.state_dict().items()}
    started = method.local_words.detach().clone(), method.negative_words.detach().clone()
    shares: list[float] = []
    history = method.fit(x, labels, epochs=6, batch_size=6, learning_rate=0.05, progress=shares.append)
    assert sum(history[-1].values()) < sum(history[0].values())
    assert shares[-1] == 1 and len(history) == 6
    assert not torch.equal(started[0], method.local_words) and not torch.equal(started[1], method.negative_words)
    assert all(torch.equal(value, weights[name]) for name, value in method.encoder.model.state_dict().items())
    both, whole, regional = (method.score(x, use, batch_size=4) for use in ("both", "global", "regional"))
    torch.testing.assert_close(both, whole + regional)
    features, v = method.encoder.images(x)
    torch.testing.assert_close(whole, -(features @ method.global_CD.T).softmax(1).amax(1))
    local, negative = (one.detach() for one in method.prompts())
    torch.testing.assert_close(regional, -regional_confidence(v @ local.T, v @ negative.T, 10))
    method.global_CD = torch.eye(3, 12)
    assert not torch.allclose(method.score(x, "global"), whole)
    assert torch.equal(method.score(x, "regional"), regional)


def test_classes_come_from_the_image_and_its_best_regions_together():
    method, n = prompt(regions=4), 200
    drawn = torch.Generator().manual_seed(0)
    whole, v, local, method.global_CD = (
        F.normalize(torch.randn(shape, generator=drawn), dim=-1) for shape in ((n, 12), (n, 16, 12), (3, 12), (3, 12))
    )
    method.encoder.images = lambda x: (whole[: len(x)], v[: len(x)])
    method.prompts = lambda: (local, None)

    def classes(k: int, use_whole: bool = True) -> torch.Tensor:
        sure = (whole @ method.global_CD.T).exp() if use_whole else 1
        return (sure * (v @ local.T).topk(k, dim=1).values.exp().mean(1)).argmax(1)

    found = method.predict(images(n), batch_size=n)
    assert torch.equal(found, classes(4))
    assert not any(torch.equal(found, other) for other in (classes(1), classes(16), classes(4, use_whole=False)))


def test_each_positive_crop_makes_a_step_of_its_own():
    method = prompt(crops=5, positives=3)
    seen, losses = [], method.losses
    method.losses = lambda *given: seen.append(given) or losses(*given)
    method.fit(images(5), torch.arange(5) % 3, epochs=1, batch_size=3)
    assert [len(labels) for _, _, labels in seen] == [3, 3, 3, 2, 2, 2]
    assert torch.equal(seen[0][1], seen[2][1]) and not torch.equal(seen[0][0], seen[2][0])


def test_the_first_epoch_hardly_learns():
    method = prompt(crops=4)
    before = method.local_words.detach().clone()
    method.fit(images(6), torch.arange(6) % 3, epochs=1, learning_rate=0.5)
    assert 0 < float((method.local_words.detach() - before).abs().max()) < 0.01


def test_what_cannot_be_is_said():
    with pytest.raises(BadInput, match="get_image_features"):
        DualEncoder(nn.Linear(2, 2), images(1))
    for options in ({"negatives": 1}, {"positives": 6}, {"context": 0}, {"regions": 0}):
        with pytest.raises(BadInput, match="the least"):
            prompt(**options)
    with pytest.raises(BadInput, match="hold the place of learned words"):
        LocalPrompt(clip(), CLASSES, lambda texts: tokenize([text[4:] for text in texts]), images(1), context=3)
    method = prompt()
    with pytest.raises(BadInput, match="4 images and 3 labels"):
        method.fit(images(4), torch.arange(3))
    with pytest.raises(UnknownName):
        method.score(images(1), use="local")


def test_a_tower_that_is_another_is_refused():
    model = clip()
    last = model.vision_model.encoder.layers[-1]
    plain = type(last).forward

    def post_norm(hidden_states, *args, **named):
        return 2 * plain(last, hidden_states, *args, **named)

    last.forward = post_norm
    with pytest.raises(BadInput, match="the last block of the image tower"):
        DualEncoder(model, images(1))
    convolutional = clip()
    for layer in convolutional.vision_model.encoder.layers:
        layer.self_attn.value = layer.self_attn._modules.pop("v_proj")
        layer.self_attn.forward = lambda hidden_states, *args, **named: (hidden_states, None)
    with pytest.raises(BadInput, match="no value path"):
        DualEncoder(convolutional, images(1))
