"""Where a model's parts lie: the fastest plan that fits is chosen, what it costs is said, and no plan changes a picture."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.engine.devices import Device, open_device
from studio.engine.engine import Engine
from studio.engine.latents import denoiser
from studio.engine.pipelines import Loaded, PipelineManager, load_pipeline
from studio.engine.places import bytes_of, lay_out, lifted, sizes_of
from studio.errors import DeviceError, InvalidRequest
from studio.memory import PLANS, ROOM, choose_plan, plan_note, smaller_plan
from studio.settings import read_settings
from studio.store.blobs import BlobStore
from studio.store.gallery import new_image_id, utc_now
from studio.store.library import Library
from tests.conftest import Made, drawer

GIB = 2**30
CPU = torch.device("cpu")
SDXL = {"unet": 5 * GIB, "text_encoder": GIB // 4, "text_encoder_2": GIB, "vae": GIB // 4}
SMALL: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("free", "plan"),
    [
        (None, "resident"),  # a CPU, or memory that GPU and CPU share
        (80 * GIB, "resident"),
        (sum(SDXL.values()) + ROOM, "resident"),
        (sum(SDXL.values()) + ROOM - 1, "model-offload"),
        (5 * GIB + ROOM, "model-offload"),
        (5 * GIB + ROOM - 1, "group-offload"),
        (0, "group-offload"),
    ],
)
def test_the_fastest_plan_that_fits_is_chosen(free: int | None, plan: str) -> None:
    assert choose_plan(SDXL, free) == plan


def test_less_memory_never_makes_a_faster_plan_and_a_larger_model_never_a_faster_one() -> None:
    for free, more in itertools.pairwise(range(0, 12 * GIB, GIB // 4)):
        assert PLANS.index(choose_plan(SDXL, free)) >= PLANS.index(choose_plan(SDXL, more))
        larger = {name: 2 * size for name, size in SDXL.items()}
        assert PLANS.index(choose_plan(larger, free)) >= PLANS.index(choose_plan(SDXL, free))
    assert [smaller_plan(plan) for plan in PLANS] == ["model-offload", "group-offload", "group-offload"]


def test_what_a_plan_costs_is_said() -> None:
    assert plan_note("resident", SDXL, "A card") == ""
    told = plan_note("model-offload", SDXL, "A card")
    assert told.startswith(
        "Memory plan model-offload: the model's 6.5 GiB do not all lie on A card; its parts take turns"
    )
    assert "at every step" in plan_note("group-offload", SDXL, "A card")


def test_a_setting_forces_a_plan_where_there_is_something_to_offload_from() -> None:
    assert read_settings({}, {"STUDIO_MEMORY_PLAN": "model-offload"}).memory_plan == "model-offload"
    with pytest.raises(InvalidRequest, match="memory_plan='half'"):
        read_settings({"memory_plan": "half"}, {})
    for plan in ("model-offload", "group-offload"):
        with pytest.raises(DeviceError, match=f"memory_plan='{plan}' needs a GPU: on CPU there is nowhere"):
            PipelineManager(open_device("cpu", 1), plan)
    assert PipelineManager(open_device("cpu", 1), "resident")


class Card(PipelineManager):
    """Chooses as on a card with so much free memory, and lays the parts out on the CPU."""

    free = 0

    def _load(self, *what: Any) -> Loaded:
        pipe = super()._load(*what).base
        plan = choose_plan(sizes_of(pipe), self.free)
        lay_out(pipe, CPU, plan)
        return Loaded(pipe, plan)


@pytest.fixture
def card() -> Iterator[Engine]:
    made = Engine(open_device("cpu", 1), utc_now, new_image_id)
    made.pipelines = Card(made.device)
    yield made
    made.unload()


@pytest.mark.parametrize("plan", ["model-offload", "group-offload"])
def test_no_plan_changes_a_picture(
    plan: str, card: Any, library: Library, blobs: BlobStore, draw: Callable[..., Made]
) -> None:
    shapes = {"model-offload": 32 * 2**20, "group-offload": 0}  # its UNet has 28 MiB
    card.pipelines.free = ROOM + shapes[plan]
    here = drawer(card, library, blobs)
    stack = [{"name": "red-to-blue", "weight": 0.7}]
    jobs: list[dict[str, Any]] = [{}, {"hires_scale": 1.5, "hires_steps": 2, "loras": stack}, {}]
    for values in jobs:
        made, wanted = here(**SMALL | values), draw(**SMALL | values)
        assert made.pictures == wanted.pictures, values
        (note,) = made.records[0].notes
        assert note.startswith(f"Memory plan {plan}: ")
    (loaded,) = card.pipelines._loaded.values()
    assert loaded.plan == plan
    picture = made.pictures[0]
    again = {"image": picture, "strength": 0.6}
    assert here(**SMALL, **again).pictures == draw(**SMALL, **again).pictures
    stopped = here(**SMALL, stop=lambda made: "interrupt" if len(made.events) > 2 else "")
    assert stopped.finished.interrupted
    assert here(**SMALL, loras=stack).pictures == draw(**SMALL, loras=stack).pictures


def test_layers_that_come_one_at_a_time_are_all_there_when_they_are_used(
    library: Library, draw: Callable[..., Made], tmp_path: Path
) -> None:
    """On the disk instead of in the machine's memory: what is away is really away."""
    model = library.reference(library.get("shapes"))
    pipe = load_pipeline(model, open_device("cpu", 1))
    away = {"offload_device": CPU, "offload_type": "leaf_level", "offload_to_disk_path": str(tmp_path)}
    options: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64, "output_type": "np"}

    def drawn() -> Any:
        return pipe("a red circle", generator=torch.Generator().manual_seed(1), **options).images

    before = drawn()
    pipe.enable_group_offload(CPU, exclude_modules=["vae"], **away)
    assert (drawn() == before).all()


def test_offloading_is_lifted_while_layers_are_put_in(library: Library) -> None:
    pipe = load_pipeline(library.reference(library.get("shapes")), open_device("cpu", 1))
    lay_out(pipe, CPU, "model-offload")
    hook = denoiser(pipe)._hf_hook
    with lifted(pipe):
        assert not hasattr(denoiser(pipe), "_hf_hook")
    assert denoiser(pipe)._hf_hook is hook
    assert hook.prev_module_hook.model is pipe.text_encoder, "which leaves when the denoiser comes"


def test_work_that_did_not_fit_gets_the_next_smaller_plan(library: Library) -> None:
    class Gpu(Device):
        memory = (100 * GIB, 100 * GIB)  # pyright: ignore[reportAssignmentType,reportIncompatibleMethodOverride]

    facts = open_device("cpu", 1)
    manager = PipelineManager(Gpu(facts.place, facts.dtype, "gpu", "A card", 1))
    model = library.reference(library.get("shapes"))
    pipe = manager._weights(model).base
    key = (model.weights, "full")
    assert manager._chosen(pipe, key) == "resident"
    manager.shrink(model, "full")
    assert not manager._loaded
    assert manager._chosen(pipe, key) == "model-offload"
    assert bytes_of(denoiser(pipe)) == sizes_of(pipe)["unet"]
    still = PipelineManager(replace(facts))
    still._weights(model)
    still.shrink(model, "full")
    assert not still._least, "on a CPU there is no smaller plan"
