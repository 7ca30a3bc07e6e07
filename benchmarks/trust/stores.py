"""Every path on which Studio writes, as a case: what is there before, what is done, what must be true whatever happened."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.errors import StudioError
from studio.records import ImageRecord, Machine, ModelRef
from studio.spec import GenerationRequest
from studio.store import writer
from studio.store.blobs import BlobStore, encode
from studio.store.collections import Datasets
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.index import Database, ImageIndex
from studio.store.metadata import read_picture
from studio.store.tokens import Tokens

DAY = "2026-01-02"


@dataclass(frozen=True)
class Case:
    """One path on which something is written.

    Args:
        prepare: makes what is there before.
        work: does it; what goes wrong must be a StudioError or OSError.
        check: is told whether the work came to its end, after a restart; raises AssertionError.
    """

    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    check: Callable[[Path, bool], None]


def record(name: str) -> ImageRecord:
    request = GenerationRequest(
        prompt="a red circle", width=64, height=64, num_inference_steps=1, guidance_scale=1, scheduler="DDIM", seed=1
    )
    machine = Machine(
        studio="0", torch="0", diffusers="0", transformers="0", device="CPU", dtype="float32", cpu_threads=1
    )
    model = ModelRef(id="m", path="/m", title="M", family="sd1", sha256="ab" * 32)
    return ImageRecord(
        id=name, created=f"{DAY}T00:00:00", request=request, model=model, seed=1, index=0, machine=machine
    )


def png(colour: str = "red") -> bytes:
    return encode(Image.new("RGB", (64, 64), colour))


def gallery(root: Path) -> Gallery:
    return Gallery(root / "images", ImageIndex(Database(root / "studio.db")))


def restarted(root: Path) -> Gallery:
    """Open the gallery as the app does at its start."""
    found = gallery(root)
    writer.sweep(root / "images")
    found.reconcile()
    return found


def sound(root: Path) -> Gallery:
    """Check that files and index agree after a restart, and that every file is whole."""
    found = restarted(root)
    files: dict[str, list[Path]] = {}  # a name may lie in two folders if the power went between the syncs of both
    for path in (root / "images").rglob("*.png"):
        files.setdefault(path.stem, []).append(path)
    assert not list((root / "images").rglob(f"{writer.PART}*")), "leftovers"
    for name, paths in files.items():
        assert all(read_picture(path).record for path in paths), f"{name} is torn"
        assert found.path(name) in paths, f"{name} is not found where it lies"
    assert set(files) == found.index.ids(), "the index knows other pictures than there are"
    return found


def one_picture(root: Path) -> str:
    gallery(root).commit(png(), record("first"))
    return "first"


def _commit(root: Path) -> None:
    gallery(root).commit(png("blue"), record("second"))


def _committed(root: Path, done: bool) -> None:
    ids = sound(root).index.ids()
    assert "first" in ids and (not done or "second" in ids), ids
    gallery(root).commit(png(), record(new_image_id(utc_now())))  # and the next one is saved


def _starred(root: Path, done: bool) -> None:
    found = sound(root)
    sidecar = root / "images" / DAY / "first.json"
    told = json.loads(sidecar.read_text()) if sidecar.exists() else {}
    assert not done or (told["starred"] and found.index.get("first")["starred"])  # type: ignore[index]
    found.star(["first"], starred=True)
    assert len(found.index.page(starred=True)) == 1


def _trash(root: Path) -> None:
    gallery(root).trash(["first"])


def _trashed(root: Path, done: bool) -> None:
    found = sound(root)
    places = [path.parent.parent.name for path in (root / "images").rglob("first.png")]
    assert places and (not done or "trash" in places), places
    found.restore(["first"])
    assert found.path("first").parent.name == DAY


def _in_trash(root: Path) -> None:
    one_picture(root)
    found = gallery(root)
    found.star(["first"], starred=True)
    found.star(["first"], starred=False)  # a sidecar goes with it
    found.trash(["first"])


def _restore(root: Path) -> None:
    gallery(root).restore(["first"])


def _restored(root: Path, done: bool) -> None:
    found = sound(root)
    assert not done or found.path("first").parent.name == DAY
    found.trash(["first"])
    assert found.path("first").parent.parent.name == "trash"


def _blob(root: Path) -> None:
    BlobStore(root / "blobs").add(png("green"), "image")


def _blobbed(root: Path, done: bool) -> None:
    store = BlobStore(root / "blobs")
    for path in (root / "blobs").rglob("*.png"):
        if not path.name.startswith(writer.PART):
            store.open(f"blob:{path.stem}", "image")
    store.open(store.add(png("green"), "image"), "image")


def checkpoints(root: Path) -> Any:
    from trainers.checkpoints import Checkpoints

    return Checkpoints(root / "run" / "checkpoints", 1)


def _checkpoint(root: Path, step: int = 2) -> None:
    import torch

    tensors = {"x": torch.full((4,), float(step))}
    checkpoints(root).write(step, lambda folder: (folder / "w.txt").write_bytes(b"w%d" % step), tensors, {"step": step})


def _checkpointed(root: Path, done: bool) -> None:
    from trainers.checkpoints import read_state

    kept = checkpoints(root)
    newest = kept.newest()
    assert newest is not None, "everything is lost"
    tensors, numbers = read_state(newest)
    assert float(tensors["x"][0]) == numbers["step"] == int(newest.name[-6:])
    assert not done or numbers["step"] == 2
    assert (kept.path(1) / "weights" / "w.txt").read_bytes() == b"w1", "the weights of an older one are gone"
    _checkpoint(root, 3)
    assert kept.newest() == kept.path(3)


def dataset(root: Path) -> Datasets:
    store = Datasets(root / "datasets")
    store.root.mkdir(parents=True, exist_ok=True)
    if "mine" not in store.names():
        store.create("mine")
    return store


def brought(root: Path) -> None:
    """Make a dataset with one captioned picture, and bring another."""
    (root / "bring").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        (root / "bring" / f"{name}.png").write_bytes(png(colour))
        (root / "bring" / f"{name}.txt").write_text(colour)
    store = dataset(root)
    store.add("mine", [(name, root / "bring" / name) for name in ("a.png", "a.txt")])


def _add(root: Path) -> None:
    dataset(root).add("mine", [(name, root / "bring" / name) for name in ("b.png", "b.txt")])


def _whole(root: Path) -> dict[str, str | None]:
    store = dataset(root)
    for picture in store.pictures("mine"):
        assert not picture.problem, picture
    return {picture.name: picture.caption for picture in store.pictures("mine")}


def _added(root: Path, done: bool) -> None:
    found = _whole(root)
    assert found["a.png"] == "red" and (not done or found["b.png"] == "blue"), found
    _add(root)
    assert _whole(root)["b.png"] == "blue"  # bringing it again mends what was left out


def _captions(root: Path) -> None:
    dataset(root).change_captions("mine", {"a.png": "another"})


def _captioned(root: Path, done: bool) -> None:
    found = _whole(root)["a.png"]
    assert found in ("red", "another") and (not done or found == "another"), found
    _captions(root)
    dataset(root).undo_captions("mine")
    assert _whole(root)["a.png"] == "red"


def _remove(root: Path) -> None:
    dataset(root).remove("mine", "a.png")


def _removed(root: Path, done: bool) -> None:
    store = dataset(root)
    if done:
        assert not _whole(root) and len(store.removed("mine")) == 1
    for entry in store.removed("mine"):
        store.restore("mine", entry)
    assert _whole(root)["a.png"] == "red"


def _event(root: Path) -> None:
    writer.append_line(root / "events.jsonl", '{"n": 2}')


def _events(root: Path, done: bool) -> None:
    lines = (root / "events.jsonl").read_text().splitlines()
    assert lines[0] == '{"n": 1}' and (not done or lines[1] == '{"n": 2}'), lines
    writer.append_line(root / "events.jsonl", '{"n": 3}')
    assert (root / "events.jsonl").read_text().splitlines()[-1] == '{"n": 3}'


def _token(root: Path) -> None:
    Tokens(root / "tokens.json").save("hub", "hf_" + "b" * 30)


def _tokens(root: Path, done: bool) -> None:
    found = Tokens(root / "tokens.json").environment()
    assert found and (not done or "b" * 30 in str(found)), "the token is lost"


CASES = {
    "picture": Case(one_picture, _commit, _committed),
    "star": Case(one_picture, lambda root: gallery(root).star(["first"], starred=True), _starred),
    "trash": Case(one_picture, _trash, _trashed),
    "restore": Case(_in_trash, _restore, _restored),
    "blob": Case(_blob, lambda root: BlobStore(root / "blobs").add(png("red"), "image"), _blobbed),
    "checkpoint and prune": Case(lambda root: _checkpoint(root, 1), _checkpoint, _checkpointed),
    "dataset": Case(brought, _add, _added),
    "captions": Case(brought, _captions, _captioned),
    "remove": Case(brought, _remove, _removed),
    "event": Case(lambda root: writer.append_line(root / "events.jsonl", '{"n": 1}'), _event, _events),
    "token": Case(lambda root: Tokens(root / "tokens.json").save("hub", "hf_" + "a" * 30), _token, _tokens),
}
EXPECTED = (OSError, StudioError)
