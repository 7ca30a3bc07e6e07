"""What one sender may make the server do: bytes and files of a request, how slowly they may come, how many requests at once."""

import asyncio
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.types import Message, Receive, Send

IDLE = 30.0  # seconds without a byte of a body that is not complete
SLOWEST = 1_000  # bytes a second, once `IDLE` has passed
FILE = b"filename="
SENDERS = 10_000  # that are remembered
Refusal = tuple[int, str, int]  # status, sentence, seconds to wait


class BodyRefused(MultiPartException):
    """A body is too long or too slow. Gradio and Starlette delete their half-written uploads on this class only."""


class Exchange:
    """One request and its answer: counts and times the body, tells the status, keeps back what answers a refused body.

    Args:
        receive: of the server.
        send: likewise.
        limit: bytes of the body.
        files: that a form may have.
        on_status: is told the answer's status.
        check: judges the whole body, unless it is a form.
        clock: seconds.
    """

    def __init__(  # noqa: PLR0913 - what a request may be is told at once
        self,
        receive: Receive,
        send: Send,
        headers: Headers,
        *,
        limit: int,
        files: int,
        on_status: Callable[[int], None] | None = None,
        check: Callable[[bytes], Refusal | None] | None = None,
        idle: float = IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receive, self._send, self.limit, self.files, self.on_status = receive, send, limit, files, on_status
        self._idle, self._clock, self._began = idle, clock, clock()
        self._form = headers.get("content-type", "").lower().startswith("multipart/")
        self._complete, self._tail, self._seen = False, b"", 0
        self._announced = "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
        self._check, self._kept = None if self._form else check, bytearray()
        self.size, self.started = 0, False
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        """Receive, or raise BodyRefused."""
        if self._complete:  # who waits now waits for the end of the connection
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._idle)
        except TimeoutError:
            raise self._refuse(408, f"Nothing of the request came for {self._idle:g} seconds.") from None
        body = message.get("body", b"")
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self.size += len(body)
        if self.size > self.limit:
            raise self._refuse(413, f"A request may carry at most {self.limit:,} bytes.")
        if self._form and self._count(body) > self.files:
            raise self._refuse(413, f"A request may carry at most {self.files} files.")
        spent = self._clock() - self._began
        if not self._complete and spent > self._idle and self.size < SLOWEST * (spent - self._idle):
            raise self._refuse(408, f"The request came with less than {SLOWEST:,} bytes a second.")
        if self._check and body:
            self._kept += body
        if self._check and self._complete and (refusal := self._check(bytes(self._kept))):
            raise self._refuse(*refusal[:2])
        return message

    def _refuse(self, status: int, sentence: str) -> BodyRefused:
        self.refusal = status, sentence, 0
        return BodyRefused(sentence)

    def _count(self, body: bytes) -> int:
        """Count the files that were announced so far; the word may lie across two pieces."""
        text = (self._tail + body).lower()
        self._seen += text.count(FILE)
        self._tail = text[-len(FILE) + 1 :]
        return self._seen

    async def send(self, message: Message) -> None:
        """Send, unless the guard has to answer instead."""
        if self.refusal and not self.started:
            return
        if message["type"] == "http.response.start":
            if self.on_status:
                self.on_status(message["status"])
            if self._announced and not self._complete:  # else uvicorn reads the rest, however long, to throw it away
                MutableHeaders(scope=message)["Connection"] = "close"
        self.started = True
        await self._send(message)


class LoginLimiter:
    """At most `each` wrong passwords a minute from an address and `total` in all; holds at most `total` entries."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, each: int = 5, total: int = 30) -> None:
        self.clock, self.each, self.total, self.window = clock, each, total, 60.0
        self.tries: dict[object, tuple[float, str]] = {}

    def wait(self, address: str) -> int:
        """Return the whole seconds that `address` has to wait, 0 for none."""
        now = self.clock()
        self.tries = {key: entry for key, entry in self.tries.items() if now - entry[0] < self.window}
        every = [at for at, _ in self.tries.values()]
        mine = [at for at, who in self.tries.values() if who == address]
        full = mine[:1] * (len(mine) >= self.each) + every[:1] * (len(every) >= self.total)
        return max((math.ceil(at + self.window - now) for at in full), default=0)

    def begin(self, address: str) -> object:
        """Count a try before its answer is known, so that many at once cannot slip through; returns its key."""
        key = object()
        self.tries[key] = self.clock(), address
        return key

    def end(self, key: object, status: int) -> None:
        """Keep a wrong password; forget everything else, and after a right one all that the address did."""
        if status in (400, 401):
            return
        _, address = self.tries.pop(key, (0.0, ""))
        if status == 200:  # the others still count in all
            self.tries = {other: (at, "" if who == address else who) for other, (at, who) in self.tries.items()}


class Rates:
    """How many requests one sender may begin, and have open at once; a bucket of `burst` that fills by `each` a second."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        each: float = 10.0,
        burst: int = 300,
        open_at_once: int = 200,
    ) -> None:
        self.clock, self.each, self.burst, self.most = clock, each, burst, open_at_once
        self._buckets: dict[str, tuple[float, float]] = {}
        self._open: dict[str, int] = {}

    def begin(self, sender: str) -> int:
        """Count a request that changes something; return the whole seconds to wait, 0 if it may pass."""
        now = self.clock()
        left, then = self._buckets.pop(sender, (float(self.burst), now))
        left = min(float(self.burst), left + (now - then) * self.each)
        passes = left >= 1
        self._buckets[sender] = left - 1 if passes else left, now
        while len(self._buckets) > SENDERS:
            del self._buckets[next(iter(self._buckets))]
        return 0 if passes else 1 + int((1 - left) / self.each)

    def enter(self, sender: str) -> bool:
        """Count a request as open; False if the sender has too many."""
        if self._open.get(sender, 0) >= self.most:
            return False
        self._open[sender] = self._open.get(sender, 0) + 1
        return True

    def leave(self, sender: str) -> None:
        """Count a request as answered."""
        self._open[sender] -= 1
        if not self._open[sender]:
            del self._open[sender]
