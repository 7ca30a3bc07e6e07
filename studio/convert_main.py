"""The child of `convert`: reads one pickle of weights under limits, as plain tensors only, and writes them as safetensors.

It is the only place where a pickle that a person gave is opened: `weights_only` runs no code, and whatever a crafted file may do to
torch's reader is done to a process that has little memory, little time and nothing to lose.
"""

import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch

from studio.store import writer

NESTS = ("params_ema", "params", "state_dict", "model")  # where trainers put the weights; the averaged ones first
DEPTH_MAX = 4
SPARE = 2**30
COPIES = 4  # the file as read, its tensors, their copy, the bytes to write
HIDDEN = re.compile(r"GLOBAL ([\w.]+)|[Gg]lobal `?([\w.]+)")


class Refused(Exception):
    """Why a file cannot be converted; the text goes on after its name."""


def main() -> int:
    """Convert `argv[1]` into `argv[2]` within `argv[3]` seconds of processor time; say on stdout what became of it."""
    source, target, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    said: dict[str, Any] = {"problem": "", "invalid": True}
    try:
        limit(source.stat().st_size, seconds)
        tensors = dict(plain(weights_of(read(source))))
        if not tensors:
            raise Refused("holds no tensors; it is no file of weights")
        facts = {"format": "pt", "source": source.name, "source_sha256": writer.file_sha256(source)}
        writer.write_file(target, safetensors.torch.save(tensors, facts), replace=False)
        said["tensors"] = len(tensors)
    except Refused as refusal:
        said["problem"] = str(refusal)
    except MemoryError:
        said |= {
            "problem": "needs much more memory than a file of its size should; nothing was written",
            "invalid": False,
        }
    except OSError as error:
        said |= {"problem": f"could not be converted: {error.strerror or error}", "invalid": False}
    print(json.dumps(said))
    return 0


def limit(size: int, seconds: int) -> None:
    """Limit this process: memory and written bytes by the size of the file, processor time, no core dump.

    Windows has no such limits; there the parent's timeout is what is left.
    """
    if os.name == "nt":
        return
    import resource

    memory = psutil.Process().memory_info().vms + COPIES * size + SPARE
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 2 * size + SPARE,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))


def read(source: Path) -> Any:
    """Unpickle plain tensors and containers.

    Raises:
        Refused: if the file holds anything else, is compressed or damaged.
    """
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise Refused("is a TorchScript program, which is code; get the plain weights")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise Refused("is compressed, which no checkpoint of PyTorch is; unpack it first")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = HIDDEN.search(str(error))
        what = (
            f"code ({next(filter(None, found.groups()))})"
            if found
            else "something that is no plain tensor and may be code"
        )
        raise Refused(f"holds {what}, which was not run; get the weights as .safetensors") from None
    except MemoryError:
        raise
    except Exception as error:  # torch's reader raises what it likes on damaged files
        text = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
        if "alloc" in text or "memory" in text:
            raise MemoryError from None
        raise Refused(f"cannot be read as a checkpoint of PyTorch: {text}") from None


def weights_of(content: Any) -> Any:
    """Return the weights inside what trainers wrap around them."""
    for _ in range(DEPTH_MAX):
        inner = next((content[key] for key in NESTS if _is_mapping(content) and _is_mapping(content.get(key))), None)
        if inner is None:
            break
        content = inner
    return content


def plain(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor by its dotted name, each with memory of its own; everything else is left out."""
    if not _is_mapping(content) or depth > DEPTH_MAX:
        return
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            try:
                yield name, value.detach().clone(memory_format=torch.contiguous_format)
            except RuntimeError as error:  # how torch says that there is no memory
                raise MemoryError from error
        else:
            yield from plain(value, f"{name}.", depth + 1)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
