"""The worker process, hurt by prompts: `!assert` loses the device, `!exit` ends the process, `!bug` raises; see `recovery.Hurt`."""

import os
from typing import Any


def main() -> None:
    from studio.engine.engine import Engine
    from studio.executors import worker_main

    real = Engine.generate

    def hurt(self: Any, job: Any, *rest: Any) -> None:
        word = job.request.prompt.partition(" ")[0]
        if word == "!assert":
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
        if word == "!exit":
            os._exit(9)
        if word == "!bug":
            raise KeyError("a fault")
        real(self, job, *rest)

    Engine.generate = hurt  # type: ignore[method-assign]
    worker_main.main()


if __name__ == "__main__":
    main()
