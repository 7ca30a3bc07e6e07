"""The public endpoints about prompts: what a model gets of one, and the styles there are."""

from collections.abc import Callable
from typing import Any

from studio.spec import parse_request
from studio.store.prompt_reports import PromptReports
from studio.ui.services import Services


class PromptApi:
    """Endpoints over the page's services.

    Args:
        services: what they work on.
    """

    def __init__(self, services: Services) -> None:
        self._services, self._reports = services, PromptReports(services.library)

    @property
    def endpoints(self) -> tuple[Callable[..., Any], ...]:
        """All of them, by the names of their functions."""
        return self.prompt_report, self.styles

    def prompt_report(
        self,
        prompt: str,
        negative_prompt: str = "",
        model: str = "shapes",
        styles: list[str] | None = None,
        seed: int = -1,
        guidance_scale: float | None = None,
    ) -> dict[str, Any]:
        """Say what a model really gets of a prompt; nothing is drawn.

        Args:
            prompt: as in `txt2img`.
            negative_prompt: likewise.
            model: id of a model, see `models`.
            styles: names of styles, see `styles`.
            seed: decides the choices of `{a|b}` and `__wildcard__`.
            guidance_scale: CFG, which decides whether the negative prompt counts; the model's own if not given.

        Returns:
            {"prompt", "negative_prompt": {"text", "tokens", "limit", "moments", "ignored", "encoders": [{"name", "kind", "tokens",
            "limit", "chunks": [[{"text", "weight", "embedding"}]], "cut", "problem"}]}, "loras", "embeddings", "unknown": {kind:
            names}, "unknown_words", "notes": what is ignored and why, "problems": why it would be refused}.
        """
        values = {"prompt": prompt, "negative_prompt": negative_prompt, "model": model, "seed": seed}
        more = {"styles": styles or (), "guidance_scale": guidance_scale}
        wanted = parse_request(values | more)
        self._services.check_text(wanted)
        return self._reports.report(wanted).model_dump(mode="json")

    def styles(self) -> list[dict[str, str]]:
        """List the styles: `name` is what `styles` of a request names."""
        return [style.model_dump() for style in self._services.library.texts.styles().values()]
