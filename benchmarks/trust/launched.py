"""Runs `app.py` for the scoreboard: `python -m benchmarks.trust.launched MUTANT FLAGS…`; every socket that goes out is written down.

The mutants are products that are broken on purpose. They live here, and nothing in the product knows of them.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

SOCKETS = "TRUST_SOCKETS"  # variable that names the file
WATCHED = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}


def watch_sockets() -> None:
    """Write every attempt to reach or to resolve an address into the file; the audit hook cannot be taken away again."""
    path = os.environ.get(SOCKETS)
    if not path:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED:
            return
        asked = event.startswith("socket.get")  # for the number behind a name
        target = arguments[0] if asked else arguments[1]
        own = (None, "", b"", "0.0.0.0", "127.0.0.1", "localhost")
        if target not in own if asked else isinstance(target, tuple):
            os.write(file, f"{os.getpid()} {event} {target!r}\n".encode())

    sys.addaudithook(heard)


def no_guard() -> None:
    """Let every request pass as it came."""
    from studio.ui.guard import Guard

    async def pass_on(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    Guard.__call__ = pass_on  # type: ignore[method-assign]


def everybody() -> None:
    """Take all visitors for the same person."""
    from studio.ui.services import EVERYBODY, Services

    Services.owner = lambda self, headers: EVERYBODY  # type: ignore[method-assign,assignment]


def lora_stays() -> None:
    """Forget to take the last job's LoRA away: the next one is drawn with it too."""
    from studio.executors import inline

    run, last = inline.InlineExecutor.run, []

    def stale(self: Any, job: Any, emit: Any) -> None:
        loras, parts = (last[-1].request.loras, last[-1].parts) if last else ((), ())
        last.append(job)
        mixed = job.request.model_copy(update={"loras": (*job.request.loras, *loras)})
        run(self, job.model_copy(update={"request": mixed, "parts": (*job.parts, *parts)}), emit)

    inline.InlineExecutor.run = stale  # type: ignore[method-assign]


def loses_jobs() -> None:
    """Forget every fifth job that was taken."""
    from studio.store.jobs import JobStore

    add, count = JobStore.add, [0]

    def forgetful(self: Any, *jobs: Any, **more: Any) -> None:
        count[0] += 1
        if count[0] % 5:
            add(self, *jobs, **more)

    JobStore.add = forgetful  # type: ignore[method-assign]


def leaks() -> None:
    """Keep memory and an open file for every job."""
    from studio.executors.dispatcher import Dispatcher

    prepare, kept = Dispatcher.prepare, []

    def hoarding(self: Any, request: Any, owner: str) -> Any:
        kept.append((bytearray(os.urandom(400_000)), os.open(os.devnull, os.O_RDONLY)))
        return prepare(self, request, owner)

    Dispatcher.prepare = hoarding  # type: ignore[method-assign]


def phones_home() -> None:
    """Tell somebody of every job, as telemetry does."""
    import socket

    from studio.executors.dispatcher import Dispatcher

    prepare = Dispatcher.prepare

    def telling(self: Any, request: Any, owner: str) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as teller:
            teller.sendto(b"hello", ("127.0.0.1", 9))
        return prepare(self, request, owner)

    Dispatcher.prepare = telling  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "no-guard": no_guard,
    "everybody": everybody,
    "lora-stays": lora_stays,
    "loses-jobs": loses_jobs,
    "leaks": leaks,
    "phones-home": phones_home,
}


def main() -> int:
    """Watch, break what is to be broken, run the app."""
    watch_sockets()
    mutant, flags = sys.argv[1], sys.argv[2:]
    import app
    from studio.executors.worker import WorkerExecutor

    WorkerExecutor.module = "benchmarks.trust.launched_worker"
    MUTANTS[mutant]()
    print(f"started at {time.time():.0f} as {mutant}", file=sys.stderr)
    return app.main(flags)


if __name__ == "__main__":
    sys.exit(main())
