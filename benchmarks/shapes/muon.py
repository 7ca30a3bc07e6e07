"""Muon for weight matrices and convolutions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), AdamW for the rest.

torch.optim.Muon computes in bfloat16 and in every process: on a CPU its iteration takes 1.8 times as long as this one in float32,
and here each process orthogonalises its share of the matrices.
"""

import math

import torch
import torch.distributed as dist

from trainers.muon import orthogonal

MOMENTUM = 0.95


class Optimizer:
    """Both, over one list of parameters whose gradients are the same in every process.

    Args:
        params: what is trained.
        rate: learning rate of AdamW.
        muon_rate: of Muon, for weights of at least two dimensions and eight outputs; None leaves all to AdamW.
        weight_decay: of both.
    """

    def __init__(
        self, params: list[torch.nn.Parameter], rate: float, muon_rate: float | None, weight_decay: float
    ) -> None:
        matrices = [p for p in params if muon_rate and p.ndim >= 2 and len(p) >= 8]
        chosen = {id(p) for p in matrices}
        self.params, self.matrices, self.rate, self.muon_rate = params, matrices, rate, muon_rate
        self.weight_decay = weight_decay
        self.momentum = [torch.zeros_like(p.flatten(1)) for p in matrices]
        self.adamw = torch.optim.AdamW(
            [p for p in params if id(p) not in chosen], rate, betas=(0.9, 0.98), weight_decay=weight_decay, foreach=True
        )
        size, own = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        by_cost = sorted(range(len(matrices)), key=lambda i: -matrices[i].numel() * len(matrices[i]))
        self.own = set(by_cost[own::size])

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take one step with `factor` times the learning rates."""
        self.adamw.param_groups[0]["lr"] = self.rate * factor
        self.adamw.step()
        if not self.matrices:
            return
        made = []
        for index, (p, momentum) in enumerate(zip(self.matrices, self.momentum, strict=True)):
            if index in self.own:
                made.append(self._updated(p, momentum, (self.muon_rate or 0) * factor).flatten())
            else:
                made.append(torch.zeros(p.numel(), device=p.device))
        for p, values in zip(self.matrices, shared(made), strict=True):
            p.copy_(values.view(p.shape))

    def _updated(self, p: torch.nn.Parameter, momentum: torch.Tensor, rate: float) -> torch.Tensor:
        assert p.grad is not None
        gradient, weight = p.grad.flatten(1), p.flatten(1)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        rate_here = rate * math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
        return weight * (1 - rate * self.weight_decay) - rate_here * orthogonal(gradient.lerp(momentum, MOMENTUM))

    def zero_grad(self) -> None:
        for p in self.params:
            assert p.grad is not None
            p.grad.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the whole state, one name a tensor; every process must ask."""
        parts = [m if i in self.own else torch.zeros_like(m) for i, m in enumerate(self.momentum)]
        momentum = zip(parts, shared([part.flatten() for part in parts]), strict=True)
        return {f"momentum.{i}": values.view(part.shape) for i, (part, values) in enumerate(momentum)} | {
            f"adamw.{index}.{key}": torch.as_tensor(value)
            for index, state in self.adamw.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` returned.

        Raises:
            ValueError: if that was another optimizer's.
        """
        wanted = {f"momentum.{i}" for i in range(len(self.momentum))}
        if {name for name in tensors if name.startswith("momentum.")} != wanted:
            raise ValueError("the saved state is of another recipe; remove the fit-*.safetensors files to begin anew")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "momentum":
                self.momentum[int(rest)].copy_(tensor)
            elif kind == "adamw":
                index, key = rest.split(".")
                state.setdefault(int(index), {})[key] = tensor
        self.adamw.load_state_dict(self.adamw.state_dict() | {"state": state})


def shared(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the sum of every process's flat parts."""
    if not parts or not dist.is_initialized():
        return parts
    joined = torch.cat(parts)
    dist.all_reduce(joined)
    return list(joined.split([part.numel() for part in parts]))
