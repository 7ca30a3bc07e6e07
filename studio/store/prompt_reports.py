"""Makes a `PromptReport` from a model's files: what the engine will do with a prompt, without the engine."""

import contextlib
from collections.abc import Iterable, Iterator

from studio.dynamic_prompts import expand
from studio.embeddings import Naming, layout_of
from studio.errors import InvalidRequest, ModelError
from studio.families import FAMILIES
from studio.family import ModelFamily
from studio.fitting import check_request
from studio.loras import LoraSpec, take_tags
from studio.parts import Part, shape_problem
from studio.prompt_report import EncoderReport, PromptReport, TextReport, TokenReport, chunk_report
from studio.prompt_syntax import Piece, moments, parse_prompt, plain_text, spoken, without_escapes
from studio.settings import CLIP_VOCABULARY, CLIP_WORDS
from studio.spec import GenerationRequest
from studio.store.embeddings import named_embeddings
from studio.store.headers import read_json, tensor_shapes
from studio.store.library import Library, fill_defaults, unknown_words
from studio.store.lora_facts import read_lora_facts
from studio.store.models import Model
from studio.store.texts import FIELDS
from studio.store.tokenizers import Tokenizers, Words
from studio.styles import with_styles

# Key of `engine.prompts.ENCODERS` -> the pipeline's tokenizers and what reads them; `pooled` hears the first chunk only.
# Models that are asked in a chat have none: how many tokens are left for a prompt is for their own template to say.
READERS: dict[str, dict[str, str]] = {
    "clip": {"tokenizer": "clip"},
    "sdxl": {"tokenizer": "clip", "tokenizer_2": "clip"},
    "sd3": {"tokenizer": "clip", "tokenizer_2": "clip", "tokenizer_3": "t5"},
    "flux": {"tokenizer": "pooled", "tokenizer_2": "t5"},
    "chroma": {"tokenizer": "t5"},
    "pixart": {"tokenizer": "t5"},
    "deepfloyd": {"tokenizer": "t5"},
}
SMALL = {"pixart", "deepfloyd"}  # whose pipelines write everything in small letters


class PromptReports:
    """Reports over a library's models.

    Args:
        library: models, parts and texts.
    """

    def __init__(self, library: Library) -> None:
        self._library, self._tokenizers = library, Tokenizers()

    def report(self, request: GenerationRequest) -> PromptReport:
        """Say what becomes of a request's words.

        Raises:
            InvalidRequest: if there is no such model.
        """
        model = self._library.get(request.model)
        family = FAMILIES[model.family]
        unknown: dict[str, list[str]] = {}
        problems: list[str] = []
        texts = self._texts(request, unknown, problems)
        texts["prompt"], loras = self._loras(texts["prompt"], request, model, unknown, problems)
        plain = request.model_copy(update={**texts, "loras": (), "styles": ()})
        filled = plain
        with told_in(problems):
            filled = fill_defaults(plain, model.defaults, 0)
            check_request(model.family, model.kind, filled)
        steps = filled.num_inference_steps or 1
        parts = self._library.parts.parts("embedding")
        named: list[Part] = []
        if "text_widths" in model.shape:
            naming = Naming(name for part in parts for name in part.names)
            for name, text in texts.items():
                with told_in(problems):
                    unknown.setdefault("embedding", []).extend(naming.unknown(spoken(text, steps, name)))
        if not unknown.get("embedding"):
            with told_in(problems):
                named = named_embeddings(parts, filled, model.shape)
        reader = _Reader(self._tokenizers, model, family, named)
        reports = {name: reader.text(text, name, steps, problems) for name, text in texts.items()}
        if not (getattr(filled, family.guidance) or 1) > 1:
            label = "True CFG" if family.guidance == "true_cfg_scale" else "CFG Scale"
            why = f"The negative prompt is ignored because {label} is 1."
            reports["negative_prompt"] = reports["negative_prompt"].model_copy(update={"ignored": why})
        ignored = [one.ignored for one in reports.values() if one.ignored and one.text.strip()]
        return PromptReport(
            model=model.id,
            family=family.title,
            **reports,
            loras=tuple(loras),
            embeddings=tuple(part.id for part in named),
            unknown={kind: tuple(dict.fromkeys(names)) for kind, names in unknown.items() if names},
            unknown_words=tuple(
                word
                for word in words_unknown(texts["prompt"], steps, model, named)
                if word not in trigger_words(self._library, loras)
            ),
            notes=(*ignored, *syntax_notes(family, texts, steps)),
            problems=tuple(dict.fromkeys(problems)),
        )

    def _texts(self, request: GenerationRequest, unknown: dict[str, list[str]], problems: list[str]) -> dict[str, str]:
        """Return the prompts with styles and choices."""
        texts = {name: getattr(request, name) for name in FIELDS}
        with told_in(problems):
            known = self._library.texts.styles() if request.styles else {}
            unknown["style"] = [name for name in request.styles if name not in known]
            texts = with_styles(texts, [known[name] for name in request.styles if name in known])
            wildcards = self._library.texts.wildcards()
            missing = unknown.setdefault("wildcard", [])
            seed = max(request.seed, 0)
            texts = {name: expand(text, wildcards, seed, name, missing=missing) for name, text in texts.items()}
        return texts

    def _loras(
        self,
        prompt: str,
        request: GenerationRequest,
        model: Model,
        unknown: dict[str, list[str]],
        problems: list[str],
    ) -> tuple[str, list[str]]:
        """Take the LoRA out of a prompt; return what is left, and the names of those that are there."""
        tagged: list[LoraSpec] = []
        with told_in(problems):
            prompt, tagged = take_tags(prompt)
        library, found = self._library.parts, []
        known = {name for part in library.parts("lora") for name in (part.id, part.id.rpartition("/")[2])}
        for spec in (*request.loras, *tagged):
            if spec.name not in known:
                unknown.setdefault("lora", []).append(spec.name)
                continue
            with told_in(problems):
                part = library.get("lora", spec.name, "prompt")
                if why := shape_problem(part, model.shape):
                    raise InvalidRequest("prompt", f"the LoRA {part.id!r} does not fit model={model.id!r}: {why}")
                found.append(part.id)
        return prompt, list(dict.fromkeys(found))


@contextlib.contextmanager
def told_in(problems: list[str]) -> Iterator[None]:
    """Go on after a refusal; its sentence is kept."""
    try:
        yield
    except InvalidRequest as error:
        problems.append(str(error))


class _Reader:
    """Reads texts as the text encoders of a model do.

    Args:
        tokenizers: of all models.
        model: at hand.
        family: of the model.
        named: the embeddings in the prompts.
    """

    def __init__(self, tokenizers: Tokenizers, model: Model, family: ModelFamily, named: list[Part]) -> None:
        self._tokenizers, self._model, self._family = tokenizers, model, family
        self._naming = Naming(name for part in named for name in part.names)
        self._vectors = {
            name.lower(): layout_of(tensor_shapes(part.path)).vectors for part in named for name in part.names
        }
        readers = READERS.get(family.prompts, {})
        if model.single:  # its vocabulary is CLIP's own, or else that of another model, which is not looked up here
            known = {words == CLIP_WORDS for words in model.words_known.values()} == {True}
            self._readers = {name: kind for name, kind in readers.items() if kind != "t5" and known}
        else:
            index = read_json(model.path / "model_index.json")
            self._readers = {name: kind for name, kind in readers.items() if (index.get(name) or [None])[0]}

    def text(self, text: str, field: str, steps: int, problems: list[str]) -> TextReport:
        """Report on one prompt; what cannot be read at all is told among the problems."""
        told = [(0.0, text if self._family.syntax else without_escapes(text))]
        best: tuple[EncoderReport, ...] = ()
        with told_in(problems):
            if self._family.syntax:
                told = moments(text, steps, field)
            for said in dict.fromkeys(said for _, said in told):
                found = tuple(self._encoder(name, kind, said, field, problems) for name, kind in self._readers.items())
                if not best or found[0].tokens > best[0].tokens:
                    best = found
        counted = best[0 if self._family.syntax else -1] if best else None
        return TextReport(
            text=text,
            moments=tuple(told),
            encoders=best,
            tokens=counted.tokens if counted else 0,
            limit=counted.limit if counted else 0,
        )

    def _encoder(self, name: str, kind: str, text: str, field: str, problems: list[str]) -> EncoderReport:
        try:
            words = self._tokenizers.get(CLIP_VOCABULARY if self._model.single else self._model.path / name)
        except ModelError as error:
            return EncoderReport(name=name, kind="t5" if kind == "t5" else "clip", problem=str(error))
        if kind == "t5":
            return self._long(name, words, text, field, problems)
        sections = parse_prompt(text, field) if kind == "clip" else [[Piece(text)]]
        said: dict[int, str] = {}

        def groups(piece: str) -> list[list[int]]:
            found = []
            for plain, called in self._naming.split(piece):
                for one in words.ids(plain) if plain else ():
                    said[one] = words.text(one)
                    found.append([one])
                if called:
                    ids = [-1 - len(said) - i for i in range(self._vectors[called])]
                    said.update(dict.fromkeys(ids, called))
                    found.append(ids)
            return found

        room = words.length - 2
        made = chunk_report(name, sections, groups, said, room)
        if kind != "pooled" or len(made.chunks) < 2:
            return made
        rest = [one for chunk in made.chunks[1:] for one in chunk]
        kept = {"tokens": room, "limit": room, "chunks": made.chunks[:1], "cut": " ".join(one.text for one in rest)}
        return made.model_copy(update=kept)

    def _long(self, name: str, words: Words, text: str, field: str, problems: list[str]) -> EncoderReport:
        """Report what T5 gets: the words without weights, in one piece."""
        plain = plain_text(parse_prompt(text, field)) if self._family.syntax else text
        plain = plain.lower().strip() if self._family.prompts in SMALL else plain
        ids, most = words.ids(plain, marks=True), self._family.text_limits[-1]
        cut = words.text(*ids[most - 1 : -1]) if len(ids) > most else ""
        if cut:
            problems.append(
                f"{field} has {len(ids)} tokens and {self._family.title} reads {most}; shorten it by what begins with "
                f"{cut[:60]!r}"
            )
        told = tuple(TokenReport(text=words.text(one)) for one in ids[: min(most, len(ids)) - 1])
        return EncoderReport(name=name, kind="t5", tokens=len(ids) - 1, limit=most - 1, chunks=(told,), cut=cut)


def unknown_to(library: Library, request: GenerationRequest) -> list[str]:
    """Return the words of a resolved request's prompt that its model does not know."""
    model = library.get(request.model)
    if not model.words:
        return []
    named = named_embeddings(library.parts.parts("embedding"), request, model.shape)
    called = trigger_words(library, [lora.name for lora in request.loras])
    words = words_unknown(request.prompt, request.num_inference_steps or 1, model, named)
    return [word for word in words if word not in called]


def trigger_words(library: Library, loras: Iterable[str]) -> set[str]:
    """Return the words, in small letters, that call some LoRA of the library."""
    paths = [library.parts.get("lora", name, "loras").path for name in loras]
    return {word.lower() for path in paths for said in read_lora_facts(path).trigger_words for word in said.split()}


def words_unknown(text: str, steps: int, model: Model, named: list[Part]) -> list[str]:
    """Return the words of a prompt that its model does not know; names of embeddings are known."""
    naming = Naming(name for part in named for name in part.names)
    said: list[str] = []
    with told_in([]):
        said = spoken(text, steps, "prompt")
    return unknown_words(" ".join(words for one in said for words, _ in naming.split(one)), model)


def syntax_notes(family: ModelFamily, texts: dict[str, str], steps: int) -> list[str]:
    """Say which syntax a text encoder cannot honour."""
    weighs = breaks = changes = False
    for name, text in texts.items():
        with told_in([]):
            told = moments(text, steps, name)
            changes |= len(told) > 1
            for _, said in told:
                sections = parse_prompt(said, name)
                breaks |= len(sections) > 1
                weighs |= any(piece.weight != 1 for section in sections for piece in section)
    if not family.syntax and (weighs or breaks or changes):
        return [f"{family.title} takes brackets and BREAK as text: weights and changing words are ignored."]
    if family.prompts == "sd3" and (weighs or breaks):
        return ["T5 hears the words alone: weights and BREAK are ignored there, and count in the two CLIPs."]
    return []
