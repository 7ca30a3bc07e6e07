"""Which device, which number format, and what else decides the last bits of a picture."""

import importlib.metadata
from dataclasses import dataclass

import cv2
import diffusers
import torch
import transformers

from studio.errors import DeviceError
from studio.events import Place
from studio.records import Machine
from studio.settings import VERSION

CONTROLNET_AUX = importlib.metadata.version("controlnet-aux")


@dataclass(frozen=True)
class Device:
    """A place to compute. `key` names it for the lease: two processes that mean the same hardware get the same key."""

    place: "torch.device"
    dtype: "torch.dtype"
    key: str
    title: str
    cpu_threads: int

    @property
    def machine(self) -> Machine:
        """What replay compares."""
        return Machine(
            studio=VERSION,
            torch=torch.__version__,
            diffusers=diffusers.__version__,
            transformers=transformers.__version__,
            device=self.title,
            dtype=str(self.dtype).removeprefix("torch."),
            cpu_threads=self.cpu_threads,
            opencv=cv2.__version__,
            controlnet_aux=CONTROLNET_AUX,
        )

    @property
    def memory(self) -> tuple[int, int] | None:
        """(free, total) bytes of a GPU; None for a CPU, whose memory is everybody's."""
        return torch.cuda.mem_get_info(self.place) if self.place.type == "cuda" else None


def device_places() -> tuple[Place, ...]:
    """Return the devices of this machine by the names that `open_device` knows, the CPU last."""
    found: list[Place] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append(Place(name=f"cuda:{index}", title=facts.name, memory=facts.total_memory))
    if torch.backends.mps.is_available():
        found.append(Place(name="mps", title="Apple GPU"))
    return (*found, Place(name="cpu", title="CPU"))


def open_device(name: str, cpu_threads: int) -> Device:
    """Turn `auto`, `cpu`, `mps`, `cuda` or `cuda:1` into a device.

    Raises:
        DeviceError: if the named device is not there; nothing else is taken instead.
    """
    torch.set_num_threads(cpu_threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise DeviceError(
                f"device={name!r} is not there ({torch.cuda.device_count()} CUDA devices found); `python -m studio doctor` says why"
            )
        facts = torch.cuda.get_device_properties(index)
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return Device(torch.device("cuda", index), dtype, f"gpu-{facts.uuid}", facts.name, cpu_threads)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device='mps' is not there; use --device cpu")
        return Device(torch.device("mps"), torch.float16, "mps", "Apple GPU", cpu_threads)
    return Device(torch.device("cpu"), torch.float32, "cpu", "CPU", cpu_threads)
