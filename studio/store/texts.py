"""Words that people keep in files: wildcards (`wildcards/**/*.txt`) and styles (`styles.csv`). Read when they are needed."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from studio.dynamic_prompts import expand
from studio.errors import InvalidRequest
from studio.spec import GenerationRequest, parse_request
from studio.store.folders import with_neighbours
from studio.styles import Style, with_styles

FILE_MAX = 4_000_000  # bytes
WILDCARD_FOLDERS = (
    "wildcards",
    "extensions/sd-dynamic-prompts/wildcards",
    "extensions/stable-diffusion-webui-wildcards/wildcards",
)
STYLES = "styles.csv"
FIELDS = ("prompt", "negative_prompt")


class TextLibrary:
    """The wildcards and styles in some folders.

    Args:
        roots: folders of models; of two files with one name the last counts, so that the data root's go before those of others.
    """

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self._roots = with_neighbours(roots)
        self._read: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] = {}

    def wildcards(self) -> Mapping[str, tuple[str, ...]]:
        """Return the lines of all wildcard files by their names, `folder/name` for those in folders.

        Raises:
            InvalidRequest: if a file cannot be read.
        """
        found: dict[str, Path] = {}
        for folder in (root / name for root in self._roots for name in WILDCARD_FOLDERS):
            for path in sorted(folder.rglob("*.txt")) if folder.is_dir() else ():
                found[path.relative_to(folder).as_posix().removesuffix(".txt")] = path
        return _Lines(found, self._lines)

    def _lines(self, path: Path) -> tuple[str, ...]:
        stat = path.stat()
        facts = stat.st_size, stat.st_mtime_ns
        if self._read.get(path, (None,))[0] != facts:
            lines = (line.strip() for line in _text(path, "prompt").splitlines())
            self._read[path] = facts, tuple(line for line in lines if line and not line.startswith("#"))
        return self._read[path][1]

    def styles(self) -> dict[str, Style]:
        """Return all styles by name.

        Raises:
            InvalidRequest: if a file cannot be read.
        """
        found: dict[str, Style] = {}
        for path in (root / STYLES for root in self._roots):
            if path.is_file():
                found |= {style.name: style for style in read_styles(path)}
        return found

    def filled(self, request: GenerationRequest, seed: int) -> GenerationRequest:
        """Apply a request's styles, then choose what its prompts leave open.

        Args:
            request: as a person wrote it.
            seed: decides the choices.

        Raises:
            InvalidRequest: if a style or wildcard is unknown, or a prompt becomes too long.
        """
        texts = {name: getattr(request, name) for name in FIELDS}
        if request.styles:
            known = self.styles()
            for place, name in enumerate(request.styles):
                if name not in known:
                    there = ", ".join(known) or "none"
                    raise InvalidRequest("styles", f"styles.{place}={name!r} is no style; there is: {there}")
            texts = with_styles(texts, [known[name] for name in request.styles])
        wildcards = self.wildcards() if any("__" in text for text in texts.values()) else {}
        texts = {name: expand(text, wildcards, seed, name) for name, text in texts.items()}
        if not request.styles and all(getattr(request, name) == text for name, text in texts.items()):
            return request
        return parse_request(request.model_dump() | texts | {"styles": ()})


class _Lines(Mapping[str, tuple[str, ...]]):
    """Wildcard files that are read when a prompt names them."""

    def __init__(self, paths: dict[str, Path], read: Callable[[Path], tuple[str, ...]]) -> None:
        self._paths, self._read = paths, read

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._read(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def read_styles(path: Path) -> list[Style]:
    """Read a `styles.csv` of A1111: `name,prompt,negative_prompt`; rows without words are its separators.

    Raises:
        InvalidRequest: if the file cannot be read.
    """
    rows = csv.DictReader(io.StringIO(_text(path, "styles"), newline=""))
    try:
        if "name" not in (rows.fieldnames or ()):
            raise InvalidRequest("styles", f"{path.name} must begin with the line: name,prompt,negative_prompt")
        read = [{key: (row.get(key) or "").strip() for key in ("name", *FIELDS)} for row in rows]
    except csv.Error as error:
        raise InvalidRequest("styles", f"{path.name} cannot be read as a table: {error}; correct the file") from None
    return [Style(**row) for row in read if row["name"] and (row["prompt"] or row["negative_prompt"])]


def _text(path: Path, field: str) -> str:
    try:
        if path.stat().st_size > FILE_MAX:
            raise InvalidRequest(field, f"{path.name} is larger than {FILE_MAX:,} bytes; split it")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise InvalidRequest(field, f"{path.name} {reason}; save it again") from None
