"""The public endpoint of the Lab: a panel's numbers and the addresses of its pictures. Not registered on public pages."""

from collections.abc import Callable
from typing import Any

from studio.errors import InvalidRequest
from studio.store.lab_calls import lab_call, picture_fields
from studio.ui.services import Services


class LabApi:
    """The endpoint over the page's services.

    Args:
        services: what it works on.
        picture: stores a picture that came as text, for a field; returns its reference.
    """

    def __init__(self, services: Services, picture: Callable[[object, str], str]) -> None:
        self._services, self._picture = services, picture

    @property
    def endpoints(self) -> tuple[Callable[..., Any], ...]:
        """All of them, by the names of their functions."""
        return (self.lab,)

    def lab(self, panel: str, settings: dict[str, Any] | None = None, model: str = "shapes") -> dict[str, Any]:
        """Let a panel of the Lab compute: how diffusion works, on a model.

        Args:
            panel: `forward`, …; an unknown one is answered with the list.
            settings: of the panel, such as `{"timestep": 300}`; `python -m studio lab --help` lists them. Pictures
                as base64 or `blob:…`.
            model: id of a model, see `models`.

        Returns:
            {"plots", "tables", "films", "notes", "settings", "urls": of the pictures that films name}.
        """
        values = {} if settings is None else settings
        if not isinstance(values, dict):
            raise InvalidRequest("settings", "settings must be an object of field names and values")
        library = self._services.library
        lab_call(library, panel, values, model)  # before a picture is stored
        values = values | {
            name: self._picture(values[name], name) for name in picture_fields(panel) if values.get(name)
        }
        answer = self._services.dispatcher.ask(lab_call(library, panel, values, model))
        return answer.values | {"urls": {name: f"/studio/tool/{key}" for name, key in answer.pictures.items()}}
