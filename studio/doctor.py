"""`python -m studio doctor`: what is wrong with this machine, and how to mend it. Knows torch only by asking a child process."""

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from studio.errors import StorageError
from studio.fields import Frozen
from studio.settings import ROOT, VERSION, Settings
from studio.store.index import damage
from studio.store.library import Library

DISK_MIN = 5 * 2**30
LOG_TAIL = 200_000
PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "gradio",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pillow",
)
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{8,}"
    r"|(?i:(?:password|passwd|token|secret|api[_-]?key|authorization|auth)[\"']?\s*[=:,]\s*)(?:bearer\s+|basic\s+)?(?:\"[^\"]*\"|'[^']*'|\S+)"
    r"|://[^/\s:@]+:[^/\s@]+@",
    re.IGNORECASE,
)
PROBE = """
import json, torch
facts = {"version": torch.__version__, "cuda_build": torch.version.cuda, "cuda": torch.cuda.is_available()}
facts["mps"] = torch.backends.mps.is_available()
facts["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if facts["cuda"] else []
print(json.dumps(facts))
"""


class Finding(Frozen):
    """One fact; `cure` says what to do where it is not ok."""

    name: str
    ok: bool
    text: str
    cure: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at Python, the packages, the GPU, the disk, the folders and the models."""
    return [
        _python(),
        _packages(),
        _device(settings),
        _disk(settings),
        _folders(settings),
        _index(settings),
        _models(settings),
    ]


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        name="python",
        ok=ok,
        text=f"{platform.python_version()} on {platform.platform()}",
        cure="" if ok else "use Python 3.11, 3.12 or 3.13",
    )


def _packages() -> Finding:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    cure = f"pip install -r {ROOT / 'requirements.txt'}" if missing else ""
    return Finding(
        name="packages",
        ok=not missing,
        text=f"missing: {', '.join(missing)}" if missing else ", ".join(versions),
        cure=cure,
    )


def nvidia_gpus() -> list[str] | None:
    """Ask the driver for its GPUs, `name, driver version` each; None if there is no driver."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else None


def torch_facts() -> dict:
    """Ask PyTorch in a child process, so that a broken installation cannot end this one."""
    try:
        answer = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": "it did not answer within three minutes"}
    try:
        return json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"problem": (answer.stderr.strip().splitlines() or ["no answer"])[-1]}


def _device(settings: Settings) -> Finding:
    return judge_device(settings.device, nvidia_gpus(), torch_facts())


def judge_device(wanted: str, gpus: list[str] | None, facts: dict) -> Finding:
    """Compare what the driver sees with what PyTorch sees."""
    if "problem" in facts:
        return Finding(
            name="device",
            ok=False,
            text=f"torch cannot be imported: {facts['problem']}",
            cure="install the requirements again in a fresh environment",
        )
    if gpus and not facts["cuda_build"]:
        cure = "install torch from the CUDA index: pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130"
        return Finding(
            name="device",
            ok=False,
            text=f"GPU found ({gpus[0]}), but torch {facts['version']} is built without CUDA",
            cure=cure,
        )
    if gpus and not facts["cuda"]:
        return Finding(
            name="device",
            ok=False,
            text=f"GPU found ({gpus[0]}), but torch (CUDA {facts['cuda_build']}) cannot use it",
            cure="update the NVIDIA driver",
        )
    if wanted.startswith("cuda") and not facts["cuda"]:
        return Finding(
            name="device",
            ok=False,
            text=f"device={wanted} is wanted, but there is no NVIDIA GPU",
            cure="start with --device auto",
        )
    names = facts["devices"] or (
        ["Apple GPU"] if facts["mps"] else ["CPU only: the demo model is quick on it, large models are slow"]
    )
    return Finding(name="device", ok=True, text=", ".join(names))


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in [settings.data_dir, *settings.data_dir.parents] if path.exists())
    free = shutil.disk_usage(folder).free
    cure = "" if free >= DISK_MIN else "free some space, or choose another --data-dir"
    return Finding(
        name="disk", ok=free >= DISK_MIN, text=f"{free / 2**30:.1f} GiB free for {settings.data_dir}", cure=cure
    )


def _folders(settings: Settings) -> Finding:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / ".doctor"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Finding(
            name="folders",
            ok=False,
            text=f"{settings.data_dir} cannot be written: {error.strerror}",
            cure="choose another --data-dir",
        )
    return Finding(name="folders", ok=True, text=f"{settings.data_dir} can be written")


def _index(settings: Settings) -> Finding:
    path = settings.data_dir / "studio.db"
    problem = damage(path)
    return Finding(
        name="index",
        ok=not problem,
        text=f"{path} is damaged: {problem}" if problem else "index and queue can be read",
        cure="python -m studio reindex builds it anew from the pictures; the queue is lost" if problem else "",
    )


def _models(settings: Settings) -> Finding:
    found = Library(settings.model_folders).models()
    bad = [f"{model.id} ({model.problem})" for model in found if model.problem]
    good = [model.id for model in found if not model.problem]
    text = f"usable: {', '.join(good) or 'none'}" + (f"; not usable: {'; '.join(bad)}" if bad else "")
    return Finding(
        name="models",
        ok=bool(good),
        text=text,
        cure="" if good else "get the repository again: presets/models/shapes is missing",
    )


def without_secrets(text: str) -> str:
    """Replace tokens, passwords and the user's home folder."""
    return (
        SECRET.sub("[removed]", text)
        .replace(str(Path.home()), "~")
        .replace(str(Path.home()).replace("\\", "\\\\"), "~")
    )


def write_bundle(path: Path, findings: list[Finding], settings: Settings) -> None:
    """Write findings and the ends of the logs into a zip, without secrets, prompts or pictures.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        _write_bundle(path, findings, settings)
    except OSError as error:
        raise StorageError(
            f"bundle={str(path)!r} cannot be written ({error.strerror}); choose another place"
        ) from error


def _write_bundle(path: Path, findings: list[Finding], settings: Settings) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        report = {"studio": VERSION, "findings": [finding.model_dump() for finding in findings]}
        bundle.writestr("report.json", without_secrets(json.dumps(report, indent=1)))
        shown = settings.model_dump(mode="json", exclude={"auth"}) | {"auth": "set" if settings.auth else "not set"}
        bundle.writestr("settings.json", without_secrets(json.dumps(shown, indent=1)))
        for log in sorted((settings.data_dir / "logs").glob("*.log")):
            bundle.writestr(
                f"logs/{log.name}", without_secrets(log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace"))
            )
