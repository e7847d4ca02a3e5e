"""AutoOD's networks: autoencoders with one of four definitions of what is far out.

Shapes: B rows of a batch, C columns, W units of the innermost layer, K clusters or components. All of it is float64,
since a score must not depend on the batch in which its row stands.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from farout.table._autood_space import Configuration

GROUPS = 4  # K: clusters, or components of the mixture
CENTROID_RECONSTRUCTION = 1.0  # lambda
DENSITY_RECONSTRUCTION = 10.0  # lambda1; this and the next are DAGMM's weights, with that of the energy as the unit
DENSITY_PENALTY = 0.05  # lambda2
FLAT = 1e-4  # least variance of a component

_ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
}


class Child(torch.nn.Module):
    """A mirrored autoencoder; ``loss`` and ``score`` follow the configuration's definition of outliers.

    Parameters
    ----------
    configuration : Configuration
    columns : int
        C.
    """

    centre: torch.Tensor
    shares: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    def __init__(self, configuration: Configuration, columns: int) -> None:
        super().__init__()
        self.definition, self.distance = configuration.definition, configuration.distance
        self.layers = configuration.layers
        levels = [columns, *(width for width, _, _ in self.layers)]
        # with a bias, f(x) = c for all x would be learned and nothing would be far out
        biased = self.definition != "centroid"
        self.encoder = torch.nn.ModuleList(_linear(a, b, biased) for a, b in pairwise(levels))
        self.decoder = torch.nn.ModuleList(_linear(b, a, True) for a, b in pairwise(levels))
        self.encoder_norms = torch.nn.ModuleList(_norm(norm, width) for width, norm, _ in self.layers)
        self.decoder_norms = torch.nn.ModuleList(_norm(norm, width) for width, norm, _ in self.layers[:-1])
        width = levels[-1]
        if self.definition == "centroid":
            self.register_buffer("centre", torch.zeros(width, dtype=torch.float64))
        elif self.definition == "cluster":
            self.centres = torch.nn.Parameter(torch.zeros(GROUPS, width, dtype=torch.float64))
        elif self.definition == "density":
            self.memberships = torch.nn.ModuleList([_linear(width + 2, 10, True), _linear(10, GROUPS, True)])
            self.register_buffer("shares", torch.ones(GROUPS, dtype=torch.float64))
            self.register_buffer("means", torch.zeros(GROUPS, width + 2, dtype=torch.float64))
            self.register_buffer("variances", torch.ones(GROUPS, width + 2, dtype=torch.float64))

    def encode(self, x_BC: torch.Tensor) -> torch.Tensor:
        """Return f(x), (B, W)."""
        for linear, norm, (_, _, activation) in zip(self.encoder, self.encoder_norms, self.layers):
            x_BC = _ACTIVATIONS[activation](norm(linear(x_BC)))
        return x_BC

    def decode(self, z_BW: torch.Tensor) -> torch.Tensor:
        """Return g(z), (B, C)."""
        for level in range(len(self.layers) - 1, 0, -1):
            z_BW = self.decoder_norms[level - 1](self.decoder[level](z_BW))
            z_BW = _ACTIVATIONS[self.layers[level - 1][2]](z_BW)
        return self.decoder[0](z_BW)

    def loss(self, x_BC: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row (B,), with D the distance, f the encoder and g the decoder.

        - reconstruction: ``D(x, g(f(x)))``
        - centroid: ``D(f(x), c) + lambda D(x, g(f(x)))``
        - cluster: ``sum_j p_j log(p_j / q_j) + D(x, g(f(x)))``
        - density: ``E(z) + lambda1 D(x, g(f(x))) + lambda2 sum 1 / variances``
        """
        z_BW = self.encode(x_BC)
        back_BC = self.decode(z_BW)
        error_B = distance(self.distance, x_BC, back_BC)
        if self.definition == "reconstruction":
            return error_B
        if self.definition == "centroid":
            return distance(self.distance, z_BW, self.centre) + CENTROID_RECONSTRUCTION * error_B
        if self.definition == "cluster":
            q_BK = soft_assignment(self._to_centres(z_BW))
            p_BK = sharpened(q_BK).detach()
            return (p_BK * (torch.log(p_BK + 1e-12) - torch.log(q_BK + 1e-12))).sum(dim=1) + error_B
        features = self._features(x_BC, z_BW, back_BC)
        shares, means, variances = self._components(features)
        penalty = DENSITY_PENALTY * (1 / variances).sum()
        return energy(features, shares, means, variances) + DENSITY_RECONSTRUCTION * error_B + penalty

    def score(self, x_BC: torch.Tensor) -> torch.Tensor:
        """Return how far out each row is (B,): its error, distance to the (nearest) centre, or energy."""
        z_BW = self.encode(x_BC)
        if self.definition == "centroid":
            return distance(self.distance, z_BW, self.centre)
        if self.definition == "cluster":
            return self._to_centres(z_BW).min(dim=1).values
        back_BC = self.decode(z_BW)
        if self.definition == "reconstruction":
            return distance(self.distance, x_BC, back_BC)
        return energy(self._features(x_BC, z_BW, back_BC), self.shares, self.means, self.variances)

    @torch.no_grad()
    def begin(self, x_BC: torch.Tensor, seed: int) -> None:
        """Set the centre, or the centres of clusters, from the embeddings before training."""
        self.train()
        z_BW = self.encode(x_BC)
        if self.definition == "centroid":
            self.centre.copy_(z_BW.mean(dim=0))
        elif self.definition == "cluster":
            self.centres.copy_(_k_means(z_BW, np.random.default_rng(seed)))

    @torch.no_grad()
    def finish(self, x_BC: torch.Tensor) -> None:
        """Fix the statistics of batch normalisation, and the components of the mixture, from rows after training."""
        self.train()
        self.loss(x_BC)  # batch normalisation keeps the statistics of the last batch only, which these rows are
        self.eval()
        if self.definition == "density":
            z_BW = self.encode(x_BC)
            found = self._components(self._features(x_BC, z_BW, self.decode(z_BW)))
            for buffer, value in zip((self.shares, self.means, self.variances), found):
                buffer.copy_(value)

    def _to_centres(self, z_BW: torch.Tensor) -> torch.Tensor:
        return distance(self.distance, z_BW[:, None], self.centres)

    def _features(self, x_BC: torch.Tensor, z_BW: torch.Tensor, back_BC: torch.Tensor) -> torch.Tensor:
        """Return the error (on a logarithmic scale), the cosine of row and reconstruction, and the embedding."""
        error_B = torch.log1p(distance(self.distance, x_BC, back_BC))
        cosine_B = F.cosine_similarity(x_BC, back_BC, dim=1)
        return torch.cat((error_B[:, None], cosine_B[:, None], z_BW), dim=1)

    def _components(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return shares (K,), means and variances (K, W + 2) of the mixture, weighted by soft memberships."""
        first, second = self.memberships
        belongs_BK = torch.softmax(second(torch.tanh(first(features))), dim=1)
        weight_K1 = belongs_BK.sum(dim=0)[:, None] + 1e-12
        means = belongs_BK.T @ features / weight_K1
        spread = ((features[:, None] - means) ** 2 * belongs_BK[:, :, None]).sum(dim=0) / weight_K1
        return weight_K1[:, 0] / len(features), means, spread + FLAT


def distance(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ``sum |a - b|`` ('l1'), ``sum (a - b)^2`` ('l2') or its root ('l21', the l2,1 norm of a batch by row)."""
    if kind == "l1":
        return (a - b).abs().sum(dim=-1)
    return ((a - b) ** 2).sum(dim=-1) if kind == "l2" else torch.linalg.vector_norm(a - b, dim=-1)


def soft_assignment(distances_BK: torch.Tensor) -> torch.Tensor:
    """Return ``q_j = (1 + D_j)^-1``, normalised over clusters: Student's t kernel with one degree of freedom."""
    kernel = 1 / (1 + distances_BK)
    return kernel / kernel.sum(dim=1, keepdim=True)


def sharpened(q_BK: torch.Tensor) -> torch.Tensor:
    """Return the target ``p_j = q_j^2 / f_j``, normalised over clusters; f_j is the sum of q_j over the batch."""
    weight = q_BK**2 / (q_BK.sum(dim=0) + 1e-12)
    return weight / weight.sum(dim=1, keepdim=True)


def energy(features: torch.Tensor, shares: torch.Tensor, means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Return ``-log sum_k share_k N(features; mean_k, diag variance_k)``, (B,)."""
    squares = ((features[:, None] - means) ** 2 / variances).sum(dim=2)
    constants = torch.log(shares) - 0.5 * torch.log(2 * torch.pi * variances).sum(dim=1)
    return -torch.logsumexp(constants - 0.5 * squares, dim=1)


def _linear(inputs: int, outputs: int, biased: bool) -> torch.nn.Linear:
    """Return a layer whose weights are still to be filled in, so that torch's generator is left alone."""
    return torch.nn.utils.skip_init(torch.nn.Linear, inputs, outputs, bias=biased, dtype=torch.float64)


def _norm(kind: str, width: int) -> torch.nn.Module:
    if kind == "batch":
        return _BatchNorm(width, momentum=1.0, affine=False, dtype=torch.float64)
    # the units of a row are the pixels of an image's one channel
    return torch.nn.LayerNorm(width, elementwise_affine=False) if kind == "instance" else torch.nn.Identity()


class _BatchNorm(torch.nn.BatchNorm1d):
    """Batch normalisation that leaves a batch of one row, which has no variance, to the statistics of the last one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(x)


def _k_means(z_BW: torch.Tensor, rng: np.random.Generator, rounds: int = 10) -> torch.Tensor:
    """Return GROUPS centres: drawn rows, moved by Lloyd's rounds; a centre that is nearest to no row stays."""
    centres = z_BW[rng.integers(len(z_BW), size=GROUPS)].clone()
    for _ in range(rounds):
        nearest = torch.cdist(z_BW, centres).argmin(dim=1)
        for k in range(GROUPS):
            if (nearest == k).any():
                centres[k] = z_BW[nearest == k].mean(dim=0)
    return centres
