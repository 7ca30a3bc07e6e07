"""What ends a run, in words of a person: what happened, what is kept, the way out."""

import torch
from safetensors import SafetensorError

from studio.errors import DeviceError, StorageError
from studio.settings import Settings
from trainers.configs import TrainingConfig
from trainers.estimate import advice
from trainers.loop import disk_full

NO_MEMORY = "DefaultCPUAllocator"  # of the message when the machine's own memory does not suffice


def in_words(error: Exception, config: TrainingConfig, settings: Settings, saved: int) -> Exception:
    """Return a failure as a sentence; as it is if it has one, or nobody foresaw it.

    Args:
        error: that ended the run.
        config: of the run.
        settings: of the process.
        saved: step of the newest checkpoint; 0 if there is none.
    """
    if isinstance(error, OSError | SafetensorError) and disk_full(error):
        return StorageError(f"the disk is full; free some space in {settings.data_dir} and start again")
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY in str(error)):
        kept = f"; the checkpoint of step {saved} is kept" if saved else ""
        ways = advice(config)
        way = f"with {ways[0]}" if ways else "with a smaller model or resolution"
        return DeviceError(
            f"the run does not fit into the device's memory{kept}; end what else uses it and go on, or begin anew {way}"
        )
    return error
