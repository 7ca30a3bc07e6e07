"""Models on disk: what is in the model folders, whether it is safe and whole, and what it is. Reads headers only, no torch."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from studio.errors import InvalidRequest, ModelError, StudioError
from studio.families import FAMILIES, defaults_of, detect_family
from studio.fitting import check_refiner, check_request, task_problem, usable
from studio.loras import take_tags
from studio.parts import shape_of
from studio.records import Expansion, Job, ModelRef, PartRef, Template
from studio.schedulers import SCHEDULERS, canonical, noise_kind, scheduler_problem
from studio.spec import SEED_MAX, GenerationRequest, parse_request
from studio.store.hashes import Hashes
from studio.store.headers import PICKLES, pickle_cure, read_json, safetensors_problem
from studio.store.index import Database
from studio.store.jobs import new_job_id
from studio.store.parts import PartLibrary
from studio.store.texts import TextLibrary

WEIGHTS = (".safetensors", *PICKLES)
DEPTH = 3


@dataclass(frozen=True)
class Model:
    """A model folder. `problem` says in one sentence why it cannot be used, "" if it can."""

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
    problem: str = ""


class Library:
    """The models in some folders.

    Args:
        folders: looked through in order; of two models with one name the first counts.
        database: remembers hashes of large files; None hashes anew each time.
        part_roots: folders of ControlNets, adapters and other parts.
    """

    def __init__(
        self, folders: tuple[Path, ...], database: Database | None = None, part_roots: tuple[Path, ...] = ()
    ) -> None:
        self.folders, self._hashes = folders, Hashes(database)
        self.parts, self.texts = PartLibrary(part_roots, self._hashes), TextLibrary(part_roots)
        self._known: dict[Path, tuple[list[tuple[str, int, int]], Model]] = {}

    def models(self) -> list[Model]:
        """List all models, usable or not; new folders appear without a restart."""
        found: dict[str, Model] = {}
        for folder in self.folders:
            for index in sorted(_model_indexes(folder)):
                name = index.parent.relative_to(folder).as_posix()
                found.setdefault(name, self._read(name, index.parent))
        return list(found.values())

    def get(self, model_id: str, field: str = "model") -> Model:
        """Find a usable model by its id; `field` is the request's, for messages.

        Raises:
            InvalidRequest: if there is none of this name, or it cannot be used.
        """
        for folder in self.folders if _is_name(model_id) else ():
            path = folder / model_id
            if (path / "model_index.json").is_file():
                return _usable(self._read(model_id, path), field)
        names = ", ".join(model.id for model in self.models() if not model.problem) or "none"
        raise InvalidRequest(
            field,
            f"{field}={model_id!r} is not in the library; there is: {names}; put diffusers folders into {self.folders[-1]}",
        )

    def _read(self, name: str, folder: Path) -> Model:
        """Read a model, or remember it if no file of it changed."""
        facts = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(folder.rglob("*.*"))]
        if folder not in self._known or self._known[folder][0] != facts:
            self._known[folder] = facts, read_model(name, folder)
        return self._known[folder][1]

    def reference(self, model: Model, refiner: str | None = None) -> ModelRef:
        """Describe a model for a job, with the hash of its content, and its refiner's if it has one.

        Raises:
            InvalidRequest: if the refiner is none.
        """
        second = self.get(refiner, "refiner") if refiner else None
        if second:
            check_refiner(model.family, model.noise, (second.family, second.kind, second.noise))
        return ModelRef(
            id=model.id,
            path=str(model.path),
            title=model.title,
            family=model.family,
            sha256=self._hashes.of_folder(model.path, _model_files(model.path)),
            noise=model.noise,
            kind=model.kind,
            latent_rgb=model.latent_rgb,
            refiner=self.reference(second) if second else None,
        )

    def resolve(
        self, request: GenerationRequest, seed: int, size: tuple[int, int] | None = None
    ) -> tuple[GenerationRequest, ModelRef]:
        """Fill a request with its model's defaults and check that they fit together.

        Args:
            request: as a person wrote it.
            seed: stands in for -1.
            size: width and height that the request's picture asks for, if it has one.

        Raises:
            InvalidRequest: one sentence.
        """
        request = self.with_loras(self.texts.filled(request, seed if request.seed == -1 else request.seed))
        model = self.get(request.model)
        if problem := task_problem(model.family, model.kind, request.task):
            raise InvalidRequest("model", f"model={model.id!r}: {problem}")
        step = FAMILIES[model.family].size_step
        own = {name: side // step * step for name, side in zip(("width", "height"), size or (), strict=bool(size))}
        defaults = model.defaults | own
        if request.only_enlarges and own == {}:  # the picture's own size counts, whatever it is
            defaults = {name: value for name, value in defaults.items() if name not in ("width", "height")}
        filled = fill_defaults(request, defaults, seed)
        assert filled.scheduler is not None
        if problem := scheduler_problem(filled.scheduler, filled.sigmas or "automatic", model.noise):
            raise InvalidRequest("scheduler", problem)
        check_request(model.family, model.kind, filled)
        return filled, self.reference(model, filled.refiner)

    def job(self, given: GenerationRequest, seed: int, size: tuple[int, int] | None = None, **facts: Any) -> Job:
        """Resolve a request into a job; each group of pictures gets its own choices of a template.

        Args:
            given: as a person wrote it, its pictures stored.
            seed: stands in for -1.
            size: see `resolve`.
            facts: what else the job says.

        Raises:
            InvalidRequest: one sentence.
        """
        request, model = self.resolve(given, seed, size)
        template, expansions = None, ()
        if self.texts.filled(given, request.seed) != given:
            template = Template(**{name: getattr(given, name) for name in Template.model_fields})
            expansions = self._expansions(given, request)
        parts = expansions[0].parts if expansions else self.parts_of(request)
        told: dict[str, Any] = {"template": template, "expansions": expansions, **facts}
        return Job(id=new_job_id(), request=request, model=model, parts=parts, **told)

    def _expansions(self, given: GenerationRequest, request: GenerationRequest) -> tuple[Expansion, ...]:
        """Choose for each group of a resolved request; () if all say the same."""
        made = []
        for first in range(0, request.num_images_per_prompt, request.batch_size):
            filled = self.with_loras(self.texts.filled(given, request.seed + first))
            words = {name: getattr(filled, name) for name in Expansion.model_fields if name != "parts"}
            now = parse_request(request.model_dump() | {name: getattr(filled, name) for name in words})
            model = self.get(now.model)
            check_request(model.family, model.kind, now)
            made.append(Expansion(**words, parts=self.parts_of(now)))
        return tuple(made) if any(one != made[0] for one in made) else ()

    def with_files(self, request: GenerationRequest, folder: Path) -> GenerationRequest:
        """Take in LoRA and ControlNets that a request names by their paths, relative to a folder; elsewhere names are never paths."""
        loras = []
        for lora in request.loras:
            path = folder / lora.name
            if path.suffix == ".safetensors" and path.is_file():
                self.parts.add_file("lora", path.stem, path)
                lora = lora.model_copy(update={"name": path.stem})
            loras.append(lora)
        controls = []
        for unit in request.controls:
            path = folder / unit.model
            if "/" in unit.model and ((path / "config.json").is_file() or path.suffix == ".safetensors"):
                name = path.name.removesuffix(".safetensors")
                self.parts.add_file("controlnet", name, path)
                unit = unit.model_copy(update={"model": name})
            controls.append(unit)
        return request.model_copy(update={"loras": tuple(loras), "controls": tuple(controls)})

    def with_loras(self, request: GenerationRequest) -> GenerationRequest:
        """Move what the prompt says of LoRA (`<lora:name:1>`) to the request's own list, under the names of the library.

        Raises:
            InvalidRequest: if a tag cannot be read, or there is no such LoRA.
        """
        prompt, tagged = take_tags(request.prompt)
        named = [(f"loras.{place}.name", lora) for place, lora in enumerate(request.loras)]
        named += [("prompt", lora) for lora in tagged]
        loras = [lora.model_copy(update={"name": self.parts.get("lora", lora.name, field).id}) for field, lora in named]
        return parse_request(request.model_dump() | {"prompt": prompt, "loras": loras}) if loras else request

    def usable(self, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out of a form's valid values what its model cannot honour; the form shows that as switched off."""
        model = self.get(values["model"])
        return usable(model.family, model.kind, values)

    def vae_of(self, model_id: str, name: str | None) -> PartRef | None:
        """Find the VAE that stands in for a model's own; see `PartLibrary.vae_of`."""
        return self.parts.vae_of(name, model_id, self.get(model_id).shape)

    def parts_of(self, request: GenerationRequest) -> tuple[PartRef, ...]:
        """Find the parts that a resolved request names; see `PartLibrary.of_request`."""
        return self.parts.of_request(request, self.get(request.model).shape)


def fill_defaults(request: GenerationRequest, defaults: dict[str, Any], seed: int) -> GenerationRequest:
    """Replace every `None` by the model's default and -1 by `seed`.

    Raises:
        InvalidRequest: if a default and the request do not fit together.
    """
    values = request.model_dump()
    values |= {name: defaults[name] for name, value in values.items() if value is None and name in defaults}
    values["sigmas"] = values["sigmas"] or "automatic"
    values["seed"] = seed if request.seed == -1 else request.seed
    if request.variation_strength and request.variation_seed == -1:
        values["variation_seed"] = (seed * 48271 + 1) % (SEED_MAX - 64)  # random as the seed is, and another
    if values["seed"] + values["num_images_per_prompt"] - 1 > SEED_MAX:
        last = SEED_MAX - values["num_images_per_prompt"] + 1
        raise InvalidRequest(
            "seed",
            f"seed={values['seed']} leaves no room for {values['num_images_per_prompt']} images; use at most {last}",
        )
    return parse_request(values)


def _usable(model: Model, field: str) -> Model:
    if model.problem:
        raise InvalidRequest(field, f"{field}={model.id!r} cannot be used: {model.problem}")
    return model


def _is_name(model_id: str) -> bool:
    """Whether an id can be the name of a folder below a model folder, and of no other place."""
    parts = PurePosixPath(model_id).parts
    return bool(parts) and not {"..", "/"} & set(parts) and not set("\\:\0") & set(model_id)


def _model_indexes(folder: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth) + "/model_index.json" for depth in range(1, DEPTH + 1)]
    return [path for pattern in patterns for path in folder.glob(pattern)] if folder.is_dir() else []


def _model_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".safetensors")
    ]


def read_model(name: str, folder: Path) -> Model:
    """Read what a model folder says about itself."""
    try:
        facts = read_facts(folder)
        index = read_json(folder / "model_index.json")
        denoiser = read_json(folder / ("transformer" if "transformer" in index else "unet") / "config.json")
        detected, kind = detect_family(index, denoiser)
        family = facts.get("family", detected)
        if family not in FAMILIES:
            raise ModelError(f"studio.yaml: family={family!r} must be one of: {', '.join(FAMILIES)}")
        check_weights(folder, index)
        schedule = read_json(folder / "scheduler" / "scheduler_config.json")
        noise = _noise(family, schedule)
        usual = canonical(schedule.get("_class_name", ""))
        if usual is None or SCHEDULERS[usual].noise != noise:
            usual = next(
                name
                for name in (FAMILIES[family].defaults["scheduler"], *SCHEDULERS)
                if SCHEDULERS[name].noise == noise
            )
        own = facts.get("defaults", {})
        defaults = defaults_of(family, kind, {"scheduler": schedule}, usual)
        checked = parse_request(own).model_dump()  # a typo or a wrong value is told, and names become ours
        defaults |= {field: checked[field] for field in own}
        return Model(
            id=name,
            path=folder,
            title=facts.get("title", name),
            family=family,
            noise=noise,
            kind=kind,
            shape=shape_of(denoiser, _vae_config(folder)) | _text_shape(folder, index, family),
            defaults=defaults,
            latent_rgb=tuple(map(tuple, facts.get("latent_rgb", ()))),
            words=frozenset(facts.get("words", ())),
            bytes=sum(path.stat().st_size for path in _model_files(folder)),
        )
    except StudioError as error:
        return Model(id=name, path=folder, title=name, problem=str(error))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OSError) as error:
        return Model(id=name, path=folder, title=name, problem=f"its files cannot be understood ({error})")


def _vae_config(folder: Path) -> dict[str, Any]:
    path = folder / "vae" / "config.json"
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
    if (noise != wanted) if wanted else noise.startswith("flow"):
        raise ModelError(
            f"its scheduler {scheduler!r} does not work with {FAMILIES[family].title}; copy the model folder again"
        )
    return noise


def read_facts(folder: Path) -> dict[str, Any]:
    """Read a model's `studio.yaml`; {} if it has none."""
    path = folder / "studio.yaml"
    if not path.is_file():
        return {}
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"studio.yaml cannot be read: {str(error).splitlines()[0]}") from None
    allowed = {"title", "family", "defaults", "latent_rgb", "words"}
    if not isinstance(facts, dict) or set(facts) - allowed or not isinstance(facts.get("defaults", {}), dict):
        raise ModelError(f"studio.yaml must be a mapping with only: {', '.join(sorted(allowed))}")
    return facts


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
        files = [path for path in (folder / part).iterdir() if path.suffix.lower() in WEIGHTS]
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


def unknown_words(text: str, model: Model) -> list[str]:
    """Return the words of a prompt that a model with a word list does not know, in order, each once."""
    if not model.words:
        return []
    letters = "".join(ch.lower() if ch.isalnum() else " " for ch in text.replace("BREAK", " "))
    return [word for word in dict.fromkeys(letters.split()) if word not in model.words and not word.isdigit()]
