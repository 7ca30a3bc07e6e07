"""Pickles, archives, datasets, configs and requests that are damaged or made to do harm; many of them are those of the tests."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Said = Callable[[Path], str]  # works in an empty folder and returns the refusal, or raises it


class Harm:
    """Makes a file when it is unpickled as pickle does by default."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def forms(mark: Path) -> dict[str, bytes]:
    """Return pickles of several forms, each of which makes `mark` where it is trusted."""
    import torch

    zipped, legacy, tarred, nested = (io.BytesIO() for _ in range(4))
    torch.save({"w": Harm(mark)}, zipped)
    torch.save({"w": Harm(mark)}, legacy, _use_new_zipfile_serialization=False)
    plain = pickle.dumps({"w": Harm(mark)})
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(plain)
        archive.addfile(entry, io.BytesIO(plain))
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3")
    numbered = {f"protocol {n}": pickle.dumps({"w": Harm(mark)}, protocol=n) for n in (0, 2, 4)}
    more = {"torch zip": zipped, "torch legacy": legacy, "tar": tarred, "zip in a zip": nested}
    return numbered | {name: file.getvalue() for name, file in more.items()}


def pickles() -> Iterator[tuple[str, str, Said]]:
    """Yield (name, what must be named, case) of 25 pickles where weights, pictures or datasets are expected."""
    places = (
        ("loras/evil.safetensors", "lora"), ("embeddings/evil.safetensors", "embedding"), ("upscalers/evil.SAFETENSORS", "upscaler"),
    )  # fmt: skip
    for place, kind in places:
        for form in ("protocol 0", "protocol 2", "protocol 4", "torch zip", "torch legacy", "tar", "zip in a zip"):
            yield f"{form} as {place}", "evil", lambda root, p=place, k=kind, f=form: _part(root, p, k, f)
    yield "torch zip as a picture", "evil", lambda root: _picture(root, "torch zip")
    yield "protocol 4 as a model", "evil", lambda root: _model(root, "evil.safetensors", "protocol 4")
    yield "torch zip as a model", "evil", lambda root: _model(root, "evil.ckpt", "torch zip")
    yield "torch zip to convert", "evil", lambda root: _convert(root, "torch zip")


def unharmed(root: Path, act: Callable[[], object]) -> str:
    try:
        act()
    finally:
        if (root / "mark").exists():
            raise AssertionError("code of the file was run")
    return ""


def _written(root: Path, place: str, form: str) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(forms(root / "mark")[form])
    return path


def _part(root: Path, place: str, kind: str, form: str) -> str:
    from studio.store.library import Library

    _written(root, place, form)
    return unharmed(root, lambda: Library((), part_roots=(root,)).parts.get(kind, "evil", kind))


def _picture(root: Path, form: str) -> str:
    from studio.store.blobs import BlobStore

    return unharmed(root, lambda: BlobStore(root / "blobs").add(_written(root, "evil.png", form), "image"))


def _model(root: Path, name: str, form: str) -> str:
    from studio.store.library import Library

    _written(root, f"models/{name}", form)
    return unharmed(root, lambda: Library((root / "models",)).get("evil"))


def _convert(root: Path, form: str) -> str:
    from studio.convert import convert

    return unharmed(root, lambda: convert(_written(root, "evil.pth", form), root / "evil.safetensors"))


def archives() -> Iterator[tuple[str, str, Said]]:
    """Yield 20 zips that must be refused as a whole, those of the tests and a tar."""
    from tests.test_datasets import ATTACKS

    def tar() -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(__file__, "../evil.png")
        return file.getvalue()

    for name, make in {**{name: make for name, (make, _) in ATTACKS.items()}, "a tar": tar}.items():
        yield name, "x.zip", lambda root, make=make: _zip(root, make())


def _zip(root: Path, data: bytes) -> str:
    from studio.store.collections import Datasets

    store = Datasets(root / "datasets")
    store.create("mine")
    (root / "given").write_bytes(data)
    added = store.add("mine", [("x.zip", root / "given")])
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "given"]
    if added.pictures or left or len(added.refused) != 1:
        raise AssertionError(f"something was taken: {added} {left}")
    return added.refused[0]


def datasets() -> Iterator[tuple[str, str, Said]]:
    """Yield 40 things in a dataset's folder that must be told by name; half of them is brought, too."""
    from tests.test_broken_training_input import REFUSED

    for name, (make, words) in REFUSED.items():
        yield name, words.split()[0], lambda root, make=make: _read(root, make)
    from benchmarks.trust.bad_pictures import refused

    for name, data in [one for one in refused() if len(one[1]) < 2_000_000][: 40 - len(REFUSED)]:
        yield f"brought: {name}", "odd.png", lambda root, data=data: _bring(root, data)


def _read(root: Path, make: Callable[[Path], Any]) -> str:
    from studio.store.datasets import read_dataset
    from tests.test_broken_training_input import picture

    folder = root / "pictures"
    picture(folder / "0.png")
    make(folder)
    found = read_dataset(folder)
    if len(found.refused) != 1 or len(found.examples) != 1:
        raise AssertionError(f"{found.refused}, {len(found.examples)} taken")
    return found.refused[0]


def _bring(root: Path, data: bytes) -> str:
    from studio.store.collections import Datasets

    store = Datasets(root / "datasets")
    store.create("mine")
    (root / "given").write_bytes(data)
    added = store.add("mine", [("odd.png", root / "given")])
    if added.pictures or len(added.refused) != 1:
        raise AssertionError(f"it was taken: {added}")
    return added.refused[0]


def configs() -> Iterator[tuple[str, str, Said]]:
    """Yield 50 configs of runs and requests, wrong in a value, a name, their form or their size."""
    import yaml

    from tests.test_broken_training_input import CONFIGS

    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    aliases += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)) + "rank: *a8\n"
    texts = {
        "a bomb of aliases": aliases, "an alias of itself": "a: &a [*a]\nrank: *a\n", "deep": "[" * 20_000,
        "deeper than its text": "rank: " + "[" * 500 + "]" * 500, "a list": "- 1\n- 2\n", "no YAML": "rank: [", "a number": "3",
        "code": "!!python/object/apply:os.system ['true']", "code as a name": "!!python/name:os.system ''",
        "half a megabyte": "rank: " + "1" * 600_000, "a number's name": "3: 4", "no date": "rank: 2026-02-30",
        "a list's name": "? [a]\n: 1",
        "not finite": "learning_rate: 1e400", "a secret": "rank: hf_" + "a" * 34, "binary": "\0\1\2",
    }  # fmt: skip
    for name, text in texts.items():
        yield f"config: {name}", "c.yaml|rank|learning_rate", lambda root, text=text: _config(root, "lora", text)
    for number, (method, values, words) in enumerate(CONFIGS[::2]):
        field = (
            words.replace("=", " ").split()[0].split(".")[0] if "=" in words.split()[0] or number else "lerning_rate"
        )
        field = next(iter(values)) if field not in str(values) else field
        yield f"config: {values}", field, lambda root, m=method, v=values: _config(root, m, yaml.safe_dump(v))
    requests: dict[str, str] = {
        "deep": '{"prompt":' * 5000, "NaN": '{"guidance_scale": NaN}', "huge": '{"steps": 1' + " " * 3_000_000 + "}",
        "a list in a list": "[[1]]", "no object": "7", "wrong name": '{"promt": "x"}', "steps": '{"num_inference_steps": -1}',
        "size": '{"width": 500001}', "words": '{"width": "wide"}', "cut": '{"prompt": "a', "not UTF-8": "\udcff",
    }  # fmt: skip
    for name, text in requests.items():
        yield f"request: {name}", "r.json|=|promt|prompt|guidance|steps", lambda root, text=text: _request(root, text)


def _config(root: Path, method: str, text: str) -> str:
    from trainers.config_files import read_config
    from trainers.methods import METHODS

    (root / "c.yaml").write_text(text)
    return str(read_config(METHODS[method][0], root / "c.yaml", []))


def _request(root: Path, text: str) -> str:
    from studio.__main__ import read_requests

    (root / "r.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(read_requests(root / "r.json", []))


REPLIES: dict[str, tuple[int, bytes]] = {
    "not found": (404, b"{}"), "forbidden": (403, b"{}"), "too many": (429, b"slow down"), "broken": (500, b"oops"),
    "bad gateway": (502, b"<html>nginx</html>"), "a page": (200, b"<!DOCTYPE html><html>Log in</html>"), "nothing": (200, b""),
    "a list": (200, b"[]"), "a number": (200, b"7"), "null": (200, b"null"), "empty": (200, b"{}"), "cut": (200, b'{"id": "a/b", "sib'),
    "binary": (200, bytes(range(256))), "deep": (200, b'{"a":' * 3000), "no files": (200, b'{"id": "a/b", "sha": "a", "siblings": []}'),
    "files that are words": (200, b'{"id": "a/b", "sha": "a", "siblings": "all"}'),
    "a file without a name": (200, b'{"id": "a/b", "sha": "a", "siblings": [{"size": 3}]}'),
    "a size that is a word": (200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"a.safetensors","size":"big"}]}'),
    "a negative size": (200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"a.safetensors","size":-5}]}'),
    "a name that leads out": (
        200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"../../a.safetensors","size":5}]}'),
    "an absolute name": (200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"/etc/a.safetensors","size":5}]}'),
    "a petabyte": (
        200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"a.safetensors","size":1125899906842624}]}'),
    "only pickles": (200, b'{"id":"a/b","sha":"' + b"a" * 40 + b'","siblings":[{"rfilename":"a.ckpt","size":5}]}'),
    "a commit that leads out": (200, b'{"id":"a/b","sha":"../../x","siblings":[{"rfilename":"a.safetensors","size":5}]}'),
    "moved to itself": (302, b""),
}  # fmt: skip
