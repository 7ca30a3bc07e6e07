"""Pictures of strangers are decoded in a process of their own, with little memory, little time and nothing to lose."""

import io
import os
import subprocess
import sys
import threading

from PIL import Image

from studio.settings import ROOT
from studio.store.blobs import Refused, decode, encode, limit_pillow

SECONDS = 20  # wall time that a picture may take; half of it of the processor
MEMORY = 2 * 2**30  # bytes of address space: 64 million pixels as RGBA, several times
CHILD = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from studio.store.apart import main; main()"
REFUSAL, PICTURE = b"R", b"P"
KEPT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")  # of the environment: no token goes there


class Apart:
    """Decodes the content of picture files as `blobs.decode` does, each in a child with limits.

    Args:
        at_once: children that may run; who comes then waits.
    """

    def __init__(self, at_once: int = 2) -> None:
        self._room = threading.BoundedSemaphore(at_once)

    def __call__(self, data: bytes) -> Image.Image:
        """Decode a file.

        Raises:
            Refused: as `decode` does; also if the child died or took too long.
        """
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        command = [sys.executable, "-I", "-c", CHILD]
        try:
            with self._room:
                answer = subprocess.run(
                    command, input=data, capture_output=True, timeout=SECONDS, env=kept, check=False
                ).stdout
        except subprocess.TimeoutExpired:
            raise Refused("takes too long to decode; save it again, or choose another") from None
        if answer[:1] == REFUSAL:
            raise Refused(answer[1:].decode())
        if answer[:1] != PICTURE:
            raise Refused("needs too much memory or time to decode; save it again, or choose another")
        with Image.open(io.BytesIO(answer[1:]), formats=("PNG",)) as image:
            return image.copy()


def main() -> None:
    """Read a file from stdin; write a refusal or a plain PNG to stdout."""
    data = sys.stdin.buffer.read()
    limit()
    limit_pillow()
    try:
        said = PICTURE + encode(decode(data))
    except Refused as refusal:
        said = REFUSAL + str(refusal).encode()
    sys.stdout.buffer.write(said)


def limit() -> None:
    """Limit this process: memory, processor time, no files, no core dump. Windows has no such limits; there the timeout is left."""
    if os.name == "nt":
        return
    import resource

    limits = ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS // 2), (resource.RLIMIT_FSIZE, 0))
    for kind, most in (*limits, (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))
