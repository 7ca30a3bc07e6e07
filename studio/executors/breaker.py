"""When the process that draws, or its device, dies under one job after the other: the queue stops and is kept."""

import re
from typing import Any

from studio.events import Event, Failed, Finished

LIMIT = 3  # jobs in a row that took their process with them
WORKER, LOST = "worker", "lost"  # codes of Failed: the process died; the device cannot be used any more by this process
# What the libraries say when every later call of this process would fail too; "out of memory" is none of these.
POISONED = re.compile(
    r"device-side assert|CUDA error|HIP error|illegal memory access|unspecified launch failure|driver shutting down"
    r"|CU(BLAS|SOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
)
STOPPED = (
    f"stopped after {LIMIT} jobs in a row ended the process that draws; the queue is kept. "
    "`python -m studio doctor` and data/logs/worker.log say more"
)


def poisoned(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, means that this process cannot use its device any more."""
    while error is not None:
        if isinstance(error, RuntimeError) and POISONED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


class Breaker:
    """Counts deaths in a row; open, it says that nothing should be begun."""

    def __init__(self) -> None:
        self._deaths = 0

    @property
    def open(self) -> bool:
        return self._deaths >= LIMIT

    def heard(self, event: Event) -> None:
        """Take the end of a job."""
        if isinstance(event, Failed):
            self._deaths = self._deaths + 1 if event.code in (WORKER, LOST) else 0
        elif isinstance(event, Finished) and not event.interrupted:
            self._deaths = 0

    def close(self) -> None:
        """Let jobs begin again; as many more deaths open it again."""
        self._deaths = 0

    def told(self) -> dict[str, Any]:
        """Return what a page shows of it beside the device."""
        return {"state": "stopped", "problem": STOPPED} if self.open else {}
