"""What the page stands on: handed to every tab, route and endpoint, so that none of them imports another room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.settings import Settings
from studio.store.captions import Captions
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.downloads import Downloads
from studio.store.gallery import Gallery
from studio.store.library import Library
from studio.store.runs import Runs
from studio.store.tokens import Tokens
from studio.ui.guard import Policy, client_of


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


EVERYBODY = "local"  # at home all browsers are the same person: laptop and phone see the same queue and gallery


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

    @property
    def public(self) -> bool:
        """Whether strangers may be looking."""
        return self.policy.public

    def owner(self, headers: Mapping[str, str]) -> str:
        """Return whose jobs and pictures a request may see."""
        return client_of(headers) if self.public else EVERYBODY
