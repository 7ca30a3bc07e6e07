"""The child of `merging`: reads checkpoints tensor by tensor, merges, and writes; never more than a few tensors are in memory."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import safe_open

from studio.engine.deltas import delta_of
from studio.engine.lora_names import State, diffusers_names, layers_in, peft_key, places_of, with_alpha
from studio.engine.single_names import Rows, single_names
from studio.lora_blocks import block_of, block_weights, blocks_of
from studio.loras import LoraSpec
from studio.store import writer
from studio.store.headers import safetensors_header, safetensors_problem
from studio.yaml_text import read_yaml

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
COUNTERS = "position_ids"  # numbers that some files have and others do not


class Refused(Exception):
    """Why nothing can be merged, in one sentence."""


class Entry(NamedTuple):
    """One tensor of a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> torch.Tensor:
        """Read it into memory of its own; a mapped file would count as this process's memory."""
        if not self.end - self.begin:
            return torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.begin)
            data = bytearray(self.end - self.begin)
            file.readinto(data)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


class Checkpoint:
    """The tensors of a diffusers folder (by network and name) or of a single file (by name).

    Attributes:
        files: file -> the names of its tensors, in their order.
        entries: name -> where it lies.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.files: dict[Path, list[str]] = {}
        self.entries: dict[str, Entry] = {}
        for file in [path] if path.is_file() else weight_files(path):
            if problem := safetensors_problem(file):
                raise Refused(f"{name}: {file.name} {problem}; copy the file again")
            start = int.from_bytes(file.open("rb").read(8), "little") + 8
            prefix = "" if path.is_file() else f"{file.parent.name}/"
            header = {key: one for key, one in safetensors_header(file).items() if key != "__metadata__"}
            self.files[file] = [prefix + key for key in sorted(header, key=lambda key: header[key]["data_offsets"])]
            for key, one in header.items():
                if one["dtype"] not in DTYPES:
                    raise Refused(f"{name}: {key} is of the type {one['dtype']}, which cannot be merged")
                begin, end = one["data_offsets"]
                self.entries[prefix + key] = Entry(
                    file, DTYPES[one["dtype"]], tuple(one["shape"]), start + begin, start + end
                )

    def config(self, network: str) -> dict[str, Any]:
        """Return a network's `config.json`; {} if there is none."""
        path = self.path / network / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Summand(NamedTuple):
    """What a LoRA adds to some rows of a tensor."""

    rows: Rows
    parts: State
    weight: float


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that diffusers would load, network by network."""
    found = []
    for network in NETWORKS:
        every = sorted((folder / network).glob("*.safetensors"))
        index = next(iter(sorted((folder / network).glob("*.safetensors.index.json"))), None)
        usual = [path for path in every if path.stem in ("model", "diffusion_pytorch_model")]
        if usual or not index:
            found += usual or every
        else:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            found += [path for path in every if path.name in shards]
    return found


def main() -> int:
    """Merge what stdin says; tell on stdout what became of it."""
    print(json.dumps(attempt(json.load(sys.stdin))))
    return 0


def attempt(plan: dict[str, Any]) -> dict[str, Any]:
    """Merge; return what is wrong as `problem`, and whether the request is to blame as `invalid`."""
    said: dict[str, Any] = {"problem": "", "invalid": True}
    try:
        with torch.inference_mode():
            merge(plan)
    except Refused as refusal:
        said["problem"] = str(refusal)
    except MemoryError:
        said |= {
            "problem": "there is too little memory even for single tensors; close other programs",
            "invalid": False,
        }
    except OSError as error:
        said |= {"problem": f"the merged model could not be written: {error.strerror or error}", "invalid": False}
    return said


def merge(plan: dict[str, Any]) -> None:
    """Check that everything fits together, then write."""
    sources = [Checkpoint(one["name"], Path(one["path"])) for one in plan["models"]]
    first = sources[0]
    for other in sources[1:]:
        check_names(first, other)
    summands: dict[str, list[Summand]] = {}
    for one in plan["loras"]:
        for name, more in read_summands(LoraSpec(**one["spec"]), Path(one["path"]), first).items():
            summands.setdefault(name, []).extend(more)
    facts = {"format": "pt", "studio.merge": json.dumps(plan["provenance"])}
    out = Path(plan["out"])

    def content(file: Path) -> Iterator[bytes | memoryview]:
        names = first.files[file]
        kinds = {name: kind_in(first.entries[name].dtype, plan["precision"]) for name in names}
        yield header_of(first, names, kinds, facts)
        for name in names:
            yield raw(merged(name, sources, summands.get(name, []), plan).to(kinds[name]), f"{name} of {out.name}")

    if first.path.is_file():
        writer.write_stream(out, content(first.path), replace=False)
    else:
        writer.write_directory(out, lambda folder: fill(folder, first, content))


def fill(folder: Path, first: Checkpoint, content: Any) -> None:
    """Fill a new model's folder: merged weights, and everything else as the first model has it."""
    for path in sorted(first.path.rglob("*")):
        place = folder / path.relative_to(first.path)
        if path in first.files:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:
                file.writelines(content(path))
        elif path.name == "studio.yaml":
            told = read_yaml(path.read_text(encoding="utf-8"))
            told.pop("title", None)  # the new model is called by its own name
            place.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
        elif path.is_file() and is_kept(path, first):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def is_kept(path: Path, first: Checkpoint) -> bool:
    """Whether a file that is not merged belongs to the new model: settings, words, and weights of networks that are not merged."""
    if path.name == writer.MANIFEST:
        return False
    if path.suffix == ".safetensors":
        return path.parent.name not in NETWORKS
    return path.suffix in (".json", ".txt", ".model", ".yaml") and "fp16" not in path.name


def check_names(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse models whose tensors are not the same ones.

    Raises:
        Refused: naming the first difference.
    """
    names = {name for name in first.entries if not name.endswith(COUNTERS)}
    if missing := sorted(names - other.entries.keys()):
        raise Refused(
            f"{other.name} lacks {len(missing)} of the {len(names)} weights of {first.name}, such as {missing[0]}; "
            "merge models of one family and one form"
        )
    for name in names:
        here, there = first.entries[name].shape, other.entries[name].shape
        if here != there:
            raise Refused(f"{name} is {here} in {first.name} and {there} in {other.name}; merge models of one family")


def merged(name: str, sources: Sequence[Checkpoint], summands: list[Summand], plan: dict[str, Any]) -> torch.Tensor:
    """Return one tensor of the new model in float32, or as it is if nothing changes it.

    Raises:
        Refused: if it is not finite, naming the source.
    """
    own = sources[0].entries[name].read()
    if not own.is_floating_point() or (name.endswith(COUNTERS)):
        return own
    ratios = plan["ratios"]
    made = own.float() if len(sources) > 1 or summands else own
    if len(sources) > 1:
        others = [source.entries[name].read().float() for source in sources[1:]]
        if plan["method"] == "add-difference":
            made = made + ratios[0] * (others[0] - others[1])
        elif len(others) == 1:
            made = torch.lerp(made, others[0], ratios[0])
        else:
            made = made + sum(ratio * (other - made) for ratio, other in zip(ratios, others, strict=True))
    if summands:
        base, made = made, made.clone()
        for rows, parts, weight in summands:
            part = slice(*rows) if rows else slice(None)
            made[part] += weight * (parts["diff_b"] if "diff_b" in parts else delta_of(parts, base[part]))
    if not torch.isfinite(made.float()).all():
        broken = next((one.name for one in sources if not torch.isfinite(one.entries[name].read().float()).all()), "")
        raise Refused(
            f"{name} of {broken} holds NaN or infinite numbers; copy that model again"
            if broken
            else f"{name} becomes infinite; choose smaller ratios or weights"
        )
    return made


def raw(tensor: torch.Tensor, name: str) -> memoryview:
    """Return a tensor's bytes.

    Raises:
        Refused: if it does not fit into its type.
    """
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise Refused(
            f"{name} is too large for {str(tensor.dtype).removeprefix('torch.')}; merge with precision float32"
        )
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def kind_in(dtype: torch.dtype, precision: str) -> torch.dtype:
    """Return the type of a tensor in the new model."""
    return dtype if precision == "keep" or not dtype.is_floating_point else getattr(torch, precision)


def header_of(first: Checkpoint, names: list[str], kinds: dict[str, torch.dtype], facts: dict[str, str]) -> bytes:
    """Return the header of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": facts}
    place = 0
    for name in names:
        entry = first.entries[name]
        size = torch.empty(0, dtype=kinds[name]).element_size()
        for side in entry.shape:
            size *= side
        key = name if first.path.is_file() else name.partition("/")[2]
        header[key] = {"dtype": NAMES[kinds[name]], "shape": entry.shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_summands(spec: LoraSpec, path: Path, first: Checkpoint) -> dict[str, list[Summand]]:
    """Return what a LoRA adds, by the tensor of the model.

    Raises:
        Refused: if it fits nothing, or has a size of its own.
    """
    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        state = {key.removeprefix("base_model.model."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        layers = layers_in({peft_key(key): one for key, one in state.items()})
    except ValueError as error:
        raise Refused(f"LoRA {spec.name}: {error}; copy it again") from None
    modules = modules_of(first)
    networks = {network: [path for its, path in modules if its == network] for network in NETWORKS[:-1]}
    places = places_of(networks)
    if strange := layers.keys() - places.keys():
        layers_a_block = first.config("unet").get("layers_per_block", 2)
        renamed = diffusers_names(strange, SimpleNamespace(layers_per_block=layers_a_block)) if networks["unet"] else {}
        ends = {layer: peft_key(key).rpartition(".lora_")[0] for layer, key in renamed.items()}
        places |= {layer: places[end] for layer, end in ends.items() if end in places}
    if not layers.keys() & places.keys():
        raise Refused(
            f"LoRA {spec.name} fits nothing in {first.name}: none of its {len(layers)} layers is there; choose another"
        )
    blocks = blocks_of(first.config("unet") or first.config("transformer")) if spec.blocks else None
    weights = block_weights(spec.blocks, blocks) if spec.blocks else {}
    made: dict[str, list[Summand]] = {}
    for layer in sorted(layers.keys() & places.keys()):
        network, module = places[layer]
        weight = spec.weight * weights[block_of(module, blocks)] if blocks and weights else spec.weight
        weight = spec.words_weight if network.startswith("text") else weight
        name, rows = modules[network, module]
        parts = with_alpha(layers[layer], f"{network}.{module}", told)
        bias = parts.pop("diff_b", None)
        shape = first.entries[name].shape
        shape = (rows[1] - rows[0], *shape[1:]) if rows else shape
        check(parts, shape, f"LoRA {spec.name} does not fit {first.name}: {layer}")
        if weight and parts:
            made.setdefault(name, []).append(Summand(rows, parts, weight))
        beside = name.removesuffix("weight") + "bias"
        if weight and bias is not None and beside in first.entries:
            made.setdefault(beside, []).append(Summand(rows, {"diff_b": bias.float()}, weight))
    return made


def check(parts: State, shape: tuple[int, ...], what: str) -> None:
    """Refuse parts that are not finite, or do not make up a tensor of a shape."""
    if not all(bool(torch.isfinite(one.float()).all()) for one in parts.values()):
        raise Refused(f"{what} holds NaN or infinite numbers; copy it again")
    if not parts:
        return
    try:
        delta_of(parts, torch.zeros(shape))
    except (RuntimeError, KeyError, IndexError, StopIteration):
        sizes = ", ".join(f"{part} {tuple(one.shape)}" for part, one in parts.items() if one.ndim)
        raise Refused(f"{what} has {sizes}, which make no {shape}; choose one of its kind") from None


def modules_of(first: Checkpoint) -> dict[tuple[str, str], tuple[str, Rows]]:
    """Return the network and path of every module with a matrix, in diffusers' names -> its tensor and the rows there."""
    if first.path.is_file():
        return single_names({name: entry.shape for name, entry in first.entries.items()})
    found = {}
    for name, entry in first.entries.items():
        network, _, key = name.partition("/")
        if key.endswith(".weight") and len(entry.shape) > 1 and network != "vae":
            found[network, key.removesuffix(".weight")] = (name, None)
    return found
