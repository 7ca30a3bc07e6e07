"""What a run made, for use elsewhere: what each result is, copies that outlive the run, folders as one file. No torch."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest, StudioError
from studio.store import writer
from studio.store.lora_cards import check_card, write_card, write_cover
from studio.store.runs import Runs

FINAL = -1
KOHYA = "-kohya"
KEPT, RECOMMENDATION = "kept.json", "recommendation.json"
PLACES = {
    "lora": "loras",
    "embedding": "embeddings",
    "controlnet": "controlnets",
    "model": "checkpoints",
    "wordless": "checkpoints",
}
CHUNK = 2**20  # bytes read at once
CARD_MAX = 100_000
CLASS = "class.json"  # of a run: which pictures it drew of the class
_CLASS = re.compile(r"\d{6}\.png")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")


@dataclass(frozen=True)
class Result:
    """A checkpoint or the final result, as a person uses it.

    Attributes:
        step: of the checkpoint; `FINAL` of the final one.
        name: under which the library has it.
        path: of the file, or of a model's folder.
        kind: `lora`, `embedding`, `controlnet`, `model`, or `wordless`: a model that reads no prompt.
        word: of an embedding, what a prompt says; "" without one.
    """

    step: int
    name: str
    path: Path
    kind: str
    word: str = ""

    @property
    def bytes(self) -> int:
        """How much disk it takes."""
        return sum(path.stat().st_size for path in files_of(self.path))

    @property
    def embedding(self) -> Path | None:
        """The embedding that was learnt beside a LoRA."""
        beside = self.path.with_name(f"{self.path.stem}_emb.safetensors")
        return beside if self.kind == "lora" and beside.is_file() else None

    @property
    def kohya(self) -> Path | None:
        """The same LoRA in kohya's keys, if the trainer wrote it."""
        beside = self.path.with_name(f"{self.path.stem}{KOHYA}.safetensors")
        return beside if beside.is_file() else None


def results_by_step(runs: Runs, run_id: str) -> dict[int, Result]:
    """Return all results of a run, the final one last."""
    method = runs.method(run_id)
    return {step: _result(run_id, method, step, path) for step, path in runs.results(run_id).items()}


def find_result(runs: Runs, run_id: str, step: object) -> Result:
    """Return a result; `step` is a number, or `final`.

    Raises:
        InvalidRequest: if there is none of this step.
    """
    found = results_by_step(runs, run_id)
    number = FINAL if step == "final" else int(step) if re.fullmatch(r"-1|\d{1,9}", str(step)) else None  # pyright: ignore[reportArgumentType]
    if number is None or number not in found:
        there = ", ".join("final" if one == FINAL else str(one) for one in found) or "none yet"
        raise InvalidRequest("step", f"step={str(step)[:40]!r} has no result; there is: {there}")
    return found[number]


def _result(run_id: str, method: str, step: int, path: Path) -> Result:
    end = "" if step == FINAL else f"-{step:06d}"
    name = f"{run_id}{end}"
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return Result(step, name, path, "wordless" if method == "unconditional" else "model")
        return Result(step, name, path, "controlnet")
    if path.with_name(f"{path.stem}_emb.safetensors").is_file():
        return Result(step, name, path, "lora", f"{run_id}_emb{end}")
    if method == "textual-inversion":
        return Result(step, name, path, "embedding", name)
    return Result(step, name, path, "lora")


def files_of(path: Path) -> list[Path]:
    """Return a file itself, or all files of a folder."""
    return [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())


def keep(
    runs: Runs, run_id: str, result: Result, models: Path, name: str, card: dict[str, Any], cover: Path | None = None
) -> str:
    """Copy a result into the library's own folder, so that it stays when the run goes; return where it lies in `models`.

    Args:
        runs: the runs.
        run_id: whose result it is.
        result: what is kept.
        models: the folder with `loras`, `embeddings` and so on.
        name: of the copy.
        card: of a LoRA, `words`, `weight`, `notes`, as they will lie beside it.
        cover: of a LoRA, a PNG.

    Raises:
        InvalidRequest: if the name is none, or taken, or the card cannot be kept.
    """
    if not _NAME.fullmatch(name) or name.endswith((".safetensors", ".")):
        raise InvalidRequest("name", f"name={name[:90]!r} must be letters, digits, dots and hyphens, such as heart-v1")
    told = check_card(card) if result.kind == "lora" else {}
    place = models / PLACES[result.kind]
    copies = [(result.path, place / (name if result.path.is_dir() else f"{name}.safetensors"))]
    if result.embedding:
        copies.append((result.embedding, models / PLACES["embedding"] / f"{name}_emb.safetensors"))
    for _, target in copies:
        if target.exists():
            where = f"models/{target.parent.name}"
            raise InvalidRequest("name", f"name={name!r} is taken: {where} has it already; choose another name")
    for source, target in copies:
        _copy(source, target)
    if told:
        write_card(copies[0][1], told)
    if result.kind == "lora" and cover:
        write_cover(copies[0][1], cover.read_bytes())
    writer.write_json(runs.folder(run_id) / KEPT, [*kept(runs, run_id), {"step": result.step, "name": name}])
    return copies[0][1].relative_to(models.parent).as_posix()


def kept(runs: Runs, run_id: str) -> list[dict[str, Any]]:
    """Return which results were kept: step and name of each."""
    found = read_json(runs.folder(run_id) / KEPT)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def recommendation(runs: Runs, run_id: str) -> dict[str, Any] | None:
    """Return the checkpoint that the run itself recommends: step and reason; None if it recommends none."""
    found = read_json(runs.folder(run_id) / RECOMMENDATION)
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return None
    return {"step": found["step"], "reason": str(found.get("reason", ""))}


def class_folder(runs: Runs, run_id: str) -> tuple[Path, int]:
    """Return where the pictures lie that a DreamBooth run drew of the class, and how many it wants; 0 if it draws none.

    They are kept in the cache of the data root, for later runs of the same model, prompt and size.
    """
    told = read_json(runs.folder(run_id) / CLASS)
    name, number = (told.get("folder"), told.get("number")) if isinstance(told, dict) else ("", 0)
    if not re.fullmatch(r"[0-9a-f]{32}", str(name)) or not isinstance(number, int):
        return Path(), 0
    return runs.root.parent / "cache" / "class" / str(name), number


def class_pictures(runs: Runs, run_id: str) -> dict[str, Any] | None:
    """Return how many class images a run wants, and the names of those that are there by now; None if it draws none."""
    folder, number = class_folder(runs, run_id)
    there = sorted(path.name for path in folder.glob("*.png") if _CLASS.fullmatch(path.name)) if number else []
    return {"number": number, "pictures": there[:number]} if number else None


def class_picture(runs: Runs, run_id: str, name: str) -> Path:
    """Return a class image.

    Raises:
        StudioError: if there is none of this name.
    """
    folder, number = class_folder(runs, run_id)
    if not number or not _CLASS.fullmatch(name) or not (folder / name).is_file():
        raise StudioError(f"there is no class image {name!r}")
    return folder / name


def model_card(runs: Runs, run_id: str) -> str:
    """Return the card that the trainer wrote beside the final result; "" before that."""
    path = runs.folder(run_id) / "final" / "README.md"
    return path.read_text(encoding="utf-8", errors="replace")[:CARD_MAX] if path.is_file() else ""


def read_json(path: Path) -> Any:
    """Return what a JSON file of a run says; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        writer.write_stream(target, _chunks(source), replace=False)
        return
    writer.write_directory(target, lambda part: shutil.copytree(source, part, dirs_exist_ok=True) and None)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data


class _Sink:
    """What a zip archive is written into, piece by piece; it cannot go back."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: `take` empties it."""

    def take(self) -> bytes:
        data, self.data = bytes(self.data), bytearray()
        return data


def zipped(folder: Path) -> Iterator[bytes]:
    """Yield a folder as a zip archive that is never whole on disk or in memory; weights do not compress."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for path in files_of(folder):
            inner = (Path(folder.name) / path.relative_to(folder)).as_posix()
            with archive.open(inner, "w", force_zip64=True) as entry:
                for data in _chunks(path):
                    entry.write(data)
                    yield sink.take()
            yield sink.take()
    yield sink.take()
