"""Muon for weight matrices and convolutions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), AdamW for the rest.

torch's and timm's Muon orthogonalise in bfloat16, which is slow on CPUs without it: a step of the demo model's denoiser took 10.7 s
of CPU time with timm's, 2.3 s with an iteration in float32, and 1.7 s with AdamW alone.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, from the same source
ITERATIONS = 5
ROWS_LEAST = 8  # outputs of a matrix that is worth it
RMS = (
    0.2  # of AdamW's usual updates: one learning rate then suits both (Liu et al. 2025, arXiv:2502.16982, section 2.2)
)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return nearly U V^T of a matrix U S V^T, (rows, columns), by a Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Both, over parameter groups as of any optimiser of torch.

    Args:
        params: parameters, or groups of them.
        lr: of both.
        betas: of AdamW.
        momentum: of Muon, Nesterov's.
        weight_decay: of both, apart from the gradient.
        eps: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change the parameters that have gradients; `closure` is not used."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            for p in learning:
                if is_matrix(p):
                    self._orthogonalised(p, group)
            self._adamw([p for p in learning if not is_matrix(p)], group)

    def _orthogonalised(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, gradient = self.state[p], p.grad.flatten(1)
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(momentum, group["momentum"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update.view_as(p), alpha=-group["lr"] * RMS * math.sqrt(max(update.shape)))

    def _adamw(self, learning: list[torch.Tensor], group: dict[str, Any]) -> None:
        for p in learning:
            if not self.state[p]:
                self.state[p] |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        adamw(
            learning,
            [p.grad for p in learning],  # pyright: ignore[reportArgumentType]  # they have one
            [self.state[p]["mean"] for p in learning],
            [self.state[p]["square"] for p in learning],
            [],
            [self.state[p]["step"] for p in learning],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(p: torch.Tensor) -> bool:
    """Say whether Muon changes a parameter: a matrix, or a convolution as a matrix of its outputs."""
    return p.ndim >= 2 and len(p) >= ROWS_LEAST
