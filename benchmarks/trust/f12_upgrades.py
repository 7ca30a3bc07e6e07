"""What every past version wrote is opened: index, queue, records, stars, a run's config; a migration is whole or absent."""

import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.stores import png
from studio.errors import StorageError
from studio.store import writer
from studio.store.gallery import Gallery
from studio.store.index import MIGRATIONS, Database, ImageIndex
from studio.store.jobs import JobStore
from studio.store.metadata import add_text

PAST = Path(__file__).parent / "past"  # what these commits' own code wrote, as text
NEXT = "ALTER TABLE jobs ADD COLUMN label TEXT NOT NULL DEFAULT '';\nCREATE TABLE labels (name TEXT PRIMARY KEY);\n"
CARELESS = "DROP TABLE jobs;\n" + next(
    part for part in MIGRATIONS[0].split(";\n") if part.startswith("CREATE TABLE jobs")
)
IMAGE = "INSERT INTO images(id, path, day, model, prompt, width, height, seed) VALUES (?, ?, '2026-11-21', 'shapes', ?, 64, 64, 7)"
JOB = "INSERT INTO jobs(id, rank, state, owner, job) VALUES (?, 1, 'queued', 'me', ?)"


def versions() -> dict[str, dict[str, Any]]:
    """Return name -> what that version wrote."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(PAST.glob("*.json"))}


def data_root(root: Path, past: dict[str, Any]) -> None:
    """Lay out a data root as that version left it: a picture with its star, a job that waits."""
    record = past["record"]
    day = root / "images" / "2026-11-21"
    writer.write_file(day / f"{record['id']}.png", add_text(png(), {"studio": json.dumps(record)}))
    writer.write_json(day / f"{record['id']}.json", past["sidecar"])
    connection = sqlite3.connect(root / "studio.db")
    connection.executescript(past["schema"])
    connection.execute(IMAGE, [record["id"], f"2026-11-21/{record['id']}.png", record["request"]["prompt"]])
    connection.execute(JOB, [past["job"]["id"], json.dumps(past["job"])])
    connection.execute(f"PRAGMA user_version={past['version']}")
    connection.commit()
    connection.close()


def opened(root: Path, past: dict[str, Any], migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Open a data root as the app does, and compare what is there with what was written.

    Raises:
        AssertionError: naming what is missing.
    """
    database = Database(root / "studio.db", migrations)
    try:
        gallery = Gallery(root / "images", ImageIndex(database))
        waiting = JobStore(database).waiting()
        assert [entry.id for entry in waiting] == [past["job"]["id"]], "the queue is lost"
        for name in ("prompt", "negative_prompt", "seed", "width", "num_inference_steps", "scheduler"):
            assert getattr(waiting[0].job.request, name) == past["job"]["request"][name], f"the job's {name} is another"
        name = past["record"]["id"]
        assert gallery.index.ids() == {name}, "the picture is not in the index"
        found = gallery.found(name)
        assert found.record and not found.notes, f"the picture's record cannot be read: {found.notes}"
        assert found.values["prompt"] == past["record"]["request"]["prompt"]
        gallery.reconcile(rebuild=True)
        assert gallery.index.page(starred=True)[0]["id"] == name, "the star is lost"
    finally:
        database.close()


def run_config(past: dict[str, Any]) -> None:
    """Read the config of a run of that version.

    Raises:
        AssertionError: if a value of it is another today.
    """
    from trainers.config_files import check_config
    from trainers.methods import METHODS

    told = yaml.safe_load(past["run"])
    today = check_config(METHODS["lora"][0], told).model_dump(mode="json")
    changed = {name: (value, today.get(name)) for name, value in told.items() if today.get(name) != value}
    assert not changed, f"read as another: {changed}"


def migration(root: Path, past: dict[str, Any], nth: int) -> None:
    """Let the n-th statement of a migration fail: nothing of it is there, and the next try brings all of it.

    Raises:
        AssertionError: if something is lost or half done.
    """
    steps = NEXT.split(";\n")
    broken = ";\n".join([*steps[:nth], "SELECT * FROM nothing", *steps[nth:]])
    try:
        Database(root / "studio.db", (*MIGRATIONS, broken)).close()
        raise AssertionError("a broken migration was taken")
    except StorageError:
        opened(root, past)
    opened(root, past, (*MIGRATIONS, NEXT))
    kept = root / f"studio.db.version-{len(MIGRATIONS)}"
    assert kept.is_file(), "no copy from before was kept"
    database = Database(kept)
    assert len(JobStore(database).waiting()) == 1, "the copy is empty"
    database.close()


def run(full: bool, mutant: bool = False) -> Figure:
    """Open every past version; the mutant migrates as people do who only think of the new table."""
    tally = Tally()
    migrations = (*MIGRATIONS, CARELESS) if mutant else MIGRATIONS
    for name, past in versions().items():
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder, tally.case(name):
            data_root(Path(folder), past)
            opened(Path(folder), past, migrations)
        if "run" in past:
            with tally.case(f"{name}: run"):
                run_config(past)
    newest = list(versions().values())[-1]
    for nth in range(len(NEXT.split(";\n"))):
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder, tally.case(f"migration fails at {nth}"):
            data_root(Path(folder), newest)
            migration(Path(folder), newest, nth)
    return tally.figure("F12", __doc__ or "", "all past versions", schema=len(MIGRATIONS))
