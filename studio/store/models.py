"""What a model on disk says about itself, and whether it is safe and whole. Reads headers only, no torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.errors import ModelError, StudioError
from studio.families import FAMILIES, defaults_of, detect_family, prior_of
from studio.gguf_header import is_gguf
from studio.parts import shape_of, vae_shape
from studio.schedulers import SCHEDULERS, canonical, noise_kind
from studio.settings import CLIP_WORDS
from studio.spec import parse_request
from studio.store.checkpoints import dtype_of, read_checkpoint
from studio.store.facts import TOLD, read_facts
from studio.store.headers import PICKLES, pickle_cure, read_json, safetensors_header, safetensors_problem

WEIGHTS = (".safetensors", *PICKLES)
DEPTH = 3
PRIOR = "prior"
PARTS_ONLY = (
    "{part} has no weights (.safetensors), so its other parts only serve single files of its family; to draw with it, "
    "copy the model folder again"
)
READS_ONLY = "it only reads prompts for {title} models, which need it beside them; choose one of them to draw with"


@dataclass(frozen=True)
class Model:
    """A model: a diffusers folder, or a single file.

    Attributes:
        prediction: what a single file's denoiser says: `epsilon`, `v_prediction`, `flow` or `edm`; "" for a folder.
        told_by: what tells it: the file's `keys`, its `metadata`, its `studio.yaml`, or what is usual in its `family`.
        override: the prediction that `studio.yaml` gives.
        lacks: components that a file takes from a diffusers folder of its family; of a folder, its prior.
        denoiser: entries of its denoiser's configuration that the model must have from which it takes the rest; {} if it needs none.
        words_known: tokenizer -> words that a file's text encoder knows.
        parts_from: the id of the model to take them from, "" for the first that fits.
        classes: that a model of classes can be asked for, each by the first of its names.
        parts_only: whether its denoiser has no weights, so that it can only give its other parts to single files.
        about: where it comes from, as `studio.yaml` says: source, revision, licence, trigger words.
        problem: why it cannot be used, in one sentence; "" if it can.
    """

    id: str
    path: Path
    title: str
    family: str = ""
    noise: str = "diffusion"
    kind: str = ""
    shape: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    latent_rgb: tuple = ()
    words: frozenset[str] = frozenset()
    bytes: int = 0
    dtype: str = ""
    prediction: str = ""
    told_by: str = ""
    override: str = ""
    lacks: tuple[str, ...] = ()
    denoiser: dict[str, Any] = field(default_factory=dict)
    words_known: dict[str, int] = field(default_factory=dict)
    parts_from: str = ""
    licence: str = ""
    trigger_words: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    parts_only: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.is_file()

    @property
    def quantised(self) -> bool:
        """Whether its weights stand for others, so that nothing can be taught to them or mixed with them."""
        return is_gguf(self.path)


def model_indexes(folder: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth) + "/model_index.json" for depth in range(1, DEPTH + 1)]
    return [path for pattern in patterns for path in folder.glob(pattern)] if folder.is_dir() else []


def folder_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".safetensors")
    ]


def needs_donor(model: Model) -> bool:
    return bool(model.lacks) or any(words != CLIP_WORDS for words in model.words_known.values())


def can_give(donor: Model, model: Model) -> bool:
    """Say whether a folder has what a file lacks, in the sizes of the file."""
    if not model.single:
        return (donor.family, donor.kind) == (model.family, PRIOR) and _embedding(donor) in (0, _embedding(model))
    if (donor.problem and not donor.parts_only) or donor.family != model.family:
        return False
    index = read_json(donor.path / "model_index.json")
    if any(not (index.get(name) or [None])[0] for name in model.lacks):
        return False
    if model.denoiser:
        config = read_json(donor.path / "transformer" / "config.json")
        return all(config.get(name) == value for name, value in model.denoiser.items())
    same = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "in_channels")
    sizes = all(donor.shape.get(name) == model.shape.get(name) for name in same) or not model.lacks
    own = [words for words in model.words_known.values() if words != CLIP_WORDS]
    return sizes and all(_words(donor.path) == words for words in own)


def completed(model: Model, donor: Model) -> Model:
    """Return a file's model with what the folder tells that gives what it lacks."""
    if model.denoiser:
        return replace(
            model, kind=donor.kind, noise=donor.noise, shape=donor.shape, defaults=donor.defaults | model.defaults
        )
    given = {name: donor.shape[name] for name in ("text_widths", *vae_shape({})) if name in donor.shape}
    widths = {name: value for name, value in given.items() if name == "text_widths"}
    return replace(model, shape=widths | model.shape | (given if "vae" in model.lacks else {}))


def _embedding(model: Model) -> int:
    """Return how wide the embedding of a picture is that a prior makes, or that a denoiser draws from; 0 if it does not say."""
    place = (PRIOR, "embedding_dim") if model.kind == PRIOR else ("unet", "encoder_hid_dim")
    return read_json(model.path / place[0] / "config.json").get(place[1]) or 0


def _prior(name: str, folder: Path, index: dict[str, Any], family: str) -> Model:
    """Read a folder that only reads the prompts of a family's models."""
    check_parts(folder, index)
    check_weights(folder, index)
    size = sum(path.stat().st_size for path in folder_files(folder))
    problem = READS_ONLY.format(title=FAMILIES[family].title)
    dtype = _folder_dtype(folder, PRIOR)
    return Model(id=name, path=folder, title=name, family=family, kind=PRIOR, bytes=size, dtype=dtype, problem=problem)


def _words(folder: Path) -> int:
    """Return how many words the text encoder of a folder knows."""
    path = folder / "text_encoder" / "config.json"
    return read_json(path).get("vocab_size", 0) if path.is_file() else 0


def _file_model(name: str, path: Path, facts: dict[str, Any]) -> Model:
    """Read what a single file says about itself, and what stands beside it."""
    told = read_checkpoint(path, facts)
    told["defaults"] |= _own_defaults(facts)
    told["licence"] = str(facts.get("licence", told["licence"]))
    told["trigger_words"] = tuple(facts.get("trigger_words", told["trigger_words"]))
    latent_rgb = tuple(map(tuple, facts.get("latent_rgb", ())))
    own = {"override": str(facts.get("prediction", "")), "parts_from": str(facts.get("parts_from", ""))}
    about = {key: facts[key] for key in sorted(TOLD & set(facts))}
    title = facts.get("title", name)
    return Model(name, path, title, latent_rgb=latent_rgb, about=about, **own, **told)


def _own_defaults(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a `studio.yaml`; a typo or a wrong value is told, and names become ours."""
    own = facts.get("defaults", {})
    checked = parse_request(own).model_dump()
    return {field: checked[field] for field in own}


def read_model(name: str, folder: Path) -> Model:
    """Read what a model folder, or a model's file, says about itself."""
    try:
        facts = read_facts(folder)
        if folder.is_file():
            return _file_model(name, folder, facts)
        index = read_json(folder / "model_index.json")
        if whose := prior_of(index):
            return _prior(name, folder, index, whose)
        part = "transformer" if "transformer" in index else "unet"
        denoiser = read_json(folder / part / "config.json")
        detected, kind = detect_family(index, denoiser)
        family = facts.get("family", detected)
        if family not in FAMILIES:
            raise ModelError(f"studio.yaml: family={family!r} must be one of: {', '.join(FAMILIES)}")
        check_parts(folder, index)
        parts_only = not any(path.suffix.lower() in WEIGHTS for path in (folder / part).iterdir())
        check_weights(folder, {name: made for name, made in index.items() if not (parts_only and name == part)})
        schedule = read_json(folder / "scheduler" / "scheduler_config.json")
        noise = _noise(family, schedule)
        usual = canonical(schedule.get("_class_name", ""))
        if usual is None or SCHEDULERS[usual].noise != noise or usual in FAMILIES[family].refused_schedulers:
            usual = next(
                name
                for name in (FAMILIES[family].defaults["scheduler"], *SCHEDULERS)
                if SCHEDULERS[name].noise == noise
            )
        defaults = defaults_of(family, kind, {"scheduler": schedule}, usual) | _learnt_size(folder, family, denoiser)
        defaults |= _own_defaults(facts)
        return Model(
            id=name,
            path=folder,
            title=facts.get("title", name),
            family=family,
            noise=noise,
            kind=kind,
            shape=shape_of(denoiser, _vae_config(folder, family)) | _text_shape(folder, index, family),
            defaults=defaults,
            latent_rgb=tuple(map(tuple, facts.get("latent_rgb", ()))),
            lacks=(PRIOR,) if FAMILIES[family].prior and "prior_prior" not in index else (),
            parts_from=str(facts.get("parts_from", "")),
            words=frozenset(facts.get("words", ())),
            bytes=sum(path.stat().st_size for path in folder_files(folder)),
            dtype=_folder_dtype(folder, part),
            licence=str(facts.get("licence", "")),
            trigger_words=tuple(facts.get("trigger_words", ())),
            classes=tuple(str(names).split(",")[0].strip() for names in (index.get("id2label") or {}).values()),
            about={key: facts[key] for key in sorted(TOLD & set(facts))},
            parts_only=parts_only,
            problem=PARTS_ONLY.format(part=part) if parts_only else "",
        )
    except StudioError as error:
        return Model(id=name, path=folder, title=name, problem=str(error))
    except ValueError as error:
        problem = str(error) if folder.is_file() else f"its files cannot be understood ({error})"
        return Model(id=name, path=folder, title=name, problem=problem)
    except (TypeError, KeyError, IndexError, AttributeError, OSError) as error:
        return Model(id=name, path=folder, title=name, problem=f"its files cannot be understood ({error})")


def _learnt_size(folder: Path, family: str, denoiser: dict[str, Any]) -> dict[str, Any]:
    """Return the size in pixels that a denoiser learnt; {} where its config does not tell.

    Raises:
        ModelError: if no request can have it.
    """
    if not FAMILIES[family].sized:
        return {}
    told, step = denoiser.get("sample_size"), FAMILIES[family].size_step
    cell = 2 ** (len(_vae_config(folder, family).get("block_out_channels", "1")) - 1)
    height, width = (side * cell for side in (told if isinstance(told, list) else (told, told)))
    if not all(isinstance(side, int) and side >= 64 and side % step == 0 for side in (height, width)):
        raise ModelError(
            f"its network draws {width} x {height} pixels; sides of 64 and more that {step} divides can be drawn"
        )
    return {"width": width, "height": height}


def _folder_dtype(folder: Path, part: str) -> str:
    first = next(iter(sorted((folder / part).glob("*.safetensors"))), None)
    return dtype_of(safetensors_header(first)) if first else ""


def _vae_config(folder: Path, family: str) -> dict[str, Any]:
    path = folder / FAMILIES[family].autoencoder / "config.json"
    return read_json(path) if path.is_file() else {}


def _text_shape(folder: Path, index: dict[str, Any], family: str) -> dict[str, Any]:
    """Return how wide the vectors are that a model's text encoders read; {} if its prompts have no syntax, so that names are words."""
    if not FAMILIES[family].syntax:
        return {}
    names = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if (index.get(name) or [None])[0]]
    configs = [read_json(folder / name / "config.json") for name in names]
    return {"text_widths": tuple(config.get("hidden_size") or config.get("d_model") for config in configs)}


def _noise(family: str, schedule: dict[str, Any]) -> str:
    """Return the kind of noise that a model was trained with, from the scheduler's config that it was saved with.

    Raises:
        ModelError: if the class cannot work with the family.
    """
    scheduler, wanted = schedule.get("_class_name", ""), FAMILIES[family].noise
    noise = noise_kind(scheduler, flow_sigmas=bool(schedule.get("use_flow_sigmas")))
    if (noise != wanted) if wanted else noise not in ("diffusion", "edm"):
        raise ModelError(
            f"its scheduler {scheduler!r} does not work with {FAMILIES[family].title}; copy the model folder again"
        )
    return noise


LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "deepfloyd_if")  # the last two are diffusers' own, too
OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")


def check_parts(folder: Path, index: dict[str, Any]) -> None:
    """Refuse what would need code of its own, what lacks a part, and what says two things.

    Raises:
        ModelError: naming the file and the way out.
    """
    own = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")]
    for part, made in index.items():
        if part.startswith("_") or not isinstance(made, list) or len(made) != 2 or made[0] is None:
            continue
        library, class_name = made
        if library not in LIBRARIES:
            raise ModelError(
                f"{part} is made by code of the model's own ({library}{', in ' + own[0] if own else ''}), which is never run; "
                "choose a model of diffusers' own classes"
            )
        if part in OPTIONAL_PARTS:
            continue
        if not (folder / part).is_dir():
            raise ModelError(f"{part} is missing, which model_index.json names; copy the model folder again")
        if not (folder / part / "config.json").is_file():
            if library == "diffusers" and not part.endswith("scheduler"):
                raise ModelError(f"{part}/config.json is missing; copy the model folder again")
            continue
        config = read_json(folder / part / "config.json")
        if "auto_map" in config:
            raise ModelError(f"{part}/config.json asks for code of the model's own (auto_map), which is never run")
        if library == "diffusers" and config.get("_class_name") not in (None, class_name):
            raise ModelError(
                f"{part}/config.json is of {config['_class_name']!r} and model_index.json says {class_name!r}; "
                "copy the model folder again"
            )
    _check_links(folder)


def _check_links(folder: Path) -> None:
    """Refuse links to elsewhere, but for those of the Hub's cache, whose snapshots link to its blobs.

    Raises:
        ModelError: naming the link.
    """
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(one) for one in homes):
            name = path.relative_to(folder).as_posix()
            raise ModelError(f"{name} is a link to a place outside of the model's folder; copy the file itself there")


def _check_shards(part: Path) -> None:
    """Refuse an index of shards that names a file that is not there.

    Raises:
        ModelError: naming the index and the file.
    """
    for index in sorted(part.glob("*.safetensors.index.json")):
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelError(f"{part.name}/{index.name} names no files; copy the model folder again")
        for name in sorted(set(names.values())):
            if Path(name).name != name or not (part / name).is_file():
                raise ModelError(
                    f"{part.name}/{index.name} names {name}, which is missing; copy the model folder again"
                )


def check_weights(folder: Path, index: dict[str, Any]) -> None:
    """Refuse pickles and damaged files, judged by content.

    Raises:
        ModelError: naming the file and the way out.
    """
    for part, kind in index.items():
        if (
            part.startswith("_")
            or not isinstance(kind, list)
            or kind[0] is None
            or not (folder / part / "config.json").is_file()
        ):
            continue
        _check_shards(folder / part)
        files = [path for path in (folder / part).iterdir() if path.suffix.lower() in WEIGHTS and path.is_file()]
        safe = [path for path in files if path.suffix == ".safetensors"]
        if not safe and files:
            raise ModelError(
                f"{part}/{files[0].name} is a pickle, which can run code; get the model as .safetensors, "
                f"or {pickle_cure(files[0])}"
            )
        if not safe and part != "scheduler":
            raise ModelError(f"{part} has no weights (.safetensors); copy the model folder again")
        for path in safe:
            if problem := safetensors_problem(path):
                raise ModelError(f"{part}/{path.name} {problem}; copy the file again")
