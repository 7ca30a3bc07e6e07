"""AdapterManager: LoRA at work for one request. What a model was is what it is afterwards.

Their weights stay beside the model's own (PEFT's layers around it), so that another weight, or another one that was used before,
costs no loading; while none is at work those layers hand on what the model's own say, bit for bit.
"""

import contextlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from studio.engine.devices import Device
from studio.engine.latents import denoiser
from studio.engine.pipelines import first_line, quiet_libraries
from studio.errors import ModelError
from studio.loras import LoraSpec
from studio.records import PartRef

KEPT = 8  # LoRA that stay beside a model
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # what the keys of a layer's two matrices end with
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")  # of a DoRA
OLD_KEY = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)(?=\.weight)")
KEY = re.compile(r"\.(?:lora|lora_linear_layer)\.(down|up)(?=\.weight)")
LETTERS = {"down": "A", "up": "B"}

Stack = Sequence[tuple[LoraSpec, PartRef]]
State = dict[str, torch.Tensor]


class Layer(NamedTuple):
    """One layer of a LoRA: the keys of its matrices, and of its magnitudes if it is a DoRA."""

    down: str
    up: str
    magnitude: str | None


class AdapterManager:
    """Owner of all LoRA weights on one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._models: WeakKeyDictionary[Any, Surroundings] = WeakKeyDictionary()

    @contextlib.contextmanager
    def applied(self, pipe: Any, stack: Stack, notice: Callable[[str], None]) -> Iterator[None]:
        """Let LoRA change a pipeline's denoiser and text encoders; afterwards they are as they were.

        Args:
            pipe: any pipeline of the model.
            stack: what to apply, and where it lies; entries of weight 0 are left out.
            notice: told what a person should know.

        Raises:
            ModelError: if one is damaged, or was trained for another model. Nothing of it is left.
        """
        stack = [entry for entry in stack if entry[0].active]
        if not stack:
            yield
            return
        around = self._models.setdefault(denoiser(pipe), Surroundings())
        try:
            with torch.inference_mode(False), torch.no_grad():
                names = self._load(pipe, around, [part for _, part in stack], notice)
                around.switch_on({name: spec for name, (spec, _) in zip(names, stack, strict=True)})
            yield
        finally:
            around.switch_off()

    def _load(
        self, pipe: Any, around: "Surroundings", parts: list[PartRef], notice: Callable[[str], None]
    ) -> list[str]:
        """Load what is not there yet; return the adapters' names."""
        known = around.known
        for part in parts:
            if part.sha256 not in known:
                quiet_libraries()
                name = f"lora-{part.sha256[:16]}"
                self._add(pipe, part, name, notice)
                known[part.sha256] = name
                around.find_layers(pipe)
            known.move_to_end(part.sha256)
        while len(known) > max(KEPT, len(parts)):
            pipe.delete_adapters(known.popitem(last=False)[1])
            around.find_layers(pipe)
        return [known[part.sha256] for part in parts]

    def _add(self, pipe: Any, part: PartRef, name: str, notice: Callable[[str], None]) -> None:
        """Load one LoRA beside a model's weights, or nothing of it."""
        read = read_lora(pipe, part)
        state = fitting(pipe, read, part.id)
        if left_out := sorted(set(read) - set(state)):
            notice(
                f"{len(left_out)} of {len(read)} weights of the LoRA {part.id} have no place here, such as {left_out[0]}."
            )
        try:
            pipe.load_lora_weights({key: one.to(self._device.dtype) for key, one in state.items()}, adapter_name=name)
        except torch.OutOfMemoryError:
            self._forget(pipe, name)
            raise
        except Exception as error:
            self._forget(pipe, name)
            raise ModelError(f"LoRA {part.id} could not be loaded: {first_line(error)}; copy it again") from error

    def _forget(self, pipe: Any, name: str) -> None:
        with contextlib.suppress(ValueError):  # it may be in some of the networks only, or in none
            pipe.delete_adapters(name)


class Surroundings:
    """The LoRA around one model's layers: content's hash -> PEFT's name, the last used at the end.

    diffusers looks for the layers anew at each change; here they are found once.
    """

    def __init__(self) -> None:
        self.known: OrderedDict[str, str] = OrderedDict()
        self._layers: list[tuple[bool, Any]] = []  # whether it is of a text encoder, and PEFT's layer

    def find_layers(self, pipe: Any) -> None:
        """Look where there are layers, after a LoRA has come or gone."""
        networks = {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
        self._layers = [
            (name.startswith("text_encoder"), module)
            for name, network in networks.items()
            for module in network.modules()
            if isinstance(module, BaseTunerLayer)
        ]

    def switch_on(self, specs: dict[str, LoraSpec]) -> None:
        """Let LoRA (PEFT's name -> how strongly) count, and no others."""
        for words, layer in self._layers:
            weights = {name: spec.words_weight if words else spec.weight for name, spec in specs.items()}
            here = [name for name, weight in weights.items() if weight and name in layer.scaling]
            if layer.active_adapters != here:
                layer.set_adapter(here, inference_mode=True)
            for name in here:
                layer.set_scale(name, weights[name])
            if layer.disable_adapters == bool(here):
                layer.enable_adapters(bool(here))

    def switch_off(self) -> None:
        """Let the model's own layers speak alone."""
        for _, layer in self._layers:
            if not layer.disable_adapters:
                layer.enable_adapters(False)


def read_lora(pipe: Any, part: PartRef) -> State:
    """Read a LoRA into PEFT's keys, its scale (alpha / rank) within its weights.

    diffusers finds alpha in kohya's keys and in its own metadata; what a text encoder needs it then looks for in metadata that may
    speak of the denoiser only (0.42), so that metadata is read here.

    Raises:
        ModelError: if the file is damaged, or of an unknown kind.
    """
    try:
        with safe_open(part.path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            state = {key.removeprefix("base_model.model."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if broken := next((key for key, one in state.items() if not key.endswith(".alpha") and not _sound(one)), None):
            raise ModelError(
                f"LoRA {part.id} holds what no weight is (NaN, infinite or whole numbers, in {broken}); copy it again"
            )
        network = denoiser(pipe)
        more = {"unet_config": network.config} if hasattr(pipe, "unet") else {"return_alphas": True}
        answer = type(pipe).lora_state_dict(state, **more)
        state, alphas = answer[:2] if isinstance(answer, tuple) else (answer, None)
        state = {peft_key(key): one for key, one in state.items()}
        prefix = "unet" if hasattr(pipe, "unet") else "transformer"
        if not any(key.startswith((prefix, "text_encoder")) for key in state):  # PEFT's own files name no network
            state = {f"{prefix}.{key}": one for key, one in state.items()}
        state = scaled(state, {peft_key(key): alpha for key, alpha in (alphas or {}).items()}, told)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"LoRA {part.id} could not be read: {first_line(error)}; copy it again") from error
    return state


def peft_key(key: str) -> str:
    """Return PEFT's name for a key of diffusers, of any age; kohya's become the oldest there."""

    def old(found: re.Match[str]) -> str:
        name = f"{found[1]}_proj" if key.startswith("text_encoder") else f"to_{found[1]}"
        return f".{name.replace('to_out', 'to_out.0')}.lora_{LETTERS[found[2]]}"

    plain = key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    return KEY.sub(lambda found: f".lora_{LETTERS[found[1]]}", OLD_KEY.sub(old, plain))


def _sound(weight: torch.Tensor) -> bool:
    """Whether a tensor holds what weights are."""
    return weight.is_floating_point() and bool(torch.isfinite(weight.float()).all())


def layers_of(state: State) -> dict[str, Layer]:
    """Return the layers of a LoRA by the name of the module that each belongs to."""
    found = {}
    for key in state:
        name = key.removesuffix(DOWN)
        if key.endswith(DOWN) and name + UP in state:
            found[name] = Layer(key, name + UP, next((name + end for end in MAGNITUDES if name + end in state), None))
    return found


def scaled(state: State, alphas: dict[str, float], told: dict[str, Any]) -> State:
    """Return weights with alpha / rank (or alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732) multiplied in.

    Args:
        state: in PEFT's keys.
        alphas: kohya's, by the key of the first matrix and `.alpha`.
        told: diffusers' metadata: a LoraConfig a network, `unet.lora_alpha`.
    """
    made = dict(state)
    for name, layer in layers_of(state).items():
        rank, network = len(state[layer.down]), name.partition(".")[0]
        config = {
            key.removeprefix(f"{network}."): value for key, value in told.items() if key.startswith(f"{network}.")
        }
        pattern = config.get("alpha_pattern") or {}
        usual = next((own for end, own in pattern.items() if name.endswith(f".{end}")), config.get("lora_alpha"))
        alpha = alphas.get(f"{layer.down}.alpha", usual)
        scale = 1.0 if alpha is None else float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
        if scale != 1:
            made[layer.up] = state[layer.up] * scale
    return made


def fitting(pipe: Any, state: State, name: str) -> State:
    """Return the weights of a LoRA that belong to a module of the pipeline.

    Raises:
        ModelError: if none does, or one has another size.
    """
    kept: State = {}
    layers = layers_of(state)
    for path, layer in layers.items():
        network, _, rest = path.partition(".")
        module = _module(getattr(pipe, network, None), rest)
        if module is None:
            continue
        wanted = tuple(module.weight.shape)
        up, down = state[layer.up], state[layer.down]
        if up.ndim < 2 or up.ndim != down.ndim or up.shape[1] != len(down) or not len(down):
            sizes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise ModelError(f"LoRA {name} is damaged: the sizes {sizes} of {path} do not fit together; copy it again")
        found = (len(up), *down.shape[1:])
        if found != wanted:
            raise ModelError(
                f"LoRA {name} was trained for another model: {path} is {found} there and {wanted} here; choose one of its kind"
            )
        kept |= {key: state[key] for key in layer if key}
    if not kept:
        raise ModelError(
            f"LoRA {name} fits nothing in this model: none of its {len(layers)} layers is here; choose another"
        )
    return kept


def _module(network: Any, path: str) -> Any:
    """Find a module that has weights, whether or not another LoRA is around it; text encoders lost a level in transformers 5.6."""
    if network is None:
        return None
    for name in (path, path.removeprefix("text_model."), f"text_model.{path}"):
        try:
            found = network.get_submodule(name)
        except AttributeError:
            continue
        found = getattr(found, "base_layer", found)
        if getattr(found, "weight", None) is not None:
            return found
    return None
