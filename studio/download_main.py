"""The child of a download: fetches a model's files, checks them, puts them where the library looks.

A kill is a cancel; a new start goes on from what has arrived.

Reads one JSON object from stdin; says on stdout, a JSON object a line, what it plans, how far it is, and what became of it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from studio.errors import InvalidRequest, StudioError
from studio.sources import CIVITAI_FOLDERS, SINGLE, Source, folder_name, readable, wanted_files
from studio.store import writer

CHUNK = 2**20
TICK = 0.3  # seconds between two lines about progress
SPARE = 2**28  # bytes of disk that stay free
CIVITAI = "https://civitai.com"


class Plan:
    """What a download will do: files with sizes and hashes, where they come from and go to, and what is known about the model."""

    def __init__(
        self, target: Path, files: dict[str, int], hashes: dict[str, str], about: dict[str, Any], fetch: Callable
    ) -> None:
        self.target, self.files, self.hashes, self.about, self.fetch = target, files, hashes, about, fetch

    @property
    def name(self) -> str:
        """What the library calls it."""
        return self.target.stem if self.target.suffix in SINGLE else self.target.name

    def told(self, folder: Path) -> dict[str, Any]:
        """Describe it for people, with the free disk where it goes."""
        free = shutil.disk_usage(folder).free
        return {
            "event": "plan", "bytes": sum(self.files.values()), "files": len(self.files), "free": free, "name": self.name,
            "there": self.target.exists(), **self.about,
        }  # fmt: skip


def main() -> int:
    """Do what stdin says: `{"source", "folder", "models", "plan"}`; return 0, or 1 after a line with the problem."""
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        source, models = Source.model_validate(wanted["source"]), Path(wanted["models"])
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "ON", "YES"):
            raise StudioError("offline mode is on (HF_HUB_OFFLINE); unset it to download, or copy the model by hand")
        writer.make_folder(models)
        plan = (hub_plan if source.site == "hub" else civitai_plan)(source, models)
        told = plan.told(models)
        say(told)
        if not wanted["plan"]:
            run(plan, Path(wanted["folder"]), told)
            say({"event": "done", "name": plan.name, "path": str(plan.target)})
    except StudioError as error:
        say({"event": "problem", "text": str(error), "field": getattr(error, "field", "")})
        return 1
    except OSError as error:
        say({"event": "problem", "text": _disk_sentence(error), "field": ""})
        return 1
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ):  # of the reply: nothing else is read here
        traceback.print_exc()
        name = wanted["source"].get("name", "")
        text = f"{name} cannot be had: the answer to what it holds is no description of a model; try again later"
        say({"event": "problem", "text": text, "field": ""})
        return 1
    return 0


def _end_with_parent() -> None:
    """End when the app is gone: it holds the other end of stdin."""
    sys.stdin.read()
    os._exit(3)


def say(event: dict[str, Any]) -> None:
    os.write(1, (json.dumps(event) + "\n").encode())  # one call: two threads speak


def run(plan: Plan, folder: Path, told: dict[str, Any]) -> None:
    """Fetch all files into a folder, check them, and move the whole to its place."""
    if plan.target.exists():
        raise StudioError(f"{plan.target} is there already; remove it first, or use it as it is")
    files = folder / "files"
    have = sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) if files.is_dir() else 0
    if told["bytes"] - have + SPARE > told["free"]:
        raise StudioError(
            f"the disk is too full: {plan.name} needs {readable(told['bytes'])} and {readable(told['free'])} are free; "
            "free some space, or choose another --data-dir"
        )
    writer.make_folder(files)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(files, told["bytes"], stop), daemon=True)
    watcher.start()
    try:
        for name in plan.files:
            plan.fetch(name, files)
    finally:
        stop.set()
        watcher.join()
    say({"event": "progress", "bytes": told["bytes"], "total": told["bytes"], "what": "checking"})
    for name, sha256 in plan.hashes.items():
        if writer.file_sha256(files / name) != sha256.lower():
            (files / name).unlink()
            raise StudioError(f"{name} arrived damaged (its sha256 is not the published one); start the download again")
    put(plan, files)
    shutil.rmtree(folder, ignore_errors=True)


def put(plan: Plan, files: Path) -> None:
    """Move what was fetched to its place: one file with its facts beside it, or a folder."""
    facts = yaml.safe_dump(
        {name: value for name, value in plan.about.items() if name in FACTS and value}, sort_keys=False
    )
    shutil.rmtree(files / ".cache", ignore_errors=True)
    if plan.target.suffix in SINGLE:
        writer.write_file(plan.target.with_name(f"{plan.target.stem}.studio.yaml"), facts.encode())
        writer.move(files / next(iter(plan.files)), plan.target)
        return
    writer.write_file(files / "studio.yaml", facts.encode())
    writer.move(files, plan.target)


FACTS = ("source", "revision", "licence", "trigger_words", "sha256")


def _watch(files: Path, total: int, stop: threading.Event) -> None:
    """Say twice a second or so how many bytes are there."""
    while not stop.wait(TICK):
        try:
            have = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        except OSError:  # a file was renamed meanwhile
            continue
        say({"event": "progress", "bytes": min(have, total), "total": total, "what": "downloading"})


def hub_plan(
    source: Source, models: Path, choose: Callable[..., dict[str, int]] = wanted_files, kind: str = "checkpoints"
) -> Plan:
    """Ask the Hub, or its mirror, what a repository holds.

    Args:
        source: where it is.
        models: `models` of the data root.
        choose: returns the wanted ones of its files.
        kind: folder in `models` for the new one.
    """
    from huggingface_hub import (
        HfApi,
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.utils import build_hf_headers

    with telling(source.name, constants.ENDPOINT):
        info = HfApi().model_info(source.name, revision=source.revision, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
    files = choose(sizes, source.file)
    hashes = {one.rfilename: one.lfs.sha256 for one in info.siblings or [] if one.lfs and one.rfilename in files}
    single = next(iter(files)) if len(files) == 1 else ""
    name = Path(single).name if single else folder_name(source)
    card: Any = info.card_data or {}
    licence = card.get("license_name") or card.get("license") or ""
    about = {"source": source.name, "revision": info.sha, "licence": licence, "gated": bool(info.gated)}

    def fetch(file: str, folder: Path) -> None:
        with telling(source.name, constants.ENDPOINT):
            cached = try_to_load_from_cache(source.name, file, revision=info.sha)
            if isinstance(cached, str):
                writer.make_folder((folder / file).parent)
                shutil.copyfile(cached, folder / file)
            elif file in hashes:  # the client of 2.4 begins anew in a new process, and a large file must not
                url = hf_hub_url(source.name, file, revision=info.sha)
                get_hf_file_metadata(url)
                fetch_file(url, folder / file, hashes[file], build_hf_headers(), _check_hub)
            else:
                hf_hub_download(source.name, file, revision=info.sha, local_dir=folder)

    if info.gated:  # what a repository holds is told to everybody, its files are not
        with telling(source.name, constants.ENDPOINT):
            get_hf_file_metadata(hf_hub_url(source.name, next(iter(files)), revision=info.sha))
    return Plan(models / kind / name, files, hashes, about, fetch)


class telling:
    """Turns what the Hub's client raises into one sentence."""

    def __init__(self, repo: str, endpoint: str) -> None:
        self.repo, self.endpoint = repo, endpoint.rstrip("/")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub import errors

        client_error: Any = errors.HfHubHTTPError.__bases__[0]  # of whichever HTTP library the client is built on
        page = f"{self.endpoint}/{self.repo}"
        if isinstance(error, errors.GatedRepoError):
            raise StudioError(
                f"{self.repo} is gated: accept the licence at {page}, then paste a token of that account (Models, Token)"
            ) from error
        if isinstance(error, errors.RevisionNotFoundError):
            raise InvalidRequest("revision", f"{self.repo} has no such revision; see {page}") from error
        if isinstance(error, errors.RepositoryNotFoundError):
            raise InvalidRequest(
                "source",
                f"there is no model {self.repo} at {self.endpoint}; check the name, or paste a token if it is private",
            ) from error
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code if error.response is not None else "no"
            if status in (401, 403):
                raise StudioError(
                    f"{self.endpoint} refuses the token ({status}): paste a valid one that may read {self.repo}, "
                    f"and accept the licence at {page}"
                ) from error
            raise StudioError(f"{self.endpoint} answered with an error ({status}); try again later") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return
        if isinstance(error, client_error | OSError):
            raise StudioError(_no_network(self.endpoint)) from error


def _no_network(place: str) -> str:
    return f"{place} cannot be reached; check the network, then resume: what has arrived is kept"


def _disk_sentence(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, then resume: what has arrived is kept"
    return f"the download could not be written: {error.strerror or error}"


def civitai_plan(source: Source, models: Path) -> Plan:
    """Ask Civitai what a version of a model is."""
    base = os.environ.get("CIVITAI_ENDPOINT", CIVITAI).rstrip("/")
    if not source.version:
        versions = civitai_get(f"{base}/api/v1/models/{source.name}").get("modelVersions") or [{}]
        source = source.model_copy(update={"name": str(versions[0].get("id", "")), "version": True})
    found = civitai_get(f"{base}/api/v1/model-versions/{source.name}")
    model = found.get("model") or {}
    if model.get("type") not in CIVITAI_FOLDERS:
        raise StudioError(f"Civitai calls it {model.get('type')!r}; only {', '.join(CIVITAI_FOLDERS)} can be used")
    safe = [one for one in found.get("files") or [] if str(one.get("name", "")).endswith(".safetensors")]
    file = next((one for one in safe if one.get("primary")), next(iter(safe), None))
    if not file:
        raise StudioError("this version has no .safetensors file (only pickles?); choose another version")
    sha256 = str((file.get("hashes") or {}).get("SHA256", "")).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise StudioError("Civitai publishes no sha256 of this file, so it cannot be checked; choose another version")
    name = re.sub(r"[^\w.() -]+", "-", Path(str(file["name"])).name).lstrip(".- ")
    about = {
        "source": f"{CIVITAI}/models/{found.get('modelId')}?modelVersionId={source.name}", "revision": source.name, "gated": False,
        "licence": "see the page", "trigger_words": [str(word) for word in found.get("trainedWords") or []], "sha256": sha256,
    }  # fmt: skip
    url = str(file.get("downloadUrl") or f"{base}/api/download/models/{source.name}")
    size = int(float(file.get("sizeKB") or 0) * 1024)

    def fetch(_: str, folder: Path) -> None:
        fetch_file(url, folder / name, sha256, civitai_headers(), _check_status)

    return Plan(models / CIVITAI_FOLDERS[model["type"]] / name, {name: size}, {name: sha256}, about, fetch)


def civitai_headers() -> dict[str, str]:
    token = os.environ.get("CIVITAI_TOKEN", "")
    return {"User-Agent": "Studio"} | ({"Authorization": f"Bearer {token}"} if token else {})


def civitai_get(url: str) -> dict[str, Any]:
    """Fetch a JSON object."""
    try:
        answer = httpx.get(url, headers=civitai_headers(), timeout=30, follow_redirects=True)
    except httpx.HTTPError as error:
        raise StudioError(_no_network(url.partition("/api/")[0])) from error
    _check_status(answer.status_code, url)
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise StudioError("Civitai answered with something that is no JSON object; try again later")
    return content


def _check_status(status: int, url: str) -> None:
    if status in (401, 403):
        raise StudioError(
            "Civitai wants a login for this file: make an API key in your account there and paste it (Models, Token)"
        )
    if status == 404:
        raise InvalidRequest("source", f"there is no such model at {url.partition('/api/')[0]}; copy the address again")
    if status >= 400:
        raise StudioError(f"Civitai answered with an error ({status}); try again later")


def _check_hub(status: int, url: str) -> None:
    if status >= 400:
        raise StudioError(f"{url} answered with an error ({status}); try again later")


def fetch_file(url: str, path: Path, sha256: str, headers: dict[str, str], check: Callable[[int, str], None]) -> None:
    """Fetch a file, going on where an earlier process ended.

    Args:
        url: of the file; a login is not sent on to another host.
        path: where it shall be.
        sha256: that it must have.
        headers: of the request.
        check: raises for a status that is an error.
    """
    writer.make_folder(path.parent)
    if path.is_file() and writer.file_sha256(path) == sha256:
        return
    part = path.with_name(f"{path.name}.incomplete")
    have = part.stat().st_size if part.is_file() else 0
    headers = headers | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with httpx.stream("GET", url, headers=headers, timeout=60, follow_redirects=True) as answer:
            if answer.status_code != 416:  # everything is there already
                check(answer.status_code, url)
                _append(part, answer.iter_bytes(CHUNK), again=have > 0 and answer.status_code == 206)
    except httpx.HTTPError as error:
        raise StudioError(_no_network(url.partition("/api/")[0])) from error
    with part.open("rb") as file:
        damaged = hashlib.file_digest(file, "sha256").hexdigest() != sha256
    if damaged:
        part.unlink()
        raise StudioError(
            f"{path.name} arrived damaged (its sha256 is not the published one); start the download again"
        )
    writer.move(part, path)


def _append(path: Path, pieces: Iterator[bytes], *, again: bool) -> None:
    with path.open("ab" if again else "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
