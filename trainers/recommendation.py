"""Which checkpoint of a run to take: one rule, and its reason in a sentence.

A checkpoint's balance is the geometric mean of what is known of `subject`, `prompt` and `1 - drift`. Those within 0.02 of the best
are as good as it: of them the one that copies the training pictures least is taken, in hundredths, and of several the first.
"""

import math
from collections.abc import Sequence

from studio.fields import Frozen

AS_GOOD = 0.02  # of balance: with a dozen pictures a score is not finer
NAMES = ("subject", "prompt", "drift", "memorisation")
WORSE = {  # score -> what to say of later steps; drift and memorisation are worse when they are higher
    "memorisation": "later steps copy the pictures more",
    "drift": "later steps change the class more",
    "prompt": "later steps obey prompts less",
    "subject": "later steps are less like the subject",
}


class Scored(Frozen):
    """A checkpoint, and its scores by name, 0 to 1 each.

    Attributes:
        path: of its weights, within the run's folder.
    """

    step: int
    path: str
    scores: dict[str, float]

    @property
    def balance(self) -> float | None:
        """How good it is, 0 to 1; None if nothing tells likeness or obedience."""
        told = [self.scores[name] for name in ("subject", "prompt") if name in self.scores]
        if not told:
            return None
        told += [1 - self.scores["drift"]] if "drift" in self.scores else []
        return math.prod(told) ** (1 / len(told))


class Recommendation(Frozen):
    """What to take, and why.

    Attributes:
        path: of its weights, within the run's folder.
    """

    step: int
    path: str
    reason: str
    scores: dict[str, float]


def recommend(scored: Sequence[Scored]) -> Recommendation | None:
    """Choose among the checkpoints of a run, in the order of their steps; None if there are none."""
    if not scored:
        return None
    last, known = scored[-1], [one for one in scored if one.balance is not None]
    if not known:
        missing = "the last one; no scorer here tells how like the subject it is (a CLIP or DINOv2 folder in models/scorers would)"
        return _told(last, f"step {last.step}: {missing}")
    best = max(one.balance or 0.0 for one in known)
    good = [one for one in known if (one.balance or 0.0) >= best - AS_GOOD]
    chosen = min(good, key=lambda one: (round(one.scores.get("memorisation", 0.0), 2), one.step))
    return _told(chosen, f"step {chosen.step}: {figures(chosen.scores)}; {_why(chosen, scored)}")


def _told(chosen: Scored, reason: str) -> Recommendation:
    return Recommendation(step=chosen.step, path=chosen.path, reason=reason, scores=chosen.scores)


def figures(scores: dict[str, float]) -> str:
    """Say scores: shares in per cent, memorisation as a likeness."""
    percent = [f"{name} {scores[name]:.0%}".replace("%", " %") for name in NAMES[:3] if name in scores]
    copied = [f"memorisation {scores['memorisation']:.2f}"] if "memorisation" in scores else []
    return ", ".join(percent + copied)


def _why(chosen: Scored, scored: Sequence[Scored]) -> str:
    if len(scored) == 1:
        return "it is the only checkpoint so far"
    later = [one for one in scored if one.step > chosen.step]
    if not later:
        return "earlier steps are less good"
    worse = {
        name: (scored[-1].scores[name] - chosen.scores[name]) * (1 if name in ("drift", "memorisation") else -1)
        for name in WORSE
        if name in scored[-1].scores and name in chosen.scores
    }
    name = max(worse, key=lambda one: worse[one], default="")
    if not name or worse[name] < 0.01:
        return "later steps are no better"
    end = figures({name: scored[-1].scores[name]})
    return f"{WORSE[name]} (step {scored[-1].step}: {end})"
