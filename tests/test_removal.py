"""Removing models: only from the data root, never what a job in the queue needs, and the whole of it."""

import shutil
from pathlib import Path

import pytest

from studio.errors import InvalidRequest
from studio.families import FAMILIES
from studio.recommended import RECOMMENDED
from studio.records import Job
from studio.sources import parse_source
from studio.spec import GenerationRequest
from studio.store.index import Database
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.store.removal import remove_model
from tests.conftest import MODELS


def test_a_model_goes_as_a_whole_unless_a_job_needs_it(tmp_path: Path) -> None:
    root = tmp_path / "models"
    shutil.copytree(MODELS / "shapes", root / "checkpoints" / "mine")
    (root / "checkpoints" / "bad.safetensors").write_bytes(b"x")
    (root / "checkpoints" / "bad.studio.yaml").write_text("title: Bad")
    (root / "checkpoints" / "link").symlink_to(MODELS / "shapes")
    library = Library((MODELS, root / "checkpoints"))
    jobs = JobStore(Database(tmp_path / "studio.db"))
    job = Job(id="a" * 32, request=GenerationRequest(model="mine"), model=library.reference(library.get("mine")))
    jobs.add(job)
    with pytest.raises(InvalidRequest, match="a job in the queue needs mine"):
        remove_model(library.get("mine"), root, jobs)
    jobs.cancel_waiting(job.id)
    for model in library.models():
        if model.id == "shapes":
            with pytest.raises(InvalidRequest, match="is not in the data folder"):
                remove_model(model, root, jobs)
        else:
            remove_model(model, root, jobs)
    assert not list((root / "checkpoints").iterdir())
    assert (MODELS / "shapes" / "model_index.json").is_file()


def test_only_families_that_work_are_recommended() -> None:
    assert {one.family for one in RECOMMENDED} <= set(FAMILIES)
    for one in RECOMMENDED:
        assert parse_source(one.source, "", one.file).name == one.source
