"""Removing a model: only what lies in the data root, and nothing that a waiting or running job needs."""

import os
import shutil
from pathlib import Path

from studio.errors import InvalidRequest, StorageError
from studio.records import ModelRef
from studio.store import writer
from studio.store.facts import facts_file
from studio.store.jobs import JobStore
from studio.store.models import Model


def removal_problem(model: Model, root: Path, jobs: JobStore) -> str:
    """Say why a model cannot be removed; "" if it can.

    Args:
        model: of the library.
        root: `models` in the data root.
        jobs: the journal.
    """
    if not model.path.parent.resolve().is_relative_to(root.resolve()):
        return f"{model.path} is not in the data folder; what lies elsewhere is only read here"
    for entry in (*jobs.running(), *jobs.waiting()):
        if model.id in _needed(entry.job.model):
            return f"a job in the queue needs {model.id}; cancel it, or wait until it is done"
    return ""


def _needed(reference: ModelRef | None) -> set[str]:
    if reference is None:
        return set()
    return {reference.id} | _needed(reference.refiner) | _needed(reference.donor)


def remove_model(model: Model, root: Path, jobs: JobStore) -> None:
    """Remove a model's folder, or its file and what stands beside it; of a link, only the link.

    Raises:
        InvalidRequest: if it must stay.
        StorageError: if the disk refuses.
    """
    if problem := removal_problem(model, root, jobs):
        raise InvalidRequest("model", problem)
    beside = facts_file(model.path) if model.single else None
    gone = model.path.with_name(f"{writer.PART}{os.getpid()}-removed-{model.path.name}")
    try:
        if model.path.is_symlink():
            model.path.unlink()
        else:  # gone at once for the library, whatever happens on the way
            os.replace(model.path, gone)
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink(missing_ok=True)
        if beside:
            beside.unlink(missing_ok=True)
        writer.sync_folder(model.path.parent)
    except OSError as error:
        raise StorageError(f"{model.id} could not be removed: {error.strerror or error}") from error
