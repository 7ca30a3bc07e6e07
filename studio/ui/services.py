"""What the page stands on: handed to every tab, route and endpoint, so that none of them imports another room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.settings import Settings
from studio.spec import GenerationRequest
from studio.store.captions import Captions
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.downloads import Downloads
from studio.store.gallery import Gallery
from studio.store.library import Library
from studio.store.runs import Runs
from studio.store.tokens import Tokens
from studio.ui.guard import HOST_ROLE, ROLE, SENDER, Policy, client_of
from studio.visitors import EVERYBODY, Visitors


@dataclass(frozen=True)
class Training:
    """What the page needs to train.

    Attributes:
        runs: their folders.
        runner: `studio.executors.runner.Runner`, known here by its methods only.
        methods: name -> its config, as `trainers.methods.METHODS` declares them.
        check: makes a config of a class from plain values; raises InvalidRequest.
        dump: writes a config as YAML.
        presets: folder of `METHOD-FAMILY.yaml`.
    """

    runs: Runs
    runner: Any
    methods: Mapping[str, type[Any]]
    check: Callable[[type[Any], dict[str, Any]], Any]
    dump: Callable[[Any], str]
    presets: Path


@dataclass(frozen=True)
class Services:
    """The objects that `app.py` built. `dispatcher` is `studio.executors.dispatcher.Dispatcher` and `plotter`
    `studio.executors.plotter.Plotter`, known here by their methods only.
    """

    settings: Settings
    policy: Policy
    dispatcher: Any
    plotter: Any
    gallery: Gallery
    library: Library
    downloads: Downloads
    tokens: Tokens
    datasets: Datasets
    changes: Changes
    captions: Captions
    training: Training | None = None  # not offered to strangers
    visitors: Visitors | None = None  # counts what strangers ask for

    @property
    def public(self) -> bool:
        """Whether strangers may be looking."""
        return self.policy.public

    def owner(self, headers: Mapping[str, str]) -> str:
        """Return whose jobs and pictures a request may see.

        The owner of a Space, who has logged in there, is at home like whoever starts the app on a computer.
        """
        if not self.visitor(headers):
            return EVERYBODY
        who = client_of(headers)
        if self.visitors and who:
            self.visitors.seen(who, headers.get(SENDER, ""))
        return who

    def visitor(self, headers: Mapping[str, str]) -> bool:
        """Say whether a request comes from a stranger."""
        return self.public and headers.get(ROLE) != HOST_ROLE

    def limit(self, headers: Mapping[str, str]) -> str | None:
        """Return whose pictures a request may see; None for everybody's."""
        return self.owner(headers) if self.public else None

    def check_text(self, request: GenerationRequest) -> None:
        """Refuse prompts that are too long for a public page.

        Raises:
            InvalidRequest: naming the prompt.
        """
        if self.visitors:
            self.visitors.limits.check_text(request)

    def most(self, field: str) -> int | None:
        """Return the upper end of a control's range where the page is for strangers only; None is the field's own."""
        if self.visitors is None or self.policy.author:
            return None
        return self.visitors.limits.of_field(field)

    def check_home(self, headers: Mapping[str, str], what: str) -> None:
        """Refuse strangers what only whoever runs this app may do.

        Raises:
            StudioError: `what` cannot be done on a public page.
        """
        if self.visitor(headers):
            raise StudioError(f"{what} on a public page")
