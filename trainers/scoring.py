"""The scores of a run's checkpoints: what is drawn for them, how they are made, and which checkpoint they speak for.

`subject`, `prompt` and `memorisation` judge the samples; `drift` holds pictures of the class against those that the untouched model
draws with the same prompts and seeds. Each is a mean over pictures. Nothing here changes what a run learns.
"""

import hashlib
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studio.spec import GenerationRequest
from studio.store.blobs import decode, read_file
from trainers.data import picture_of
from trainers.loop import Trainer
from trainers.recommendation import NAMES, Recommendation, Scored, recommend
from trainers.sampling import Wanted
from trainers.scorers.choice import choose_scorer
from trainers.scorers.scorer import Picture, Scorer

logger = logging.getLogger(__name__)

CHUNK = 64  # training pictures in memory at once
LOOKED_AT = 20  # training pictures that decide which scorer suits
RECOMMENDATION = "recommendation.json"


@dataclass(frozen=True)
class Sample:
    """One sample request of a run, and what it says of the subject.

    Attributes:
        name: of its pictures.
        request: as it stands in `samples.yaml`.
        plain: its prompt without the subject's word, which scorers and the untouched model know.
        subject: whether it shows what is learnt.
        class_prompt: what draws the class; "" if there is nothing to compare.
    """

    name: str
    request: GenerationRequest
    plain: str
    subject: bool
    class_prompt: str

    @property
    def is_class(self) -> bool:
        """Whether the sample itself is a picture of the class."""
        return self.class_prompt == self.request.prompt

    def class_name(self, step: int) -> str:
        return self.name if self.is_class else self.name.replace(f"step-{step:06d}", f"class/step-{step:06d}")

    @property
    def class_request(self) -> GenerationRequest:
        return self.request.model_copy(update={"prompt": self.class_prompt})

    @property
    def base_name(self) -> str:
        told = self.class_request.model_dump_json()
        return f"class/base-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


class Scoring:
    """Scores one run.

    Args:
        trainer: of the run.
        folders: of the encoders that its config means.
        device: on which they work.
    """

    def __init__(self, trainer: Trainer, folders: Sequence[Path], device: torch.device) -> None:
        self._run, self._config, self._method = trainer.run, trainer.config, trainer.method
        self._trainer, self._folders, self._device = trainer, folders, device
        self._scorer: Scorer | None = None
        self._training: list[Any] = []
        self.wanted = self._config.scorer != "none" and bool(self._method.scored)

    def done(self, step: int) -> bool:
        """Whether a checkpoint has its scores."""
        return not self.wanted or self._run.recall(scores_name(step)) is not None

    def samples(self, step: int, requests: Sequence[GenerationRequest]) -> list[Sample]:
        """Return what each sample request says of the subject."""
        found, general = [], getattr(self._config, "class_prompt", "")
        plain = [self._method.plain_prompt(request.prompt) for request in requests]
        called = bool(self._config.trigger_word)
        for place, (request, text) in enumerate(zip(requests, plain, strict=True)):
            subject = text != request.prompt if called else request.prompt != general
            class_prompt = (text or general) if called else general
            drifts = "drift" in self._method.scored
            name = f"step-{step:06d}-{place}"
            found.append(Sample(name, request, text, subject, class_prompt if drifts else ""))
        return found

    def pictures(
        self, step: int, samples: Sequence[Sample], using: Callable[[GenerationRequest], GenerationRequest]
    ) -> list[Wanted]:
        """Return what is drawn besides the samples: the class, by the checkpoint and by the untouched model."""
        wanted: list[Wanted] = []
        for one in samples if self.wanted else ():
            if one.class_prompt:
                wanted.append(Wanted(one.base_name, one.class_request, told=False))
                if not one.is_class:
                    wanted.append(Wanted(one.class_name(step), using(one.class_request), told=False))
        return wanted

    def score(self, step: int, artifact: Path, samples: Sequence[Sample], drawn: Mapping[str, list[Path]]) -> None:
        """Judge a checkpoint's pictures, tell and keep the scores, and recommend anew; what fails is told."""
        if not self.wanted:
            return
        try:
            scorer = self._opened()
            assert scorer is not None
            rows = [row for one in samples for row in self._judged(step, scorer, one, drawn)]
            told = {name: [row[name] for row in rows if row.get(name) is not None] for name in NAMES}
            scores = {name: round(statistics.fmean(values), 4) for name, values in told.items() if values}
            recipe = [scorer.title, [one.request.model_dump(mode="json") for one in samples]]
            self._run.metric(step, **scores)
            if self._config.report_to != "none":
                self._trainer.accelerator.log(scores, step=step)
            self._run.flush()  # the scores' file never stands without its events
            self._run.remember(
                scores_name(step),
                {
                    "step": step,
                    "path": artifact.relative_to(self._run.folder).as_posix(),
                    "scorer": scorer.title,
                    "comparable": hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16],
                    "scores": scores,
                    "pictures": rows,
                },
            )
            self._recommend(step)
        except Exception as error:  # of somebody else's weights; the run is worth more than its scores
            logger.exception("no scores for step %d", step)
            self._run.notice(f"no scores for step {step}: {str(error) or type(error).__name__}")
        finally:
            if self._scorer is not None:
                self._scorer.close()

    def recommendation(self) -> Recommendation | None:
        """Return what the run recommends so far."""
        told = self._run.recall(RECOMMENDATION)
        return None if told is None else Recommendation.model_validate(told)

    def scores(self, step: int) -> dict[str, float]:
        """Return a checkpoint's scores; {} if it has none."""
        return (self._run.recall(scores_name(step)) or {}).get("scores", {})

    def facts(self, step: int) -> dict[str, str]:
        """Return what a result's file says of its scores and of the recommended step; {} if it has none."""
        found, scores = self.recommendation(), self.scores(step)
        told = {"scores": json.dumps(scores)} if scores else {}
        return told | ({"recommended_step": str(found.step), "recommendation": found.reason} if found else {})

    def _opened(self) -> Scorer | None:
        """Choose the scorer and let it look at the training pictures, once."""
        if self._scorer is None:
            learnt = self._trainer.material.learnt()
            some = [picture_of(shown) for shown, _ in learnt[:LOOKED_AT]]
            captions = [caption for _, caption in learnt[:LOOKED_AT]]
            self._scorer = choose_scorer(self._config.scorer, self._folders, self._device, some, captions)
        if self._scorer is not None and not self._training:
            shown = iter(one for one, _ in self._trainer.material.learnt())
            while some := [picture_of(one) for one in islice(shown, CHUNK)]:
                self._training += self._scorer.read(some)
        return self._scorer

    def _judged(
        self, step: int, scorer: Scorer, sample: Sample, drawn: Mapping[str, list[Path]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the scores of each picture of a sample."""
        scored = self._method.scored
        seen = scorer.read([read(path) for path in drawn[sample.name]])
        drifts = [None] * len(seen)
        if sample.class_prompt:
            now = seen if sample.is_class else scorer.read([read(path) for path in drawn[sample.class_name(step)]])
            before = scorer.read([read(path) for path in drawn[sample.base_name]])
            drifts = [scorer.drift(*pair) for pair in zip(now, before, strict=True)]
        for path, one, drift in zip(drawn[sample.name], seen, drifts, strict=True):
            row: dict[str, Any] = {"path": path.relative_to(self._run.folder).as_posix()}
            row["prompt"] = scorer.prompt(one, sample.plain) if "prompt" in scored else None
            for name in ("subject", "memorisation") if sample.subject else ():
                row[name] = getattr(scorer, name)(one, self._training) if name in scored else None
            yield row | {"drift": drift}

    def _recommend(self, step: int) -> None:
        """Compare the checkpoints that were judged in the same way as this one."""
        kept = [self._run.recall(scores_name(one)) for one in self._trainer.checkpoints.steps()]
        told = [one for one in kept if one is not None]
        mine = next(one["comparable"] for one in told if one["step"] == step)
        alike = [
            Scored(step=one["step"], path=one["path"], scores=one["scores"])
            for one in told
            if one["comparable"] == mine and (self._run.folder / one["path"]).exists()
        ]
        found = recommend(alike)
        if found is not None:
            self._run.remember(RECOMMENDATION, found.model_dump(mode="json"))


def scores_name(step: int) -> str:
    """Return where a checkpoint's scores lie in a run's folder."""
    return f"scores/step-{step:06d}.json"


def read(path: Path) -> Picture:
    """Read a sample, (H, W, 3) uint8."""
    return np.array(decode(read_file(path)).convert("RGB"))
