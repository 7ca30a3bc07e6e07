"""What the methods of `unconditional` share: a network from nothing, whose result no request can ask."""

import json
from pathlib import Path
from typing import Any

import yaml

from studio.errors import InvalidRequest
from studio.spec import GenerationRequest
from trainers.method import Method

STEPS_MAX = 150  # of a request


class WordlessMethod(Method):
    """A network that reads no prompt, in float32; with bf16 it is cast for each computation only.

    Attributes:
        network: what learns.
        reads: what the network is told instead of a prompt, for a sentence.
    """

    half = False
    network: Any
    reads = "without words"

    @property
    def averaged(self) -> float | None:
        return self.config.ema_decay if self.config.use_ema else None

    def saved(self, pipe: Any, folder: Path, facts: dict[str, str], **usual: Any) -> Path:
        """Write a pipeline as a folder that diffusers loads, with the facts of its training and how samples are drawn."""
        pipe.save_pretrained(folder, safe_serialization=True)
        (folder / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        usual["num_inference_steps"] = min(self.config.num_inference_steps, STEPS_MAX)
        (folder / "studio.yaml").write_text(yaml.safe_dump({"defaults": usual}), encoding="utf-8")
        return folder

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        raise InvalidRequest("model", f"a model {self.reads} has no requests; its samples are grids")

    @property
    def asked(self) -> list[Any]:
        return [self.network]

    @property
    def scored(self) -> frozenset[str]:
        return frozenset()
