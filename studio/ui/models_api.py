"""The public endpoints about models: which there are, and getting one."""

from typing import Any

from studio.errors import StudioError
from studio.sources import parse_source
from studio.ui.services import Services


class ModelsApi:
    """The endpoints over the page's services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def models(self) -> list[dict[str, Any]]:
        """List the models that can be used, with their default settings."""
        return [
            {
                "id": model.id, "title": model.title, "family": model.family, "bytes": model.bytes, "dtype": model.dtype,
                "licence": model.licence, "trigger_words": list(model.trigger_words), "defaults": model.defaults,
            }
            for model in self._services.library.models()
            if not model.problem
        ]  # fmt: skip

    def download(self, source: str, revision: str = "", file: str = "") -> dict[str, Any]:
        """Get a model; not on a public page. Started again, it goes on from what has arrived.

        Args:
            source: `owner/name` on the Hub, or an address on huggingface.co or civitai.com.
            revision: branch, tag or commit; the commit is recorded.
            file: the one `.safetensors` file that is wanted, if there are several.

        Returns:
            {"download"}: its id; ask `downloads` how far it is.
        """
        if self._services.public:
            raise StudioError("downloads are not offered on a public page")
        return {"download": self._services.downloads.start(parse_source(source, revision, file))}

    def downloads(self) -> list[dict[str, Any]]:
        """List the downloads: id, state (running, stopped, done, failed), bytes of total, error."""
        return [] if self._services.public else self._services.downloads.state()
