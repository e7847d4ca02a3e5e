"""Backbones: what is taken from a network, and that it stays the same from pass to pass."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from farout.errors import BadInput  # noqa: E402
from farout.image import Backbone  # noqa: E402


class Shared(nn.Module):
    """One activation, called twice, and a layer behind that counts its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.act, self.behind, self.met = nn.ReLU(), nn.Conv2d(4, 4, 1), 0

    def forward(self, x_BCHW):
        x_BCHW = self.act(self.second(self.act(self.first(x_BCHW))))
        self.met += 1
        return self.behind(x_BCHW)


def test_a_layer_that_is_called_twice_gives_its_last_output_in_every_pass():
    torch.manual_seed(0)
    net = Shared()
    backbone, x_BCHW = Backbone(net, ["act"]), torch.rand(2, 3, 64, 64)
    expected = net.act(net.second(net.act(net.first(x_BCHW))))
    for _ in range(3):
        assert torch.equal(backbone(x_BCHW)[0], expected)
    assert backbone.strides == (4,)


def test_what_lies_behind_the_last_layer_runs_once_only():
    net = Shared()
    backbone = Backbone(net, ["first"])
    met = net.met
    backbone(torch.rand(1, 3, 64, 64))
    assert (met, net.met) == (1, 1)


def test_a_backbone_of_another_keeps_its_pixels_and_layers():
    one = Backbone(Shared(), ["first", "behind"], mean=[0.5, 0.4, 0.3], deviation=[0.2, 0.2, 0.1])
    other, x_BCHW = Backbone(one), torch.rand(1, 3, 64, 64)
    assert other.layers == one.layers
    for ours, theirs in zip(other(x_BCHW), one(x_BCHW)):
        assert torch.equal(ours, theirs)
    plain = one.net.first((x_BCHW - one.mean) / one.deviation)
    assert torch.equal(one(x_BCHW)[0], plain)


def test_unknown_layers_are_named():
    with pytest.raises(BadInput, match="no layer \\['nothing'\\]; take some of: first"):
        Backbone(Shared(), ["nothing"])
