"""What textual inversion is told."""

from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from studio.embeddings import ENCODER_KEYS, FORBIDDEN, PLAIN_KEYS, VECTORS_MAX, sayable
from studio.errors import InvalidRequest
from studio.fields import control
from trainers.concepts import Concept
from trainers.configs import AdapterConfig, TrainingConfig

LORA_ONLY = (*(name for name in AdapterConfig.model_fields if name not in TrainingConfig.model_fields), "weight_decay")


class TextualInversionConfig(AdapterConfig):
    """What textual inversion is told (Gal et al. 2022, arXiv:2208.01618), alone or with a LoRA (pivotal tuning).

    What a LoRA is told means nothing without `train_lora`, and is refused there.
    """

    placeholder_token: Annotated[
        str, control("Placeholder token", "words", "The new word, like <toy>; captions say it.", max_length=60)
    ] = "<new>"
    initializer_token: Annotated[
        str,
        control(
            "Initializer token", "words", "Known words that come near: the new one begins as them.", max_length=200
        ),
    ] = ""
    num_vectors: Annotated[
        int,
        control("Number of vectors per token", "words", "More can learn more, and take room.", ge=1, le=VECTORS_MAX),
    ] = 1
    learnable_property: Annotated[
        Literal["object", "style"],
        control("Learnable property", "words", "Decides the captions of pictures that have none."),
    ] = "object"
    learning_rate: Annotated[float, control("Learning rate", "steps", "Of the vectors and the LoRA.", ge=0, le=10)] = (
        5e-4
    )
    embedding_learning_rate: Annotated[
        float | None,
        control("Embeddings learning rate", "words", "Of the vectors alone; none is the learning rate.", ge=0, le=10),
    ] = None
    weight_decay: Annotated[float, control("Weight decay", "steps", "Pull of the LoRA towards 0.", ge=0, le=10)] = 0.01
    embedding_weight_decay: Annotated[
        float, control("Embeddings weight decay", "words", "Pull of the vectors towards 0; 0 is usual.", ge=0, le=10)
    ] = 0.0
    preserve_embedding_norm: Annotated[
        bool, control("Preserve embedding norm", "words", "Vectors keep the median length of the model's own words.")
    ] = False
    embedding_layout: Annotated[
        Literal["diffusers", "emb_params"],
        control("Embedding layout", "output", "diffusers keeps the placeholder; emb_params is A1111's and kohya's."),
    ] = "diffusers"
    train_lora: Annotated[
        bool, control("Pivotal tuning", "network", "A LoRA learns with the new word: nearer likeness, two files.")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def calls(cls, values: Any) -> Any:
        """Call the result by the placeholder."""
        if not isinstance(values, dict) or values.get("trigger_word"):
            return values
        return values | {"trigger_word": values.get("placeholder_token", cls.model_fields["placeholder_token"].default)}

    @field_validator("placeholder_token")
    @classmethod
    def one_word(cls, value: str) -> str:
        if not sayable(value) or any(sign.isspace() for sign in value):
            signs = " ".join(sorted(FORBIDDEN - {"\n"}))
            raise ValueError(f"placeholder_token={value!r} must be one word without {signs}, like <toy>")
        if value in (*PLAIN_KEYS, *ENCODER_KEYS):
            raise ValueError(f"placeholder_token={value!r} means something else in a file; use a word like <toy>")
        return value

    @model_validator(mode="after")
    def words(self) -> "TextualInversionConfig":
        if not self.initializer_token.strip() and not self.init_from:
            raise InvalidRequest(
                "initializer_token",
                "initializer_token is empty; give a word that the model knows and that comes near, like toy or painting",
            )
        if self.trigger_word != self.placeholder_token:
            raise InvalidRequest(
                "trigger_word",
                f"trigger_word={self.trigger_word!r} must be the placeholder_token {self.placeholder_token!r}; leave it out",
            )
        for name in LORA_ONLY if not self.train_lora else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InvalidRequest(name, f"{name} does nothing without train_lora; switch that on, or leave it out")
        return self

    @property
    def told_concepts(self) -> tuple[Concept, ...]:
        """All folders; a picture without a caption has the placeholder alone, and is shown with templates."""
        return tuple(
            one if one.instance_prompt else one.model_copy(update={"instance_prompt": self.placeholder_token})
            for one in super().told_concepts
        )

    @property
    def vectors_rate(self) -> float:
        """How fast the vectors learn."""
        return self.learning_rate if self.embedding_learning_rate is None else self.embedding_learning_rate
