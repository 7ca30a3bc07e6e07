"""The public endpoints about training: begin a run, ask what it takes, follow it, stop it. Refused on public pages."""

from collections.abc import Callable
from typing import Any

from studio.errors import StudioError
from studio.ui.run_routes import RunRoutes
from studio.ui.services import Services
from studio.ui.train_desk import TrainDesk


class TrainingApi:
    """Endpoints over the page's services.

    Args:
        services: what they work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._made = TrainDesk(services) if services.training else None

    @property
    def endpoints(self) -> tuple[Callable[..., Any], ...]:
        """All of them, by the names of their functions."""
        return self.train, self.estimate, self.runs, self.run, self.stop

    @property
    def _desk(self) -> TrainDesk:
        if self._made is None:
            raise StudioError("training is not offered on a public page")
        return self._made

    def train(
        self, method: str, config: dict[str, Any], samples: list[dict[str, Any]] | None = None, device: str = ""
    ) -> dict[str, Any]:
        """Put a training run into the queue; it is on disk when this returns, and goes on without the page.

        Args:
            method: `lora`, `dreambooth`, `full`, `textual-inversion`, `controlnet` or `unconditional`.
            config: fields of the method, such as `{"model": "shapes", "dataset": "hearts", "instance_prompt": "a sks heart"}`;
                `python -m trainers METHOD --help` lists them, `presets/train` has files to begin with.
            samples: requests that are drawn at each checkpoint; if not given, the config's `validation_prompts`.
            device: `cpu`, `cuda:1` …; if not given, that of the app.

        Returns:
            The run as `run` describes it.
        """
        return self.run(self._desk.start(method, config, samples, device=device))

    def estimate(self, method: str, config: dict[str, Any], device: str = "") -> dict[str, Any]:
        """Say how long a run takes and how much memory, from two real steps; nothing is kept.

        Args:
            method: see `train`.
            config: see `train`.
            device: see `train`.

        Returns:
            {"steps", "epochs", "seconds", "seconds_per_step", "peak_memory" and "memory" in bytes, "fits", "advice"}.
        """
        found = self._desk.estimate(method, config, device=device)
        return {name: value for name, value in (found or {}).items() if name != "status"}

    def runs(self) -> list[dict[str, Any]]:
        """List the training runs, the one that was begun or resumed last first.

        Returns:
            [{"id", "method", "device", "state", "place" in the queue, "step", "steps",
            "seconds_left", "loss", "error", "checkpoints"}].
        """
        return self._desk.training.runner.overview()

    def run(self, id: str) -> dict[str, Any]:
        """Describe a training run.

        Args:
            id: see `runs`.

        Returns:
            What `runs` says of it, and its curves, results (names that `loras` takes), samples, notices, config, command and log.
        """
        return RunRoutes(self._services, self._desk.training).details(id)

    def stop(self, id: str) -> dict[str, Any]:
        """Take a training run out of the queue, or let it save and stop; `train` of its config, or the page, goes on with it.

        Args:
            id: see `runs`.
        """
        self._desk.training.runs.folder(id)
        self._desk.training.runner.cancel(id)
        return {"id": id, "state": self._desk.training.runner.state(id)}
