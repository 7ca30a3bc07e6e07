"""The loop that trains the embedded model goes on after a kill as if nothing had been."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import fit
from benchmarks.shapes.muon import Optimizer


class Killed(Exception):
    pass


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which every look takes a millisecond: the learning rate falls with time, and no two runs take the same."""
    now = [0.0]

    def look() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(fit.time, "monotonic", look)
    return now


def train(work: Path, kill_at: int, muon_rate: float | None) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.Conv2d(16, 8, 3))
    steps = iter(range(kill_at))

    def loss(fraction: float, rng: random.Random) -> torch.Tensor:
        if next(steps, None) is None:
            raise Killed
        pictures = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(rng.getrandbits(60)))
        return model(pictures).square().mean()

    budget = fit.Budget(minutes=100, learning_rate=1e-3, muon_rate=muon_rate, save_seconds=-1)
    with pytest.raises(Killed):
        fit.fit("fit-test", model.parameters(), loss, budget, work)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("muon_rate", [None, 0.02])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, steady_clock: list[float], muon_rate: float | None) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(tmp_path / "a", 12, muon_rate)
    steady_clock[0] = 0.0
    first = train(tmp_path / "b", 5, muon_rate)
    assert not torch.equal(first, whole)
    assert torch.equal(train(tmp_path / "b", 7, muon_rate), whole)


def share_a_step(rank: int, folder: str) -> None:
    """One of two processes: five steps with the same gradients in both, then the state."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    state = five_steps()
    if rank == 0:
        torch.save(state, f"{folder}/two.pt")
    torch.distributed.destroy_process_group()


def five_steps() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.Conv2d(16, 8, 3))
    optimizer = Optimizer(list(model.parameters()), 1e-3, 0.02, 0.01)
    for seed in range(5):
        model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
    weights = {f"weight.{i}": p.detach().clone() for i, p in enumerate(model.parameters())}
    return weights | {name: tensor.clone() for name, tensor in optimizer.tensors().items()}


def test_two_processes_that_share_muons_work_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(share_a_step, (str(tmp_path),), nprocs=2)
    two, one = torch.load(tmp_path / "two.pt", weights_only=True), five_steps()
    assert set(two) == set(one)
    assert max(float((two[name] - one[name]).abs().max()) for name in one) < 1e-6


def test_the_state_of_another_recipe_is_refused() -> None:
    model = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match="of another recipe"):
        Optimizer(list(model.parameters()), 1e-3, 0.02, 0.01).load({"0.exp_avg": torch.zeros(1)})
