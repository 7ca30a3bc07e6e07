"""Where models come from: what a person may paste, and which files of a repository are wanted. Pure rules; nothing is fetched here."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

from studio.errors import InvalidRequest
from studio.fields import Frozen

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REVISION = re.compile(r"[\w./-]{1,100}")
SINGLE = (".safetensors", ".gguf")  # a whole model, or its denoiser; of a repository with both the former
SMALL = (".json", ".txt", ".model", ".jinja")
UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor_safety", "image_encoder_onnx"})
CIVITAI_FOLDERS = {
    "Checkpoint": "checkpoints", "LORA": "loras", "LoCon": "loras", "DoRA": "loras", "VAE": "vae", "Controlnet": "controlnets",
    "Upscaler": "upscalers",
}  # fmt: skip


class Source(Frozen):
    """What to download.

    Attributes:
        site: `hub` or `civitai`.
        name: `owner/name` on the Hub; the number of a model or of its version on Civitai.
        version: whether `name` is the number of a version.
        revision: branch, tag or commit on the Hub.
        file: the one file that is wanted, "" to let its kind decide.
    """

    site: str
    name: str
    version: bool = False
    revision: str = "main"
    file: str = ""

    @property
    def title(self) -> str:
        """As people call it."""
        return self.name if self.site == "hub" else f"civitai {'version ' * self.version}{self.name}"


def parse_source(text: str, revision: str = "", file: str = "") -> Source:
    """Read what a person pasted: `owner/name`, an address on the Hub, or an address on Civitai.

    Raises:
        InvalidRequest: if it is none of them.
    """
    text = text.strip()
    address = urlsplit(text if "://" in text else f"https://{text}")
    host = (address.hostname or "").removeprefix("www.")
    path = [part for part in address.path.split("/") if part]
    if host in ("civitai.com", "civitai.red") and path[:1]:
        version = parse_qs(address.query).get("modelVersionId", [""])[0]
        if path[:3] == ["api", "download", "models"] or path[:3] == ["api", "v1", "model-versions"]:
            version = path[3] if len(path) > 3 else ""
        name = version or (path[1] if path[0] == "models" and len(path) > 1 else "")
        if name.isdecimal() and len(name) < 12:
            return Source(site="civitai", name=name, version=bool(version))
    if host in ("huggingface.co", "hf.co") and len(path) >= 2:
        text = "/".join(path[:2])
        if len(path) > 4 and path[2] in ("blob", "resolve", "tree"):
            revision, file = revision or path[3], file or "/".join(path[4:])
        elif len(path) == 4 and path[2] == "tree":
            revision = revision or path[3]
    if not REPO.fullmatch(text) or ".." in text:
        raise InvalidRequest(
            "source",
            f"source={text[:80]!r} is no model's name on the Hub (owner/name), and no address on huggingface.co or civitai.com",
        )
    revision = revision or "main"
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise InvalidRequest("revision", f"revision={revision[:80]!r} must be a branch, a tag or a commit")
    if file and not is_inside(file):
        raise InvalidRequest("file", f"file={file[:80]!r} must be the name of a file in the repository")
    return Source(site="hub", name=text, revision=revision, file=file)


def is_inside(name: str) -> bool:
    """Whether a file's name in a repository stays in the folder that it is written to, on every system."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not {"..", "/"} & set(parts) and not set("\\:\0") & set(name) and not name.startswith("/")


def wanted_files(sizes: Mapping[str, int], file: str = "") -> dict[str, int]:
    """Return the files of a repository that make a model, with their sizes: no pickles, no code, no second copy of the weights.

    Args:
        sizes: of all its files, in bytes, by name.
        file: the one that a person wants, "" to decide here.

    Raises:
        InvalidRequest: if it holds no model that could be used, or several.
    """
    inside = {name: size for name, size in sizes.items() if is_inside(name)}
    top = [{name: inside[name] for name in inside if name.endswith(end) and "/" not in name} for end in SINGLE]
    single = next(filter(None, top), {})
    if file:
        if file not in inside or not file.endswith(SINGLE):
            raise InvalidRequest(
                "file", f"file={file!r} is no .safetensors or .gguf file there; there is: {_listed(single)}"
            )
        return {file: inside[file]}
    if "model_index.json" in inside:
        return _folder_files(inside)
    if len(single) == 1:
        return single
    if single:
        raise InvalidRequest("file", f"there are several models in it; choose one of them as file: {_listed(single)}")
    pickles = [name for name in inside if name.endswith((".ckpt", ".bin", ".pt", ".pth"))]
    what = (
        "only pickles, which can run code"
        if pickles
        else "no model in diffusers' folder format, no .safetensors and no .gguf file"
    )
    raise InvalidRequest("source", f"the repository holds {what}; choose another one")


def captioner_files(sizes: Mapping[str, int], file: str = "") -> dict[str, int]:
    """Return the files of a repository that make a captioner or a tagger; see `wanted_files`.

    Raises:
        InvalidRequest: if it has no safe weights.
    """
    found = {
        name: size
        for name, size in sizes.items()
        if is_inside(name) and "/" not in name and name.endswith((*SMALL, ".safetensors", ".csv"))
    }
    if not any(name.endswith(".safetensors") for name in found):
        raise InvalidRequest(
            "model", "the repository has no .safetensors weights (only pickles or ONNX?); choose another one"
        )
    if "config.json" not in found:
        raise InvalidRequest("model", "the repository has no config.json, so it is no captioner; choose another one")
    return found


def _folder_files(inside: dict[str, int]) -> dict[str, int]:
    found = {}
    for name, size in inside.items():
        path = PurePosixPath(name)
        if path.parts[0] in UNUSED_PARTS or len(path.parts) > 2 or path.name.startswith("."):
            continue
        deep = len(path.parts) == 2
        small = path.suffix in SMALL and (deep or path.name == "model_index.json")
        if small or (deep and path.suffix == ".safetensors"):
            found[name] = size
    weights = [name for name in found if name.endswith(".safetensors")]
    if not weights:
        raise InvalidRequest("source", "the repository has no .safetensors weights (only pickles?); choose another one")
    for folder in {name.partition("/")[0] for name in weights}:
        own = [name for name in weights if name.startswith(f"{folder}/")]
        plain = [
            name
            for name in own
            if not re.search(r"\.(?:fp16|bf16|non_ema)[.-]|\.(?:fp16|bf16|non_ema)\.safetensors$", name)
        ]
        for name in set(own) - set(plain or own):
            del found[name]
    return found


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(sorted(names)[:12]) or "none"


def folder_name(source: Source) -> str:
    """Return what a repository's model is called in the library."""
    return re.sub(r"[^\w.-]+", "-", source.name.rpartition("/")[2]).strip(".-") or "model"


def readable(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 2**30:,.1f} GB" if size >= 2**30 else f"{size / 2**20:,.1f} MB"
