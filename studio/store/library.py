"""Models on disk: what is in the model folders, whether it is safe and whole, and what it is. Reads headers only, no torch."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from studio.errors import InvalidRequest
from studio.families import FAMILIES
from studio.fitting import check_refiner, check_request, task_problem, usable
from studio.loras import take_tags
from studio.records import Expansion, Job, ModelRef, PartRef, Template
from studio.schedulers import scheduler_problem
from studio.spec import SEED_MAX, GenerationRequest, parse_request
from studio.store.checkpoints import ENDINGS, model_files
from studio.store.facts import facts_file
from studio.store.hashes import Hashes
from studio.store.index import Database
from studio.store.jobs import new_job_id
from studio.store.models import Model, can_give, completed, folder_files, model_indexes, needs_donor, read_model
from studio.store.parts import PartLibrary
from studio.store.runs import trained_in
from studio.store.texts import TextLibrary


class Library:
    """The models in some folders.

    Args:
        folders: looked through in order; of two models with one name the first counts.
        database: remembers hashes of large files; None hashes anew each time.
        part_roots: folders of ControlNets, adapters and other parts.
        runs: folder of training runs, whose results can be used from their first checkpoint on.
    """

    def __init__(
        self,
        folders: tuple[Path, ...],
        database: Database | None = None,
        part_roots: tuple[Path, ...] = (),
        runs: Path | None = None,
    ) -> None:
        self.folders, self._hashes, self._runs = folders, Hashes(database), runs
        self.parts = PartLibrary(part_roots, self._hashes, self._trained)
        self.texts = TextLibrary(part_roots)
        self._known: dict[Path, tuple[list[tuple[str, int, int]], Model]] = {}

    def models(self) -> list[Model]:
        """List all models, usable or not; new folders appear without a restart."""
        found: dict[str, Model] = {}
        for folder in self.folders:
            for index in sorted(model_indexes(folder)):
                name = index.parent.relative_to(folder).as_posix()
                found.setdefault(name, self._read(name, index.parent))
            for path in model_files(folder):
                name = path.relative_to(folder).with_suffix("").as_posix()
                found.setdefault(name, self._read(name, path))
        for name, path in self._trained().items():
            if (path / "model_index.json").is_file() and name not in found:
                found[name] = self._read(name, path)
        return [self._whole(model) for model in found.values()]

    def _trained(self) -> dict[str, Path]:
        return trained_in(self._runs) if self._runs else {}

    def get(self, model_id: str, field: str = "model") -> Model:
        """Find a usable model by its id; `field` is the request's, for messages.

        Raises:
            InvalidRequest: if there is none of this name, or it cannot be used.
        """
        for folder in self.folders if _is_name(model_id) else ():
            path = folder / model_id
            if (path / "model_index.json").is_file():
                return _usable(self._whole(self._read(model_id, path)), field)
            if file := next((one for end in ENDINGS if (one := path.with_name(path.name + end)).is_file()), None):
                return _usable(self._whole(self._read(model_id, file)), field)
        if (path := self._trained().get(model_id)) and (path / "model_index.json").is_file():
            return _usable(self._read(model_id, path), field)
        names = ", ".join(model.id for model in self.models() if not model.problem) or "none"
        raise InvalidRequest(
            field,
            f"{field}={model_id!r} is not in the library; there is: {names}; "
            f"put diffusers folders or .safetensors files into models/checkpoints of the data folder",
        )

    def _read(self, name: str, folder: Path) -> Model:
        """Read a model, or remember it if no file of it changed."""
        files = [folder, facts_file(folder)] if folder.is_file() else sorted(folder.rglob("*.*"))
        facts = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files if path.exists()]
        if folder not in self._known or self._known[folder][0] != facts:
            self._known[folder] = facts, read_model(name, folder)
        return self._known[folder][1]

    def _whole(self, model: Model) -> Model:
        """Complete what is known of a model by the one that gives what it lacks; if there is none, say what to get."""
        if model.problem or not needs_donor(model):
            return model
        if donor := self._donor(model):
            return completed(model, donor)
        what = " and ".join(model.lacks) or f"a vocabulary of {max(model.words_known.values()):,} words"
        title = FAMILIES[model.family].title
        problem = (
            f"the file lacks {what}; put {f'the {title} model that it was made of' if model.denoiser else f'any {title} model'} "
            f"in diffusers' folder format into {self.folders[-1]}, "
            "from which they are taken"
        )
        if not model.single:
            facts = FAMILIES[model.family]
            problem = (
                f"its prior, which reads the prompts, is missing; put it ({facts.prior_from}, a folder in diffusers' format) "
                f"into {self.folders[-1]}, beside the model"
            )
        if model.parts_from:
            problem = f"parts_from={model.parts_from!r} is no {title} model in diffusers' folder format that has {what}"
        return replace(model, problem=problem)

    def _donor(self, model: Model) -> Model | None:
        """Find the diffusers folder that gives a model what it lacks."""
        for folder in self.folders:
            for index in sorted(model_indexes(folder)):
                name = index.parent.relative_to(folder).as_posix()
                if model.parts_from in ("", name) and can_give(other := self._read(name, index.parent), model):
                    return other
        return None

    def reference(self, model: Model, refiner: str | None = None) -> ModelRef:
        """Describe a model for a job, with the hash of its content, and its refiner's if it has one.

        Raises:
            InvalidRequest: if the refiner is none.
        """
        second = self.get(refiner, "refiner") if refiner else None
        if second:
            check_refiner(model.family, model.noise, (second.family, second.kind, second.noise))
        donor = self._donor(model) if needs_donor(model) else None
        return ModelRef(
            id=model.id,
            path=str(model.path),
            title=model.title,
            family=model.family,
            sha256=self.sha256(model),
            prediction=model.override,
            donor=self.reference(donor) if donor else None,
            noise=model.noise,
            kind=model.kind,
            latent_rgb=model.latent_rgb,
            refiner=self.reference(second) if second else None,
        )

    def sha256(self, model: Model) -> str:
        """Return the hash of a model: a file's own, as other tools name it, or that of a folder's names and contents."""
        if model.single:
            return self._hashes.of_file(model.path)
        return self._hashes.of_folder(model.path, folder_files(model.path))

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
    path = PurePosixPath(model_id)
    plain = bool(path.parts) and path.as_posix() == model_id
    return plain and not {"..", "/"} & set(path.parts) and not set("\\:\0") & set(model_id)


def unknown_words(text: str, model: Model) -> list[str]:
    """Return the words of a prompt that a model with a word list does not know, in order, each once."""
    if not model.words:
        return []
    letters = "".join(ch.lower() if ch.isalnum() else " " for ch in text.replace("BREAK", " "))
    return [word for word in dict.fromkeys(letters.split()) if word not in model.words and not word.isdigit()]
