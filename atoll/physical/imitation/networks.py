"""The networks, over normalised states and actions. Each maps (state (n, o), pictures by camera (n, h, w, 3) or none)
to a chunk of actions (n, chunk, a), and tells its loss on demonstrated chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT = 16
FLOW_STEPS = 8
KL_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of observation, action, chunk; `width` of hidden layers; names of `cameras`."""

    state: int
    action: int
    chunk: int
    width: int
    cameras: tuple[str, ...] = ()


class Eyes(nn.Module):
    """Pictures to tokens: five convolutions, 64 to 96 pixels become 2x2 or 3x3 tokens a camera, (n, tokens, width)."""

    def __init__(self, cameras: tuple[str, ...], width: int):
        super().__init__()
        self.cameras = cameras
        channels = (3, 16, 32, 64, 64, width)
        layers: list[nn.Module] = []
        for i, (inside, outside) in enumerate(pairwise(channels)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(4, outside)]
            layers += [nn.ReLU()] if i < len(channels) - 2 else []
        self.body = nn.Sequential(*layers)
        self.where = nn.ParameterList([nn.Parameter(0.02 * torch.randn(1, 9, width)) for _ in cameras])

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        seen = []
        for camera, where in zip(self.cameras, self.where, strict=True):
            pixels = images[camera].permute(0, 3, 1, 2).float() / 127.5 - 1
            tokens = self.body(pixels).flatten(2).transpose(1, 2)
            seen.append(tokens + where[:, : tokens.shape[1]])
        return torch.cat(seen, dim=1)


def perceptron(inside: int, width: int, outside: int, layers: int = 3) -> nn.Sequential:
    sizes = [inside, *[width] * layers, outside]
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Cloning(nn.Module):
    """Behaviour cloning: a perceptron from state (and pictures) to a chunk, by mean absolute error."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.eyes = Eyes(sizes.cameras, sizes.width) if sizes.cameras else None
        inside = sizes.state + sizes.width * len(sizes.cameras)
        self.body = perceptron(inside, sizes.width, sizes.chunk * sizes.action)

    def forward(self, state: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        return self.body(_with_eyes(self.eyes, state, images)).view(-1, self.sizes.chunk, self.sizes.action)

    def loss(self, state: Tensor, images: Mapping[str, Tensor], chunk: Tensor, noise: torch.Generator) -> Tensor:
        return F.l1_loss(self(state, images), chunk)


class ActionChunking(nn.Module):
    """ACT (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", RSS 2023), small: a
    transformer from tokens of state, pictures and a latent style to a chunk. While it learns, the style is encoded from
    the demonstrated chunk (a conditional VAE); when it acts, it is zero."""

    def __init__(self, sizes: Sizes, layers: int = 2, heads: int = 4):
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.eyes = Eyes(sizes.cameras, width) if sizes.cameras else None
        self.state, self.latent = nn.Linear(sizes.state, width), nn.Linear(LATENT, width)
        self.act = nn.Linear(width, sizes.action)
        self.style = perceptron(sizes.state + sizes.chunk * sizes.action, width, 2 * LATENT, layers=2)
        self.kinds = nn.Parameter(0.02 * torch.randn(1, 2, width))
        self.queries = nn.Parameter(0.02 * torch.randn(1, sizes.chunk, width))
        shape = {"d_model": width, "nhead": heads, "dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**shape), layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), layers)

    def forward(self, state: Tensor, images: Mapping[str, Tensor], style: Tensor | None = None) -> Tensor:
        style = torch.zeros(len(state), LATENT) if style is None else style
        tokens = torch.stack([self.state(state), self.latent(style)], dim=1) + self.kinds
        if self.eyes is not None:
            tokens = torch.cat([tokens, self.eyes(images)], dim=1)
        memory = self.encoder(tokens)
        return self.act(self.decoder(self.queries.expand(len(state), -1, -1), memory))

    def loss(self, state: Tensor, images: Mapping[str, Tensor], chunk: Tensor, noise: torch.Generator) -> Tensor:
        mean, spread = self.style(torch.cat([state, chunk.flatten(1)], dim=1)).chunk(2, dim=1)
        style = mean + torch.exp(spread / 2) * torch.randn(mean.shape, generator=noise)
        divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(dim=1).mean()
        return F.l1_loss(self(state, images, style), chunk) + KL_WEIGHT * divergence / self.sizes.chunk


class Flow(nn.Module):
    """A small diffusion policy (Chi et al., RSS 2023) by flow matching on the clean chunk (Lipman et al., ICLR 2023):
    at time t of 0..1 a chunk is (1 - t) noise + t clean, the network tells the clean one, and acting goes from noise to
    it in FLOW_STEPS steps. The noise it acts from is part of the weights, so that it acts the same each time."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.eyes = Eyes(sizes.cameras, sizes.width) if sizes.cameras else None
        flat = sizes.chunk * sizes.action
        inside = sizes.state + sizes.width * len(sizes.cameras) + flat + 16
        self.body = perceptron(inside, sizes.width, flat, layers=4)
        self.register_buffer("noise", torch.zeros(1, flat))

    def forward(self, state: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        known = _with_eyes(self.eyes, state, images)
        at = self.noise.expand(len(state), -1)
        for k in range(FLOW_STEPS):
            time = torch.full((len(state), 1), k / FLOW_STEPS)
            clean = self._clean(known, at, time)
            at = at + (clean - at) / (FLOW_STEPS - k)
        return at.view(-1, self.sizes.chunk, self.sizes.action)

    def loss(self, state: Tensor, images: Mapping[str, Tensor], chunk: Tensor, noise: torch.Generator) -> Tensor:
        clean = chunk.flatten(1)
        time = torch.rand(len(clean), 1, generator=noise)
        start = torch.randn(clean.shape, generator=noise)
        guess = self._clean(_with_eyes(self.eyes, state, images), (1 - time) * start + time * clean, time)
        return F.mse_loss(guess, clean)

    def _clean(self, known: Tensor, at: Tensor, time: Tensor) -> Tensor:
        waves = time * (2.0 ** torch.arange(8)) * torch.pi
        return self.body(torch.cat([known, at, waves.sin(), waves.cos()], dim=1))


def _with_eyes(eyes: Eyes | None, state: Tensor, images: Mapping[str, Tensor]) -> Tensor:
    """State, and the mean token of each camera."""
    if eyes is None:
        return state
    tokens = eyes(images)
    each = tokens.shape[1] // len(eyes.cameras)
    return torch.cat([state, tokens.unflatten(1, (len(eyes.cameras), each)).mean(dim=2).flatten(1)], dim=1)


NETWORKS: dict[str, type[nn.Module]] = {"mlp": Cloning, "cnn": Cloning, "act": ActionChunking, "diffusion": Flow}
"""By kind of policy; an mlp that sees pictures is a cnn."""
