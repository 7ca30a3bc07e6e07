"""The public endpoint about datasets: which there are."""

from typing import Any

from studio.ui.services import Services


class DatasetsApi:
    """The endpoint over the page's services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def datasets(self) -> list[dict[str, Any]]:
        """List the datasets; none on a public page.

        Returns:
            [{"name": what `dataset` of a training config says, "pictures", "left_out", "captions", "masks"}].
        """
        if self._services.public:
            return []
        store = self._services.datasets
        return [store.summary(name) for name in store.names()]
