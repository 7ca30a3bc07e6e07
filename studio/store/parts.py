"""Parts on disk: ControlNets, adapters, upscalers, VAEs. Reads headers only; new files appear without a restart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from studio.errors import InvalidRequest, ModelError
from studio.layouts import TINY, controlnet_config, controlnet_names, vae_config, vae_names
from studio.lora_blocks import blocks_problem
from studio.loras import rank_of, trained_for
from studio.parts import (
    KINDS,
    OWN_VAE,
    RESERVED,
    SD3_SHAPE,
    SD3_TEXT,
    UNET_SHAPE,
    UNIT_KINDS,
    Part,
    encoder_kind,
    shape_problem,
    vae_shape,
)
from studio.records import PartRef
from studio.spec import GenerationRequest
from studio.store.embeddings import named_embeddings, read_embedding
from studio.store.folders import with_neighbours
from studio.store.hashes import Hashes
from studio.store.headers import (
    PICKLES,
    pickle_cure,
    read_json,
    safetensors_header,
    safetensors_problem,
    tensor_shapes,
)
from studio.upscalers import uses_model
from studio.yaml_text import read_yaml

RANK_MAX = 2_048  # of a LoRA; the largest published ones have half of it
DEPTH = 2
TRAINED = ("lora", "embedding", "controlnet")
NO_VAE = "it is a network of the class {!r}; only AutoencoderKL can stand in for a model's VAE"
CONVOLUTION = 4  # dimensions of its weight: every upscaler has one
JOINT_LAYER = (  # of an IP-Adapter for Stable Diffusion 3: what it has for each of the model's attentions
    *("norm_ip.linear.weight", "norm_ip.linear.bias", "to_k_ip.weight", "to_v_ip.weight"),
    *("norm_q.weight", "norm_k.weight", "norm_ip_k.weight"),
)
JOINT_PICTURE = ("latents", "proj_in.weight", "proj_out.weight", "norm_out.weight", "time_embedding.linear_1.weight")


class PartLibrary:
    """The parts in some folders.

    Args:
        roots: folders that hold `controlnets`, `upscalers` …; of two parts with one name the first counts.
        hashes: of files.
        trained: what runs made, by the names under which it is used.
    """

    def __init__(self, roots: tuple[Path, ...], hashes: Hashes, trained: Callable[[], dict[str, Path]] = dict) -> None:
        self.roots, self._hashes, self._trained = roots, hashes, trained
        self._named: dict[tuple[str, str], Path] = {}
        self._read: dict[tuple[str, Path], tuple[tuple[int, int], Part | None]] = {}

    def add_file(self, kind: str, name: str, path: Path) -> None:
        """Take in a file that lies elsewhere, under a name of its own.

        Raises:
            InvalidRequest: if another one has that name.
        """
        taken = {part.id: part.path for part in self.parts(kind)}.get(name, path)
        if taken.resolve() != path.resolve():
            raise InvalidRequest(f"{kind}s", f"{path} and {taken} would both be called {name!r}; rename the first")
        self._named[kind, name] = path

    def parts(self, kind: str) -> list[Part]:
        """List all parts of a kind, usable or not."""
        found: dict[str, Part] = {}
        roots = with_neighbours(self.roots) if KINDS[kind].beside else self.roots
        for folder in (root / name for root in roots for name in KINDS[kind].folders):
            for path in sorted(_entries(folder, KINDS[kind].deep)) if folder.is_dir() else ():
                name = path.relative_to(folder).as_posix().removesuffix(".safetensors")
                if name not in found and (part := self._part(kind, name, path)):
                    found[name] = part
        for name, path in self._trained().items() if kind in TRAINED else ():
            if name not in found and (part := self._part(kind, name, path)) and not part.problem:
                found[name] = replace(part, names=(name,)) if kind == "embedding" else part
        for (its_kind, name), path in self._named.items():
            if its_kind == kind and (part := self._part(kind, name, path)):
                found[name] = part
        return list(found.values())

    def _part(self, kind: str, name: str, path: Path) -> Part | None:
        """Read a part, or remember it if it is a file that did not change."""
        if not path.is_file():
            return READERS[kind](kind, name, path)
        stat = path.stat()
        facts = stat.st_size, stat.st_mtime_ns
        if self._read.get((kind, path), (None,))[0] != facts:
            self._read[kind, path] = facts, READERS[kind](kind, name, path)
        return self._read[kind, path][1]

    def get(self, kind: str, part_id: str, field: str) -> Part:
        """Find a usable part.

        Raises:
            InvalidRequest: if there is none of this name, or it cannot be used.
        """
        parts = {part.id: part for part in self.parts(kind)}
        pickled = [part.id for part in parts.values() if part.problem and part.path.stem == part_id]
        below = [name for name in parts if kind == "lora" and name.rpartition("/")[2] == part_id]  # as A1111 calls it
        if len(below) > 1 and part_id not in parts:
            raise InvalidRequest(field, f"{field}={part_id!r} could be {' or '.join(below)}; write which")
        part_id = part_id if part_id in parts else next(iter([*pickled, *below]), part_id)
        if part_id not in parts:
            names = (
                ", ".join([*RESERVED.get(kind, ()), *(part.id for part in parts.values() if not part.problem)])
                or "none"
            )
            place = f"models/{KINDS[kind].folder}"  # strangers read this too: no path of this computer
            raise InvalidRequest(field, f"{field}={part_id!r} is no {KINDS[kind].title} in {place}; there is: {names}")
        if problem := parts[part_id].problem:
            raise InvalidRequest(field, f"{field}={part_id!r} cannot be used: {problem}")
        return parts[part_id]

    def reference(self, part: Part) -> PartRef:
        """Describe a part for a job, with the hash of its content."""
        files = [part.path] if part.path.is_file() else [path for path in part.path.rglob("*.*") if path.is_file()]
        folder = part.path.parent if part.path.is_file() else part.path
        return PartRef(kind=part.kind, id=part.id, path=str(part.path), sha256=self._hashes.of_folder(folder, files))

    def of_request(self, request: GenerationRequest, shape: dict[str, Any]) -> tuple[PartRef, ...]:
        """Find every part that a request names, each once.

        Args:
            request: resolved.
            shape: of its model, see `parts.shape_of`.

        Raises:
            InvalidRequest: if one is missing, cannot be used, or was made for another family.
        """
        found: dict[tuple[str, str], PartRef] = {}
        named = [
            (kind, unit.model, f"{name}.{place}.model")
            for name, kind in UNIT_KINDS.items()
            for place, unit in enumerate(getattr(request, name))
        ]
        named += [("lora", lora.name, f"loras.{place}.name") for place, lora in enumerate(request.loras)]
        for place, lora in enumerate(request.loras):
            if problem := blocks_problem(lora.blocks, shape.get("blocks")) if lora.blocks else "":
                raise InvalidRequest(f"loras.{place}.blocks", f"loras.{place}.blocks: {problem}")
        for kind, name, field in named:
            part = self.get(kind, name, field)
            if problem := shape_problem(part, shape):
                raise InvalidRequest(field, f"{field}={name!r} does not fit model={request.model!r}: {problem}")
            found[kind, part.id] = one = self.reference(part)
            same = [other.id for other in found.values() if other.sha256 == one.sha256 and other.id != one.id]
            if kind == "lora" and same:
                raise InvalidRequest(field, f"{field}={name!r} and {same[0]!r} are the same file; give it once")
        if not request.only_enlarges:
            for part in named_embeddings(self.parts("embedding"), request, shape):
                found["embedding", part.id] = self.reference(part)
        if vae := self.vae_of(request.vae, request.model, shape) if not request.only_enlarges else None:
            found["vae", vae.id] = vae
        if uses_model(request):
            part = self.get("upscaler", request.hires_upscaler, "hires_upscaler")
            found["upscaler", part.id] = self.reference(part)
        return tuple(found.values())

    def vae_of(self, name: str | None, model: str, shape: dict[str, Any]) -> PartRef | None:
        """Find the VAE that stands in for a model's own; None if its own does.

        Args:
            name: of the VAE, None or "own".
            model: for messages.
            shape: of the model.

        Raises:
            InvalidRequest: if it is missing, cannot be used, or was made for another family.
        """
        if name in (None, OWN_VAE):
            return None
        part = self.get("vae", name, "vae")
        if problem := shape_problem(part, shape):
            raise InvalidRequest("vae", f"vae={name!r} does not fit model={model!r}: {problem}")
        return self.reference(part)


def _entries(folder: Path, deep: bool) -> list[Path]:
    """Return what may be a part: folders with a `config.json` or an image encoder, and files of weights; if `deep`, also below."""
    found = []
    if deep:
        return [path for path in folder.rglob("*.*") if path.suffix.lower() in (".safetensors", *PICKLES)]
    for depth in range(1, DEPTH + 1):
        found += [
            path.parent for path in folder.glob("*/" * depth + "config.json") if path.parent.name != "image_encoder"
        ]
        found += [path.parent for path in folder.glob("*/" * depth + "image_encoder")]
        found += [path for path in folder.glob("*/" * (depth - 1) + "*.safetensors") if path.parent == folder]
    found += [path for path in folder.glob("*.*") if path.suffix.lower() in PICKLES]
    return list(dict.fromkeys(found))


def _read_folder(kind: str, name: str, path: Path) -> Part | None:
    """Read a diffusers folder; None if it is of another kind."""
    if not (path / "config.json").is_file():
        return None
    try:
        config = read_json(path / "config.json")
        wanted = KINDS[kind].classes.get(config.get("_class_name", ""))
        if wanted is None:
            return None
        _check_weights(path)
        if more := config.get("extra_conditioning_channels"):
            raise ModelError(
                f"it was trained to inpaint and wants a mask beside the picture (extra_conditioning_channels is {more}); "
                "use one without, which works with a mask just as well"
            )
        return Part(kind, name, path, _network_shape(config, wanted), preprocessor=_preprocessor(path))
    except ModelError as error:
        return Part(kind, name, path, {}, problem=str(error))


def _network_shape(config: dict[str, Any], wanted: dict[str, str]) -> dict[str, Any]:
    """Return what the main model must have, from a part's `config.json`."""
    shape = {ours: config.get(theirs) for theirs, ours in wanted.items()}
    if config.get("adapter_type") == "full_adapter_xl":  # its last level belongs to the middle of the UNet
        shape["block_out_channels"] = config["channels"][:3]
    if wanted is SD3_SHAPE and "joint_attention_dim" in config and config["joint_attention_dim"] is None:
        return {ours: value for ours, value in shape.items() if ours not in SD3_TEXT}  # it does not read the prompt
    return shape


def _read_controlnet(kind: str, name: str, path: Path) -> Part | None:
    """Read a ControlNet: a diffusers folder, or a file in diffusers' or latent-diffusion's layout."""
    if not path.is_file():
        return _read_folder(kind, name, path)
    try:
        shapes = tensor_shapes(path)
        told = controlnet_config({new: shapes[old] for old, new in controlnet_names(shapes).items()})
        return Part(kind, name, path, {ours: told[ours] for ours in UNET_SHAPE})
    except (ModelError, ValueError) as error:
        return Part(kind, name, path, {}, problem=str(error))
    except (TypeError, KeyError, IndexError) as error:
        return Part(kind, name, path, {}, problem=f"its files cannot be understood ({error})")


def _check_weights(folder: Path) -> None:
    """Refuse a diffusers folder without whole and safe weights.

    Raises:
        ModelError: naming the file and the way out.
    """
    weights = sorted(folder.glob("*.safetensors"))
    pickles = [path for path in folder.iterdir() if path.suffix.lower() in PICKLES]
    if not weights and pickles:
        raise ModelError(f"{pickles[0].name} is a pickle, which can run code; {pickle_cure(pickles[0])}")
    if not weights:
        raise ModelError("it has no weights (.safetensors); copy the folder again")
    for file in weights:
        if problem := safetensors_problem(file):
            raise ModelError(f"{file.name} {problem}; copy the file again")


def _preprocessor(path: Path) -> str:
    """Return what a part's `studio.yaml` says about its control pictures."""
    file = path / "studio.yaml"
    try:
        facts = read_yaml(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"studio.yaml cannot be read: {str(error).splitlines()[0]}") from None
    return str(facts.get("preprocessor", "")) if isinstance(facts, dict) else ""


def _read_ip_adapter(kind: str, name: str, path: Path) -> Part | None:
    """Read an IP-Adapter: a folder with one file of weights and `image_encoder`; None if it is something else."""
    if path.is_file() or (path / "config.json").is_file():
        return None
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        return None
    if len(weights) > 1:
        return Part(kind, name, path, {}, problem="it has several files of weights; keep one a folder")
    if problem := safetensors_problem(weights[0]):
        return Part(kind, name, path, {}, problem=f"{weights[0].name} {problem}; copy the file again")
    shapes = {key: entry["shape"] for key, entry in safetensors_header(weights[0]).items() if key != "__metadata__"}
    if not any(key.endswith(".to_k_ip.weight") for key in shapes):
        return None
    try:
        if not (path / "image_encoder" / "config.json").is_file():
            raise ModelError("it has no image encoder; put the folder `image_encoder` beside its weights")
        return Part(kind, name, path, _ip_shape(shapes, read_json(path / "image_encoder" / "config.json")))
    except ModelError as error:
        return Part(kind, name, path, {}, problem=str(error))


def _ip_shape(shapes: dict[str, list[int]], config: dict[str, Any]) -> dict[str, Any]:
    """Return what the main model must have for an IP-Adapter.

    Args:
        shapes: of its weights, by key. Those for Stable Diffusion 3 have norms beside the projections, a UNet's have not.
        config: of its image encoder.

    Raises:
        ModelError: if the weights are not whole, or the image encoder is not theirs.
    """
    layers: dict[str, dict[str, list[int]]] = {}
    for key, shape in shapes.items():
        group, number, name = [*key.split(".", 2), "", ""][:3]
        if group == "ip_adapter":
            layers.setdefault(number, {})[name] = shape
    joint = any("norm_ip.linear.weight" in names for names in layers.values())
    wanted = "siglip" if joint else "clip"
    if encoder_kind(config) != wanted:
        found = config.get("model_type", "unknown")
        raise ModelError(f"its image encoder is of the kind {found}; its weights were made with {wanted}_vision_model")
    if not joint:
        return {"cross_attention_dim": next(names["to_k_ip.weight"][1] for names in layers.values())}
    missing = [
        f"ip_adapter.{i}.{name}"
        for i in range(len(layers))
        for name in JOINT_LAYER
        if name not in layers.get(str(i), ())
    ]
    missing += [f"image_proj.{name}" for name in JOINT_PICTURE if f"image_proj.{name}" not in shapes]
    if missing:
        raise ModelError(f"it lacks {len(missing)} weights ({missing[0]}); copy its file again")
    width, own = shapes["image_proj.proj_in.weight"][1], config.get("vision_config", config).get("hidden_size")
    if own not in (None, width):
        raise ModelError(f"its image encoder is {own} wide and its weights were made with one of {width}")
    head = layers["0"]["norm_q.weight"][0]
    return {
        "num_attention_heads": layers["0"]["to_k_ip.weight"][0] // head,
        "attention_head_dim": head,
        "attention_layers": len(layers),
    }


def _read_upscaler(kind: str, name: str, path: Path) -> Part | None:
    """Read a file of an upscaler's weights; which network it is shows when it is loaded."""
    if not path.is_file():
        return None
    try:
        shapes = tensor_shapes(path)
        _check_name(kind, name)
    except ModelError as error:
        return Part(kind, name, path, {}, problem=str(error))
    if not any(len(shape) == CONVOLUTION for shape in shapes.values()):
        return Part(kind, name, path, {}, problem=f"{path.name} holds no image network; copy an upscaler's file")
    return Part(kind, name, path, {})


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that stands for something else in requests.

    Raises:
        ModelError: with the way out.
    """
    if name in RESERVED[kind]:
        raise ModelError("its name is that of a built-in one; give the file another name")


def _read_vae(kind: str, name: str, path: Path) -> Part | None:
    """Read a VAE: a diffusers folder, or a file in diffusers' or latent-diffusion's layout, which does not say its scale."""
    try:
        _check_name(kind, name)
        if path.is_file():
            shapes = tensor_shapes(path)
            told = vae_config({new: shapes[old] for old, new in vae_names(shapes).items()})
            return Part(kind, name, path, {ours: v for ours, v in vae_shape(told).items() if ours != "scaling_factor"})
        if not (path / "config.json").is_file():
            return None
        config = read_json(path / "config.json")
        class_name = config.get("_class_name", "")
        if class_name not in KINDS[kind].classes:
            raise ModelError(f"it is a {TINY}" if class_name == "AutoencoderTiny" else NO_VAE.format(class_name))
        if (config.get("in_channels", 3), config.get("out_channels", 3)) != (3, 3):
            raise ModelError("it is no autoencoder of pictures in three colours; copy the VAE of an image model")
        _check_weights(path)
        return Part(kind, name, path, vae_shape(config))
    except (ModelError, ValueError) as error:
        return Part(kind, name, path, {}, problem=str(error))
    except (TypeError, KeyError, IndexError) as error:
        return Part(kind, name, path, {}, problem=f"its files cannot be understood ({error})")


def _read_lora(kind: str, name: str, path: Path) -> Part | None:
    """Read a file of LoRA weights."""
    if not path.is_file():
        return None
    try:
        if ":" in name:
            raise ModelError("its name has a colon, which a prompt cannot say (<lora:name:1>); rename the file")
        shapes = tensor_shapes(path)
        if (rank := rank_of(shapes)) > RANK_MAX:
            raise ModelError(f"its rank is {rank:,}, and at most {RANK_MAX:,} are read; get the published file again")
        return Part(kind, name, path, trained_for(shapes))
    except ModelError as error:
        return Part(kind, name, path, {}, problem=str(error))
    except (TypeError, KeyError, IndexError) as error:
        return Part(kind, name, path, {}, problem=f"its header cannot be understood ({error})")


Reader = Callable[[str, str, Path], Part | None]
READERS: dict[str, Reader] = {
    "controlnet": _read_controlnet,
    "t2i_adapter": _read_folder,
    "ip_adapter": _read_ip_adapter,
    "upscaler": _read_upscaler,
    "vae": _read_vae,
    "lora": _read_lora,
    "embedding": read_embedding,
}
