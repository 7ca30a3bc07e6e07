"""`convert`: a pickle of weights becomes a safetensors file, read by a child process that may die without harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

from studio.errors import InvalidRequest, StudioError
from studio.settings import ROOT
from studio.store.headers import PICKLES

SOURCE_MAX = 32 * 2**30
SECONDS = 120  # that any file may take, and besides
BYTES_A_SECOND = 20_000_000
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # with it torch would run the code in pickles


def convert(source: Path, target: Path) -> int:
    """Write a safe copy of a file of weights.

    Args:
        source: .pth, .pt, .ckpt or .bin, as `torch.save` wrote it.
        target: a new file that ends in .safetensors.

    Returns:
        How many tensors were written.

    Raises:
        InvalidRequest: if a path is wrong, or the file holds code or no tensors.
        StudioError: if it could not be read or written within the limits.
    """
    size = check_paths(source, target)
    seconds = SECONDS + size // BYTES_A_SECOND
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from studio.convert_main import main; sys.exit(main())"
    command = [sys.executable, "-I", "-c", code, str(source), str(target), str(seconds)]
    environment = {name: value for name, value in os.environ.items() if name != UNSAFE and not name.startswith("HF_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, timeout=2 * seconds, check=False)
        said = json.loads(answer.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise StudioError(f"{source.name} took more than {2 * seconds} seconds to read; it was given up") from None
    except (ValueError, IndexError):
        raise StudioError(
            f"{source.name} could not be read within its limits of memory and time; it may be damaged or made to do harm"
        ) from None
    if problem := said.get("problem"):
        sentence = f"{source.name} {problem}"
        raise InvalidRequest("source", sentence) if said["invalid"] else StudioError(sentence)
    return said["tensors"]


def check_paths(source: Path, target: Path) -> int:
    """Return the size of the source in bytes.

    Raises:
        InvalidRequest: naming the path and what it must be.
    """
    if source.suffix.lower() == ".safetensors":
        raise InvalidRequest("source", f"{source.name} is a safetensors file already; it can be used as it is")
    if source.suffix.lower() not in PICKLES:
        raise InvalidRequest("source", f"{source.name} must end in one of: {', '.join(PICKLES)}")
    if not source.is_file():
        raise InvalidRequest("source", f"{source} is no file; name a checkpoint")
    if target.suffix != ".safetensors":
        raise InvalidRequest("target", f"{target.name} must end in .safetensors")
    if target.exists():
        raise InvalidRequest("target", f"{target} exists already; choose another name, or remove it")
    size = source.stat().st_size
    if size > SOURCE_MAX:
        raise InvalidRequest("source", f"{source.name} has {size:,} bytes; at most {SOURCE_MAX:,} are converted")
    return size
