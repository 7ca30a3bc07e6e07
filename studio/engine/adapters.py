"""AdapterManager: LoRA and their kin at work for one request. What a model was is what it is afterwards.

Plain LoRA become PEFT's layers, which stand in the place of the model's own only while they are at work; all other kinds are added by
hooks (`additions`). Their weights stay beside the model's, so that another weight, or one that was used before, costs no loading.
"""

import contextlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from studio.engine.additions import Additions, read_additions
from studio.engine.devices import Device
from studio.engine.latents import denoiser
from studio.engine.lora_names import State, peft_key, told_alpha
from studio.engine.pipelines import first_line, quiet_libraries
from studio.engine.places import lifted
from studio.errors import ModelError
from studio.lora_blocks import block_of, block_weights, blocks_of
from studio.loras import PLAIN, LoraSpec, kind_of
from studio.records import PartRef

KEPT = 8  # LoRA that stay beside a model
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # what the keys of a layer's two matrices end with
Stack = Sequence[tuple[LoraSpec, PartRef]]
Strength = Callable[[str, str], float]  # of a module, by its network's name and its path there


class Layer(NamedTuple):
    """One layer of a LoRA: the keys of its matrices."""

    down: str
    up: str


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
            with torch.inference_mode(False), torch.no_grad(), lifted(pipe):
                self._load(pipe, around, [part for _, part in stack], notice)
                around.switch_on({part.sha256: strength_of(spec, pipe) for spec, part in stack})
            yield
        finally:
            around.switch_off()

    def _load(self, pipe: Any, around: "Surroundings", parts: list[PartRef], notice: Callable[[str], None]) -> None:
        """Load what is not there yet."""
        known = around.known
        for part in parts:
            if part.sha256 not in known:
                quiet_libraries()
                state, told = read_file(part)
                if kind_of(state) == PLAIN:
                    with around.in_place(pipe):
                        known[part.sha256] = self._add(pipe, part, read_lora(pipe, part, state, told), notice)
                else:
                    known[part.sha256] = read_additions(networks_of(pipe), part.id, state, told, self._device, notice)
            known.move_to_end(part.sha256)
        while len(known) > max(KEPT, len(parts)):
            oldest = known.popitem(last=False)[1]
            if isinstance(oldest, str):
                with around.in_place(pipe):
                    pipe.delete_adapters(oldest)

    def _add(self, pipe: Any, part: PartRef, read: State, notice: Callable[[str], None]) -> str:
        """Load one LoRA beside a model's weights, or nothing of it; return PEFT's name for it."""
        name = f"lora-{part.sha256[:16]}"
        state = fitting(pipe, read, part.id)
        if left_out := sorted(set(read) - set(state)):
            notice(
                f"{len(left_out)} of {len(read)} weights of the LoRA {part.id} have no place here, such as {left_out[0]}."
            )
        try:
            told = {key: one.to(self._device.dtype) for key, one in state.items()}
            pipe.load_lora_weights(dict(told), adapter_name=name)
            restore(denoiser(pipe), name, told)
        except torch.OutOfMemoryError:
            self._forget(pipe, name)
            raise
        except Exception as error:
            self._forget(pipe, name)
            raise ModelError(f"LoRA {part.id} could not be loaded: {first_line(error)}; copy it again") from error
        return name

    def _forget(self, pipe: Any, name: str) -> None:
        with contextlib.suppress(ValueError):  # it may be in some of the networks only, or in none
            pipe.delete_adapters(name)


class Place(NamedTuple):
    """Where PEFT's layer can stand in for the model's own.

    Attributes:
        network: name of the network.
        path: of the module there.
        parent: what holds it; a strong reference could keep the whole model in memory.
    """

    network: str
    path: str
    parent: "weakref.ref[torch.nn.Module]"
    layer: Any

    def put(self, module: torch.nn.Module) -> None:
        """Put a module into the place."""
        if parent := self.parent():
            setattr(parent, self.path.rpartition(".")[2], module)


class Surroundings:
    """The LoRA around one model: content's hash -> PEFT's name, or what is added by hooks; the last used at the end.

    PEFT's own switch walks over all matrices of all adapters at each change, to say that none is trained; layers that do not stand in
    the model need no switch, and a model without LoRA is the model itself.
    """

    def __init__(self) -> None:
        self.known: OrderedDict[str, str | Additions] = OrderedDict()
        self._places: list[Place] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @contextlib.contextmanager
    def in_place(self, pipe: Any) -> Iterator[None]:
        """Put all of PEFT's layers into the model, where PEFT looks for them; whatever came or went is known afterwards."""
        for place in self._places:
            place.put(place.layer)
        try:
            yield
        finally:
            self._places = [
                Place(name, path, weakref.ref(network.get_submodule(path.rpartition(".")[0])), module)
                for name, network in networks_of(pipe).items()
                for path, module in network.named_modules()
                if isinstance(module, BaseTunerLayer)
            ]
            self.switch_off()

    def switch_on(self, strengths: Mapping[str, Strength]) -> None:
        """Let LoRA (content's hash -> how strongly) count, and no others."""
        named = {self.known[key]: strength for key, strength in strengths.items() if isinstance(self.known[key], str)}
        for place in self._places if named else ():
            here = [name for name in named if name in place.layer.scaling]
            weights = {name: named[name](place.network, place.path) for name in here}
            active = [name for name, weight in weights.items() if weight]
            if not active:
                continue
            if place.layer.active_adapters != active:
                place.layer.set_adapter(active, inference_mode=True)
            for name in active:
                place.layer.set_scale(name, weights[name])
            place.put(place.layer)
        for key, strength in strengths.items():
            if isinstance(added := self.known[key], Additions):
                self._hooks += added.attach(strength)

    def switch_off(self) -> None:
        """Give every place back to the model's own layer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for place in self._places:
            place.put(place.layer.get_base_layer())


def restore(network: torch.nn.Module, name: str, state: State) -> None:
    """Give a LoRA back what it lost: PEFT rounds it to what the layer's weights are kept in, which float8 is for and a LoRA is not."""
    lost = {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and name in cast(Any, layer).scaling
        and _kept_in_less(layer.get_base_layer())
    }
    for key, told in state.items():
        path, _, side = key.partition(".")[2].removesuffix(".weight").rpartition(".")
        if path in lost:
            part = getattr(lost[path], side)[name]
            part.to(told.dtype).weight.copy_(told)


def _kept_in_less(layer: Any) -> bool:
    return layer.weight.is_floating_point() and layer.weight.element_size() == 1


def networks_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the networks that a LoRA may change, by name."""
    return {
        name: one
        for name, one in pipe.components.items()
        if isinstance(one, torch.nn.Module) and (name.startswith("text_encoder") or one is denoiser(pipe))
    }


def strength_of(spec: LoraSpec, pipe: Any) -> Strength:
    """Return how strongly a LoRA counts in each module of a pipeline.

    Raises:
        ModelError: if its block weights do not fit the denoiser.
    """
    blocks = blocks_of(denoiser(pipe).config)
    try:
        weights = block_weights(spec.blocks, blocks) if spec.blocks else {}
    except ValueError as error:
        raise ModelError(f"LoRA {spec.name}: {error}") from None

    def strength(network: str, path: str) -> float:
        if network.startswith("text_encoder"):
            return spec.words_weight
        return spec.weight * weights[block_of(path, blocks)] if blocks and weights else spec.weight

    return strength


def read_file(part: PartRef) -> tuple[State, dict[str, Any]]:
    """Read a file of adapter weights, and what diffusers' metadata say of it.

    Raises:
        ModelError: if the file is damaged.
    """
    try:
        with safe_open(part.path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            state = {key.removeprefix("base_model.model."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelError(f"LoRA {part.id} could not be read: {first_line(error)}; copy it again") from error
    aside = (".alpha", ".on_input")
    if broken := next((key for key, one in state.items() if not key.endswith(aside) and not _sound(one)), None):
        raise ModelError(
            f"LoRA {part.id} holds what no weight is (NaN, infinite or whole numbers, in {broken}); copy it again"
        )
    if not isinstance(told, dict):
        raise ModelError(f"LoRA {part.id} could not be read: its metadata are no table; copy it again")
    return state, told


def read_lora(pipe: Any, part: PartRef, state: State, told: dict[str, Any]) -> State:
    """Turn a LoRA into PEFT's keys, its scale (alpha / rank) within its weights.

    diffusers finds alpha in kohya's keys and in its own metadata; what a text encoder needs it then looks for in metadata that may
    speak of the denoiser only (0.42), so that metadata is read here.

    Raises:
        ModelError: if the file is of an unknown kind.
    """
    try:
        network = denoiser(pipe)
        more = {"unet_config": network.config} if hasattr(pipe, "unet") else {"return_alphas": True}
        answer = type(pipe).lora_state_dict(state, **more)
        state, alphas = answer[:2] if isinstance(answer, tuple) else (answer, None)
        state = {peft_key(key): one for key, one in state.items()}
        prefix = "unet" if hasattr(pipe, "unet") else "transformer"
        if not any(key.startswith((prefix, "text_encoder")) for key in state):  # PEFT's own files name no network
            state = {f"{prefix}.{key}": one for key, one in state.items()}
        state = scaled(state, {peft_key(key): alpha for key, alpha in (alphas or {}).items()}, told)
    except Exception as error:
        raise ModelError(f"LoRA {part.id} could not be read: {first_line(error)}; copy it again") from error
    return state


def _sound(weight: torch.Tensor) -> bool:
    """Whether a tensor holds what weights are."""
    return weight.is_floating_point() and bool(torch.isfinite(weight.float()).all())


def layers_of(state: State) -> dict[str, Layer]:
    """Return the layers of a LoRA by the name of the module that each belongs to."""
    found = {}
    for key in state:
        name = key.removesuffix(DOWN)
        if key.endswith(DOWN) and name + UP in state:
            found[name] = Layer(key, name + UP)
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
        rank = len(state[layer.down])
        config, usual = told_alpha(name, told)
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
        wanted = shape_of(module)
        up, down = state[layer.up], state[layer.down]
        if up.ndim < 2 or up.ndim != down.ndim or up.shape[1] != len(down) or not len(down):
            sizes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise ModelError(f"LoRA {name} is damaged: the sizes {sizes} of {path} do not fit together; copy it again")
        found = (len(up), *down.shape[1:])
        if found != wanted:
            raise ModelError(
                f"LoRA {name} was trained for another model: {path} is {found} there and {wanted} here; choose one of its kind"
            )
        kept |= {key: state[key] for key in layer}
    if not kept:
        raise ModelError(
            f"LoRA {name} fits nothing in this model: none of its {len(layers)} layers is here; choose another"
        )
    return kept


def shape_of(module: Any) -> tuple[int, ...]:
    """Return the shape of a layer's weight, (out, in) or (out, in, kh, kw); four bits of it lie in another."""
    if isinstance(module, torch.nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


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
