"""What is known of work once every name is resolved: the model as it was, the job, the machine, the finished picture."""

from studio.fields import Frozen
from studio.gguf_header import is_gguf
from studio.loras import LoraSpec
from studio.spec import GenerationRequest


class ModelRef(Frozen):
    """One model as it was when a job was submitted.

    Attributes:
        id: name in the library.
        path: folder with `model_index.json`, or a file that holds a whole model.
        family: key of `families.FAMILIES`.
        sha256: of its files' names and contents.
        noise: `diffusion`, `edm`, `flow` or `flow-solver`: which schedulers can work.
        kind: `""`, or a key of `ModelFamily.kinds` for a model that can do less: `inpaint`, `depth`, `refiner`.
        latent_rgb: (C + 1, 3) linear map from latents to colour for previews, or () for the family's.
        refiner: the model that draws the last steps, or the second stage, if the request names one.
        prediction: what a person says that a file was trained to predict, "" if the file is to say it.
        donor: the diffusers folder that gives a file what it does not hold: a tokenizer, text encoders, an autoencoder.
    """

    id: str
    path: str = ""
    title: str
    family: str
    sha256: str
    noise: str = "diffusion"
    kind: str = ""
    latent_rgb: tuple[tuple[float, float, float], ...] = ()
    refiner: "ModelRef | None" = None
    prediction: str = ""
    donor: "ModelRef | None" = None

    @property
    def weights(self) -> str:
        """What tells this model's weights from any other's."""
        return " ".join([self.sha256, self.prediction, self.donor.sha256 if self.donor else ""]).rstrip()

    @property
    def quantised(self) -> bool:
        """Whether it is a GGUF file, whose weights are kept as they are."""
        return is_gguf(self.path)


class PartRef(Frozen):
    """One model beside the main one, as it was when a job was submitted.

    Attributes:
        kind: key of `parts.KINDS`: `controlnet`, `upscaler` ….
        id: name in the library.
        path: its file or folder.
        sha256: of its content.
    """

    kind: str
    id: str
    path: str = ""
    sha256: str


class Template(Frozen):
    """What a person wrote, before styles, wildcards and choices became words: the fields of the request that they changed."""

    prompt: str
    negative_prompt: str
    styles: tuple[str, ...] = ()
    loras: tuple[LoraSpec, ...] = ()


class Expansion(Frozen):
    """What a template became for one group of pictures, with the parts that it names."""

    prompt: str
    negative_prompt: str
    loras: tuple[LoraSpec, ...] = ()
    parts: tuple[PartRef, ...] = ()


class Job(Frozen):
    """A request with every name, default and seed resolved: what is queued, journalled and sent to the worker.

    Attributes:
        template: what the request's prompts were made of, if anything in them was chosen.
        expansions: one for each group of `batch_size` pictures; empty if the request's own words count for all.
    """

    id: str
    request: GenerationRequest
    model: ModelRef
    parts: tuple[PartRef, ...] = ()
    template: Template | None = None
    expansions: tuple[Expansion, ...] = ()
    owner: str = ""
    preview: bool = True

    @property
    def given(self) -> GenerationRequest:
        """The request with its template in place of what that became, to be resolved once more."""
        return self.request.model_copy(update=dict(self.template)) if self.template else self.request

    def of_group(self, first: int) -> "Job":
        """Return the job as it is for the group that begins with picture `first`."""
        if not self.expansions:
            return self
        told = dict(self.expansions[first // self.request.batch_size])
        parts = told.pop("parts")
        return self.model_copy(update={"request": self.request.model_copy(update=told), "parts": parts})


class Machine(Frozen):
    """What else decides the last bits of a picture; kept with it and compared by replay."""

    studio: str
    torch: str
    diffusers: str
    transformers: str
    device: str
    dtype: str
    cpu_threads: int
    opencv: str = ""  # with controlnet_aux, decides what a preprocessor makes; older pictures do not say it
    controlnet_aux: str = ""


class ImageRecord(Frozen):
    """One finished picture: everything needed to make it again.

    `request.seed` is this picture's own job seed, `index` its place; `notes` are what a person should know of how it was made.
    `template` is what its prompts were made of, if styles, wildcards or choices were in them.
    """

    id: str
    created: str
    request: GenerationRequest
    model: ModelRef
    parts: tuple[PartRef, ...] = ()
    seed: int
    index: int
    machine: Machine
    notes: tuple[str, ...] = ()
    template: Template | None = None
