"""`controlnet`: a copy of a UNet's first half learns to follow control pictures (Zhang et al. 2023, arXiv:2302.05543)."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers.models.controlnets.controlnet import ControlNetModel
from PIL import Image

from studio.engine.devices import Device
from studio.errors import InvalidRequest
from studio.preprocessors import missing_message
from studio.settings import Settings
from studio.spec import GenerationRequest
from studio.store import writer
from studio.store.blobs import encode
from trainers.conditions import Conditions
from trainers.configs import TrainingConfig
from trainers.data import Batch, Shown
from trainers.denoisers import Told, UNet
from trainers.material import Material, Pictures
from trainers.method import Method, Rate
from trainers.models import Parts, cache_folder
from trainers.network_configs import ControlNetConfig

CONTROL = "control.png"  # beside a result
CELL = 8  # pixels a side of one latent, which the ControlNet's own encoder of control pictures makes
SHAPE = (  # of a ControlNet: what must be as in the model's UNet
    *("cross_attention_dim", "block_out_channels", "layers_per_block", "down_block_types", "in_channels"),
    *("attention_head_dim", "num_attention_heads", "transformer_layers_per_block", "addition_embed_type"),
    "conditioning_channels",
)


class ControlNetMethod(Method):
    """A ControlNet beside a frozen UNet."""

    def __init__(self, config: ControlNetConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        if parts.cell != CELL:
            raise InvalidRequest(
                "model",
                f"model={parts.reference.id!r} has latents of {parts.cell} pixels a side; a ControlNet needs {CELL}",
            )
        torch.manual_seed(config.seed)  # for the encoder of control pictures, which is no copy
        new: Any = ControlNetModel.from_unet(parts.denoiser.network)
        self.network: Any = loaded(Path(config.init_from), new) if config.init_from else new
        self.network.to(parts.device.place, torch.float32).requires_grad_(True).train()
        if config.gradient_checkpointing:
            for network in (self.network, parts.denoiser.network):  # the frozen half keeps activations too
                network.enable_gradient_checkpointing()
        self._material: Material | None = None

    @classmethod
    def check(cls, config: TrainingConfig, pictures: Pictures, settings: Settings) -> None:
        assert isinstance(config, ControlNetConfig)
        without = [example.path.name for example in pictures.examples if example.conditioning is None]
        if without and config.preprocessor == "none":
            raise InvalidRequest(
                "preprocessor",
                f"{len(without)} of {len(pictures.examples)} pictures have no control picture ({without[0]} …); put one of the "
                "same name into conditioning/ of their folder, or let a preprocessor make it, such as preprocessor=canny",
            )
        if without and (problem := missing_message(config.preprocessor, settings.annotators)):
            raise InvalidRequest("preprocessor", problem)
        if config.preprocessor != "none" and len(without) < len(pictures.examples):
            brought = len(pictures.examples) - len(without)
            pictures.notes.append(
                f"{brought} of {len(pictures.examples)} pictures bring their own control picture, which is taken as it is"
            )

    @classmethod
    def conditions(cls, config: TrainingConfig, settings: Settings, device: Device) -> Conditions | None:
        assert isinstance(config, ControlNetConfig)
        return Conditions(
            config.preprocessor,
            config.preprocessor_options,
            folder=cache_folder(settings.data_dir),
            weights=settings.annotators,
            device=device.place,
        )

    def prepare(self, material: Material) -> None:
        self._material = material

    def rates(self) -> list[Rate]:
        return [Rate("controlnet", list(self.network.parameters()), self.config.learning_rate)]

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, told: Told, batch: Batch) -> torch.Tensor:
        """Ask the frozen UNet with what the ControlNet adds to its levels, (B, C, h, w) each way."""
        denoiser, place = self.parts.denoiser, self.parts.device.place
        assert isinstance(denoiser, UNet) and batch.conditioning is not None
        words, more = told["prompt_embeds"], denoiser.more(noisy, told, batch.frames)
        half = self.dtype == torch.bfloat16
        with torch.autocast(place.type, torch.bfloat16, enabled=half):  # its own weights are float32
            down, middle = self.network(
                noisy, steps, words, batch.conditioning.to(place, self.dtype), return_dict=False, **more
            )
        return denoiser.network(
            noisy,
            steps,
            words,
            down_block_additional_residuals=[level.to(self.dtype) for level in down],
            mid_block_additional_residual=middle.to(self.dtype),
            return_dict=False,
            **more,
        )[0]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write a diffusers folder, whose `studio.yaml` says which preprocessor fits."""
        made = folder / name
        self.network.save_pretrained(made, safe_serialization=True)
        if self.config.preprocessor != "none":
            (made / "studio.yaml").write_text(
                yaml.safe_dump({"preprocessor": self.config.preprocessor}), encoding="utf-8"
            )
        (made / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return made

    def export(self, folder: Path, name: str, facts: dict[str, str]) -> None:
        """Put a control picture beside the result, for trying it."""
        assert self._material is not None
        writer.write_file(folder / CONTROL, self._control_picture(self._material.first_shown(1)[0]))

    def code(self, prompt: str) -> str:
        name = type(self.parts.pipe).__name__.replace("Pipeline", "ControlNetPipeline")
        lines = ["import torch", f"from diffusers import ControlNetModel, {name}"]
        lines += ["from diffusers.utils import load_image", "", *self.device_code()]
        lines += [f"controlnet = ControlNetModel.from_pretrained({self.config.output_name!r}, torch_dtype=dtype)"]
        lines += self.base_code(name, "controlnet=controlnet")
        return "\n".join([*lines, f'pipe({prompt!r}, image=load_image("{CONTROL}")).images[0].save("picture.png")'])

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        """Put the artifact into each control unit that is named as the run's output."""
        units = tuple(
            unit.model_copy(update={"model": str(artifact)}) if unit.model == self.config.output_name else unit
            for unit in request.controls
        )
        return request.model_copy(update={"controls": units})

    def sample_rows(self, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
        """Let each prompt follow the control picture of one of the first training pictures."""
        assert self._material is not None
        shown = self._material.first_shown(len(rows))
        for place, (row, one) in enumerate(zip(rows, itertools.cycle(shown), strict=False)):
            name = f"samples/control-{place}.png"
            writer.write_file(folder / name, self._control_picture(one))
            row["width"], row["height"] = one.size
            row["controls"] = [{"model": self.config.output_name, "image": name}]
        return rows

    @property
    def asked(self) -> list[Any]:
        return [self.parts.denoiser.network, self.network]

    @property
    def scored(self) -> frozenset[str]:
        """Samples follow the training pictures' own control pictures: they are meant to be like them."""
        return frozenset({"prompt"})

    def _control_picture(self, shown: Shown) -> bytes:
        """Return what a picture is followed by, as a PNG."""
        assert self._material is not None and self._material.conditions is not None
        pixels = (self._material.conditions.get(shown) * 255).round().byte().permute(1, 2, 0).numpy()
        return encode(Image.fromarray(np.ascontiguousarray(pixels)))

    def usage(self) -> str:
        told = self.config.preprocessor
        made = f" with the preprocessor `{told}`" if told != "none" else ""
        return f"Put the folder into `models/controlnets` and choose it as a ControlNet unit{made}."


def loaded(path: Path, wanted: Any) -> Any:
    """Load an earlier ControlNet of the same shape as `wanted`.

    Raises:
        InvalidRequest: if it is none, or was made for another model.
    """
    if not (path / "config.json").is_file():
        raise InvalidRequest(
            "init_from",
            f"init_from={str(path)!r} is no ControlNet folder (it has no config.json); choose a result of controlnet",
        )
    try:
        found: Any = ControlNetModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest("init_from", f"init_from={str(path)!r} cannot be loaded ({reason})") from None
    for name in SHAPE:
        there, here = found.config.get(name), wanted.config.get(name)
        if (list(there) if isinstance(there, tuple | list) else there) != (
            list(here) if isinstance(here, tuple | list) else here
        ):
            raise InvalidRequest(
                "init_from",
                f"init_from={path.name!r} was made for another model: {name} is {there} there and {here} in this one",
            )
    return found
