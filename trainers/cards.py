"""The card of a result: what it is, how good it was found, how to use it, and how it was made."""

from pathlib import Path

from studio.settings import VERSION
from trainers.config_files import dump_config
from trainers.loop import Trainer
from trainers.recommendation import NAMES, Recommendation
from trainers.scoring import Scoring

SHEET = "samples.png"


def model_card(name: str, trainer: Trainer, scoring: Scoring, samples: bool) -> str:
    """Write a card in Markdown.

    Args:
        name: of the method.
        trainer: at the end of the run.
        scoring: of the run.
        samples: whether `samples.png` lies beside the card.
    """
    config, method = trainer.config, trainer.method
    head = ["---", *([f"base_model: {config.model}"] if config.model else []), "library_name: diffusers"]
    lines = [*head, f"tags: [{name}]", "---", "", f"# {config.output_name}", ""]
    origin = f" from `{config.model}`." if config.model else "."
    lines += [f"Made with Studio {VERSION}, method `{name}`, in {trainer.step} steps{origin}", method.usage()]
    if config.trigger_word:
        lines.append(f"Trigger word: `{config.trigger_word}`.")
    if samples:
        lines += ["", f"![Samples of step {trainer.step}]({SHEET})"]
    lines += score_lines(trainer, scoring)
    if code := method.code(prompt_of(trainer)):
        lines += ["", "## With diffusers", "", "In this folder:", "", "```python", code.rstrip(), "```"]
    return "\n".join([*lines, "", "## Settings", "", "```yaml", dump_config(config).rstrip(), "```", ""])


def score_lines(trainer: Trainer, scoring: Scoring) -> list[str]:
    """Return the table of scores, and what is recommended."""
    rows = {step: scores for step in trainer.checkpoints.steps() if (scores := scoring.scores(step))}
    if not rows:
        return []
    names = [name for name in NAMES if any(name in scores for scores in rows.values())]
    lines = ["", "## Scores", "", f"| step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for step, scores in rows.items():
        lines.append(f"| {step} | {' | '.join(f'{scores[one]:.2f}' if one in scores else '' for one in names)} |")
    found = scoring.recommendation()
    if found is not None:
        lines += ["", f"Recommended: {found.reason}. {place_of(found, trainer.step)}"]
    return lines


def place_of(found: Recommendation, step: int) -> str:
    """Say where the recommended weights are."""
    return (
        "They are these."
        if found.step == step
        else f"They lie in the run's folder, in `{Path(found.path).as_posix()}`."
    )


def prompt_of(trainer: Trainer) -> str:
    """Return a prompt that shows what was learnt: the first sample's, or else the first caption."""
    prompts = trainer.config.validation_prompts
    return prompts[0] if prompts else next((one for one in trainer.material.pictures.captions if one), "")
