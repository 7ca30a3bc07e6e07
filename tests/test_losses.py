"""The formulas of training against diffusers' own, and the plan of who is shown when."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.buckets import bucket_of, bucket_sizes
from trainers.losses import Diffusion, Flow, flow_shift, min_snr_weights, squared_error, zero_terminal_snr
from trainers.plan import CENTER, Chances, Item, Plan, shuffled

SCHEDULE = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
LATENTS, NOISE = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.randn(3, 4, 8, 8)
TIMES = torch.tensor([0, 500, 999])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_diffusers_own(prediction: str) -> None:
    process = Diffusion(SCHEDULE.alphas_cumprod, prediction)
    torch.testing.assert_close(process.noisy(LATENTS, NOISE, TIMES), SCHEDULE.add_noise(LATENTS, NOISE, TIMES))
    wanted = {"epsilon": NOISE, "sample": LATENTS, "v_prediction": SCHEDULE.get_velocity(LATENTS, NOISE, TIMES)}
    torch.testing.assert_close(process.target(LATENTS, NOISE, TIMES), wanted[prediction])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_is_what_the_scripts_compute(prediction: str) -> None:
    snr = compute_snr(SCHEDULE, TIMES)
    weights = torch.stack([snr, 5 * torch.ones_like(TIMES)], dim=1).min(dim=1)[0]
    wanted = weights / (snr + 1) if prediction == "v_prediction" else weights / snr
    torch.testing.assert_close(min_snr_weights(snr, 5.0, prediction), wanted)
    torch.testing.assert_close(
        Diffusion(SCHEDULE.alphas_cumprod, prediction, snr_gamma=5.0).weights(TIMES), wanted, rtol=1e-4, atol=1e-6
    )


def test_zero_terminal_snr_is_diffusers_own() -> None:
    betas = rescale_zero_terminal_snr(SCHEDULE.betas)
    made = zero_terminal_snr(SCHEDULE.alphas_cumprod)
    torch.testing.assert_close(made, torch.cumprod(1 - betas, dim=0), rtol=1e-4, atol=1e-5)
    assert made[-1] == 0 and torch.isfinite(min_snr_weights(made / (1 - made), 5.0, "v_prediction")).all()


def test_times_are_where_they_should_be() -> None:
    even = (torch.arange(1000) + 0.5) / 1000
    uniform = Diffusion(SCHEDULE.alphas_cumprod, "epsilon").times(even)
    assert sorted(uniform.tolist()) == list(range(1000))
    middle = Diffusion(SCHEDULE.alphas_cumprod, "epsilon", "logit_normal").times(even)
    assert ((middle > 250) & (middle < 750)).float().mean() == pytest.approx(
        0.728, abs=0.01
    )  # of a standard logistic normal
    low = Diffusion(SCHEDULE.alphas_cumprod, "epsilon", "log_normal", mean=-1.2, std=1.2).times(even)
    sigmas = ((1 - SCHEDULE.alphas_cumprod) / SCHEDULE.alphas_cumprod).sqrt()
    assert sigmas[low].median() == pytest.approx(0.30, abs=0.02)  # exp(-1.2)
    flow = Flow(shift=3.0).times(even)
    torch.testing.assert_close(flow[500], torch.tensor(0.75), atol=0.01, rtol=0)
    assert ((flow > 0) & (flow < 1)).all() and (flow.diff() > 0).all()


def test_flow_mixes_and_asks_for_the_way() -> None:
    process, times = Flow(), torch.tensor([0.0, 0.25, 1.0])
    noisy = process.noisy(LATENTS, NOISE, times)
    torch.testing.assert_close(noisy[0], LATENTS[0])
    torch.testing.assert_close(noisy[2], NOISE[2])
    step = times.view(-1, 1, 1, 1) * process.target(LATENTS, NOISE, times)
    torch.testing.assert_close(noisy - step, LATENTS)


def test_the_shift_of_flux_is_the_pipelines() -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
    assert flow_shift(1024, config) == pytest.approx(torch.tensor(calculate_shift(1024)).exp().item())
    assert flow_shift(1024, {"shift": 3.0}) == 3


def test_a_mask_leaves_out_what_it_does_not_show() -> None:
    made = torch.zeros(2, 4, 8, 8)
    target, mask = torch.ones(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[:, :, :4], target[:, :, 4:] = 1, 100
    torch.testing.assert_close(squared_error(made, target, mask), torch.ones(2))


def test_buckets_keep_area_and_proportions() -> None:
    for side, step in ((512, 64), (1024, 64), (128, 32)):
        sizes = bucket_sizes(side, step)
        assert (side, side) in sizes and all(w % step == h % step == 0 and w * h <= side * side for w, h in sizes)
        assert {(h, w) for w, h in sizes} == set(sizes)
    assert bucket_of((4000, 3000), bucket_sizes(512, 64)) == (576, 448)
    assert bucket_of((3000, 4000), bucket_sizes(512, 64)) == (448, 576)
    assert bucket_of((700, 701), bucket_sizes(512, 64)) == (512, 512)


ITEMS = st.lists(
    st.tuples(st.sampled_from([(64, 64), (96, 64), (64, 96)]), st.integers(1, 3), st.integers(1, 3)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(items=ITEMS, batch=st.integers(1, 5), accumulation=st.integers(1, 3), seed=st.integers(0, 99))
def test_an_epoch_shows_everything_and_batches_are_whole(items: list, batch: int, accumulation: int, seed: int) -> None:
    made = [Item(i, size, length, repeats) for i, (size, length, repeats) in enumerate(items)]
    plan = Plan(made, batch, accumulation, seed, Chances(flip=True, random_crop=True, drop=0.5))
    steps = -(-plan.batches_per_epoch // accumulation)
    batches = list(itertools.chain(*(plan.step(step) for step in range(steps))))[: plan.batches_per_epoch]
    shown = [draw.item for one in batches for draw in one]
    assert all(shown.count(item.example) >= item.repeats for item in made)
    for one in batches:
        assert len(one) == batch and len({(made[draw.item].size, made[draw.item].length) for draw in one}) == 1
        assert sorted(int(draw.quantile * batch) for draw in one) == list(range(batch))
    later = Plan(made, batch, accumulation, seed, plan.chances)
    assert later.step(steps - 1) == plan.step(steps - 1)  # asked first, and in the middle: the same


def test_chances_are_what_is_told() -> None:
    items = [Item(i, (64, 64)) for i in range(7)]
    draws = [
        draw
        for step in range(300)
        for one in Plan(items, 2, 1, 0, Chances(True, True, 0.25)).step(step)
        for draw in one
    ]
    assert sum(draw.flip for draw in draws) / len(draws) == pytest.approx(0.5, abs=0.07)
    assert sum(draw.drop for draw in draws) / len(draws) == pytest.approx(0.25, abs=0.07)
    plain = [draw for one in Plan(items, 2, 1, 0, Chances()).step(5) for draw in one]
    assert all(not draw.flip and not draw.drop and draw.crop == CENTER for draw in plain)


def test_shuffling_keeps_what_is_first() -> None:
    text = "sks, red, big, on grass, at night"
    made = {shuffled(text, 1, seed) for seed in range(30)}
    assert len(made) > 10 and all(
        one.startswith("sks, ") and sorted(one.split(", ")) == sorted(text.split(", ")) for one in made
    )
