"""Muon orthogonalises matrices, and is AdamW for all else."""

import copy

import torch

from trainers.muon import Muon, orthogonal


def test_a_matrix_becomes_nearly_orthogonal() -> None:
    for shape in ((24, 40), (40, 24)):
        spread = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert spread.min() > 0.5 and spread.max() < 1.3  # the iteration's own fixed range


def learner() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.GroupNorm(4, 16), torch.nn.Conv2d(16, 4, 1))


def loss_of(network: torch.nn.Module, step: int) -> torch.Tensor:
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return (network(pixels) - pixels[:, :1, 1:-1, 1:-1]).square().mean()


def test_vectors_and_few_rows_learn_with_adamw_and_matrices_with_rows_of_one_length() -> None:
    mine, theirs = learner(), learner()
    optimizer = Muon(mine.parameters(), lr=1e-2, weight_decay=0.0)
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0)
    before = mine[0].weight.detach().clone()
    for network, one in ((mine, optimizer), (theirs, other)):
        loss_of(network, 0).backward()
        one.step()
    for place, name in ((0, "bias"), (1, "weight"), (1, "bias"), (2, "weight"), (2, "bias")):
        assert torch.equal(getattr(mine[place], name), getattr(theirs[place], name)), (place, name)
    changed = (mine[0].weight - before).flatten(1) / 1e-2
    assert 0.12 < changed.square().mean().sqrt() < 0.25  # as large as AdamW's usual updates
    assert torch.linalg.svdvals(changed).max() < 2.2 * torch.linalg.svdvals(changed).min()


def test_it_learns_and_its_state_goes_on_exactly() -> None:
    whole, broken = learner(), learner()
    first, second = Muon(whole.parameters(), lr=1e-2), Muon(broken.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        for network, optimizer in ((whole, first), (broken, second)):
            optimizer.zero_grad()
            loss = loss_of(network, 0)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        second = Muon(broken.parameters(), lr=1e-2)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
    assert losses[-1] < 0.7 * losses[0]
