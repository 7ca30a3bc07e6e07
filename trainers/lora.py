"""`lora`: low-rank adapters (arXiv:2106.09685), also DoRA (arXiv:2402.09353), LoHa and LoKr (LyCORIS, arXiv:2309.14859)."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save

from studio.errors import InvalidRequest
from studio.loras import LoraSpec
from studio.spec import GenerationRequest
from studio.store import writer
from studio.store.kohya_export import kohya_file
from trainers.checkpoints import read_adapter
from trainers.configs import AdapterConfig, EncoderConfig
from trainers.method import Method, Rate
from trainers.models import Parts

WORDS = ("q_proj", "k_proj", "v_proj", "out_proj")
ADAPTER = "default"


class LoraMethod(Method):
    """An adapter beside the denoiser, and beside its text encoders if wanted."""

    def __init__(self, config: AdapterConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        torch.manual_seed(config.seed)  # PEFT draws its first weights from the global generator
        self.adapted: dict[str, Any] = {parts.denoiser.prefix: parts.denoiser.network}
        if config.train_text_encoder:
            self.adapted |= clip_encoders(parts)
        self._rates = learning_rates(config, list(self.adapted))
        self.adapter_configs = {name: self._adapter(name, network) for name, network in self.adapted.items()}
        for name, network in self.adapted.items():
            self._inject(name, network)
        self.networks = torch.nn.ModuleDict(self.adapted)
        if config.gradient_checkpointing:
            for network in self.adapted.values():
                checkpoint_gradients(network)
        if config.init_from:
            self._go_on_from(Path(config.init_from))

    def _adapter(self, name: str, network: Any) -> Any:
        config = self.config
        modules = list(WORDS) if name.startswith("text_encoder") else target_modules(config, self.parts, network)
        alpha = float(config.rank if config.lora_alpha is None else config.lora_alpha)
        if config.network_type in ("loha", "lokr"):
            kind: Any = LoHaConfig if config.network_type == "loha" else LoKrConfig
            return kind(r=config.rank, alpha=alpha, module_dropout=config.lora_dropout, target_modules=modules)
        adapter: Any = LoraConfig
        return adapter(
            r=config.rank,
            lora_alpha=alpha,
            lora_dropout=config.lora_dropout,
            target_modules=modules,
            use_dora=config.network_type == "dora",
            use_rslora=config.use_rslora,
        )

    def _inject(self, name: str, network: Any) -> None:
        try:
            inject_adapter_in_model(self.adapter_configs[name], network, ADAPTER)
        except ValueError:
            raise InvalidRequest(
                "target_modules",
                f"target_modules={', '.join(self.config.target_modules)} fits no layer of the model; use attention or all-linear",
            ) from None
        network.train()  # for the adapter's dropout
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _go_on_from(self, path: Path) -> None:
        """Begin with the weights of an earlier adapter of the same shape."""
        state, _ = read_adapter(path)
        for name, network in self.adapted.items():
            mine = {key.removeprefix(f"{name}."): one for key, one in state.items() if key.startswith(f"{name}.")}
            wanted = get_peft_model_state_dict(network, adapter_name=ADAPTER)
            problem = next(
                (key for key, one in wanted.items() if key not in mine or mine[key].shape != one.shape), None
            )
            if problem:
                raise InvalidRequest(
                    "init_from",
                    f"init_from={path.name!r} has another shape than this run ({problem}); use its own rank, type and target modules",
                )
            set_peft_model_state_dict(network, mine, adapter_name=ADAPTER)

    @property
    def learns_words(self) -> bool:
        return self.config.train_text_encoder

    def rates(self) -> list[Rate]:
        return [
            Rate(name, [p for p in network.parameters() if p.requires_grad], self._rates[name])
            for name, network in self.adapted.items()
        ]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        path = folder / f"{name}.safetensors"
        writer.write_file(path, self.file(facts))
        return path

    def file(self, facts: dict[str, str]) -> bytes:
        """Return the adapter as a safetensors file in PEFT's keys, with each network's own PEFT config in diffusers' metadata."""
        state, told = {}, {}
        for name, network in self.adapted.items():
            mine = get_peft_model_state_dict(network, adapter_name=ADAPTER)
            state |= {f"{name}.{key}": one.detach().cpu().float().contiguous() for key, one in mine.items()}
            told |= {f"{name}.{key}": value for key, value in plain_config(self.adapter_configs[name]).items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(told, sort_keys=True)}
        metadata |= {"rank": str(self.config.rank), "scale": f"{self.config.scale:g}"}
        return save(state, metadata | {"text_encoders": str(len(self.parts.text_encoders()))} | facts)

    def export(self, folder: Path, name: str, facts: dict[str, str]) -> None:
        if self.config.save_kohya:
            made = kohya_file(folder / f"{name}.safetensors")
            writer.write_file(folder / f"{name}-kohya.safetensors", b"".join(made.parts))

    def code(self, prompt: str) -> str:
        if self.config.network_type in ("loha", "lokr"):  # diffusers 0.42 reads neither
            return ""
        name = type(self.parts.pipe).__name__
        lines = ["import torch", f"from diffusers import {name}", ""]
        lines += [*self.device_code(), *self.base_code(name), *self.loading()]
        return "\n".join([*lines, f'pipe({prompt!r}).images[0].save("picture.png")'])

    def loading(self) -> list[str]:
        """Return lines of Python that load the result into `pipe`."""
        file = f"{self.config.output_name}.safetensors"
        return [
            f'pipe.load_lora_weights(".", weight_name={file!r}, adapter_name="trained")',
            f'pipe.set_adapters("trained", {self.config.recommended_weight:g})',
        ]

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        return request.model_copy(update={"loras": (LoraSpec(name=str(artifact)), *request.loras)})


def learning_rates(config: EncoderConfig, networks: list[str]) -> dict[str, float]:
    """Return the rate of each network: the denoiser, which is the first, and the text encoders.

    Raises:
        InvalidRequest: if the number of rates fits neither.
    """
    given, encoders = config.text_encoder_lr, networks[1:]
    if len(given) > 1 and len(given) != len(encoders):
        raise InvalidRequest(
            "text_encoder_lr",
            f"text_encoder_lr has {len(given)} values and the model {len(encoders)} text encoders that can learn; "
            "give one, or one for each",
        )
    own = given * len(encoders) if len(given) == 1 else given or (config.learning_rate,) * len(encoders)
    return dict(zip(networks, (config.learning_rate, *own), strict=True))


def clip_encoders(parts: Parts) -> dict[str, Any]:
    """Return the text encoders that can learn.

    Raises:
        InvalidRequest: if there is none.
    """
    found = {name: one for name, one in parts.text_encoders().items() if "CLIP" in type(one).__name__}
    if not found:
        raise InvalidRequest(
            "train_text_encoder",
            "train_text_encoder: the model has no CLIP text encoder; switch train_text_encoder off",
        )
    return found


def target_modules(config: AdapterConfig, parts: Parts, network: Any) -> list[str]:
    """Return which layers of a denoiser are adapted, by the ends of their names."""
    chosen: list[str] = []
    for wanted in config.target_modules:
        if wanted == "attention":
            chosen += parts.denoiser.attention
        elif wanted in ("all-linear", "all"):
            kinds = torch.nn.Linear if wanted == "all-linear" else torch.nn.Linear | torch.nn.Conv2d
            inner = [
                name for name, module in network.named_modules() if isinstance(module, kinds) and name.count(".") > 1
            ]
            chosen += inner
        else:
            chosen.append(wanted)
    return list(dict.fromkeys(chosen))


def checkpoint_gradients(network: Any) -> None:
    """Keep fewer activations: diffusers' and transformers' networks name it differently."""
    if hasattr(network, "enable_gradient_checkpointing"):
        network.enable_gradient_checkpointing()
    else:
        network.gradient_checkpointing_enable()
    network.train()


def plain_config(config: Any) -> dict[str, Any]:
    """Return a PEFT config as JSON values."""
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.to_dict().items()
        if value is None or isinstance(value, str | int | float | bool | list | set | dict)
    }
