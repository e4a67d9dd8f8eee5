"""Small perceptrons in numpy with gradients by hand, and Adam: for these sizes faster than a framework on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Array = np.ndarray
TANH, RELU = "tanh", "relu"


class Mlp:
    """Layers of x @ W + b with an activation between; float32.

    All parameters are views of one vector `theta`, their gradients of `grad`; `extra` of them, `tail`, belong to no
    layer (a policy's log standard deviation). Weights begin orthogonal with gain sqrt(2), the last layer's with `gain`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rng: np.random.Generator,
        *,
        activation: str = TANH,
        gain: float = 1.0,
        extra: int = 0,
    ):
        self.sizes, self.activation = tuple(sizes), activation
        pairs = list(pairwise(sizes))
        self.theta = np.zeros(sum(i * o + o for i, o in pairs) + extra, np.float32)
        self.grad = np.zeros_like(self.theta)
        self.layers, self.tail = _views(self.theta, pairs)
        self.slopes, self.tail_grad = _views(self.grad, pairs)
        for k, (weight, _) in enumerate(self.layers):
            weight[:] = orthogonal(weight.shape, rng, gain if k == len(pairs) - 1 else 2**0.5)

    def __call__(self, x: Array) -> Array:
        """(n, sizes[0]) to (n, sizes[-1])."""
        return self.forward(x)[-1]

    def forward(self, x: Array) -> list[Array]:
        """Every layer's input, and the output: what `backward` needs."""
        passed = [x]
        for weight, bias in self.layers[:-1]:
            x = x @ weight
            x += bias
            np.tanh(x, out=x) if self.activation == TANH else np.maximum(x, 0, out=x)
            passed.append(x)
        weight, bias = self.layers[-1]
        return [*passed, x @ weight + bias]

    def backward(self, passed: list[Array], slope: Array) -> None:
        """Fill the layers' gradients from the loss's slope by the output, (n, sizes[-1])."""
        ones = np.ones(len(slope), np.float32)  # a product with it is a quarter of the cost of a sum over rows
        for k in range(len(self.layers) - 1, -1, -1):
            x = passed[k]
            weight_grad, bias_grad = self.slopes[k]
            np.matmul(x.T, slope, out=weight_grad)
            np.matmul(ones, slope, out=bias_grad)
            if k:
                slope = self._bend(x, slope @ self.layers[k][0].T)

    def pull(self, passed: list[Array], slope: Array) -> Array:
        """The loss's slope by the input, (n, sizes[0]), from its slope by the output; the gradients stay."""
        for k in range(len(self.layers) - 1, 0, -1):
            slope = self._bend(passed[k], slope @ self.layers[k][0].T)
        return slope @ self.layers[0][0].T

    def _bend(self, x: Array, slope: Array) -> Array:
        """The slope before an activation, whose output was `x`, from the slope behind it, which is written over."""
        if self.activation == TANH:
            bent = x * x
            np.subtract(1, bent, out=bent)
            slope *= bent
        else:
            slope *= x > 0
        return slope


class Adam:
    """Kingma and Ba (2015) on one vector, after the gradient's norm is cut to `clip`."""

    def __init__(self, size: int, clip: float = np.inf):
        self.clip, self.steps = clip, 0
        self.mean, self.square = np.zeros(size, np.float32), np.zeros(size, np.float32)

    def step(self, theta: Array, grad: Array, rate: float) -> None:
        norm = float(np.sqrt(grad @ grad))
        if norm > self.clip:
            grad *= self.clip / norm
        self.steps += 1
        self.mean += np.float32(0.1) * (grad - self.mean)
        grad *= grad
        grad -= self.square
        self.square += np.float32(0.001) * grad
        bias1, bias2 = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        np.sqrt(self.square, out=grad)
        grad += np.float32(1e-8 * bias2**0.5)
        np.divide(self.mean, grad, out=grad)
        grad *= np.float32(rate * bias2**0.5 / bias1)
        theta -= grad

    def state(self) -> dict[str, Array | int]:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def restore(self, state: dict) -> None:
        self.mean[:], self.square[:], self.steps = state["mean"], state["square"], state["steps"]


def orthogonal(shape: tuple[int, ...], rng: np.random.Generator, gain: float) -> Array:
    """Saxe et al. (2013), as in torch.nn.init.orthogonal_."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)


def _views(vector: Array, pairs: list[tuple[int, int]]) -> tuple[list[tuple[Array, Array]], Array]:
    layers, at = [], 0
    for i, o in pairs:
        layers.append((vector[at : at + i * o].reshape(i, o), vector[at + i * o : at + i * o + o]))
        at += i * o + o
    return layers, vector[at:]
