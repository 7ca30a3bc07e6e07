"""What strangers may ask of a public page: limits of one request, of one visitor's share of the queue, and of a day."""

import ipaddress
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from studio.errors import InvalidRequest, StorageError, StudioError
from studio.fields import Frozen
from studio.spec import GenerationRequest

EVERYBODY = "local"  # at home all browsers are the same person: laptop and phone see the same queue and gallery
KEPT = 10_000  # visitors that are remembered; the one that was seen first gives way
DAY = 86_400.0


class Limits(Frozen):
    """What one visitor may have; `house` times as much for all who come from the same address.

    Attributes:
        side: pixels of a picture's longer side, after a second pass too; `enlarged` of one that is only enlarged.
        text: characters of a prompt.
        waiting: jobs that wait or run at once.
        pictures: a day.
        upload_bytes: a day; `upload_files` in one request.
        seconds: that one job may take before it is interrupted.
        free: bytes that visitors leave on the disk.
        kept: bytes of all visitors' pictures together.
    """

    side: int = 1024
    enlarged: int = 2048
    steps: int = 50
    images: int = 4
    batch: int = 4
    text: int = 2_000
    units: int = 3
    loras: int = 6
    waiting: int = 16
    pictures: int = 400
    upload_bytes: int = 256 * 2**20
    upload_files: int = 20
    seconds: float = 600.0
    free: int = 2 * 10**9
    kept: int = 20 * 10**9
    house: int = 8

    def check(self, request: GenerationRequest, picture: tuple[int, int] = (0, 0)) -> None:
        """Refuse a request, resolved or not, that is more than a visitor may ask for.

        Args:
            request: to be judged.
            picture: width and height of the picture that it starts from, which counts if that is only enlarged.

        Raises:
            InvalidRequest: naming the first field that is too large, its value and what is allowed.
        """
        self.check_text(request)
        drawn = (0, 0) if request.only_enlarges else request.canvas
        numbers = {
            "width": (drawn[0], self.side),
            "height": (drawn[1], self.side),
            "hires_scale": (
                0 if request.hires_scale == 1 else max(*request.hires_size, round(max(picture) * request.hires_scale)),
                self.enlarged if request.only_enlarges else self.side,
            ),
            "num_inference_steps": (request.num_inference_steps or 0, self.steps),
            "hires_steps": (request.hires_steps, self.steps),
            "num_images_per_prompt": (request.num_images_per_prompt, self.images),
            "batch_size": (request.batch_size, self.batch),
            "loras": (len(request.loras), self.loras),
            "ip_adapters": (sum(len(unit.images) for unit in request.ip_adapters), self.units),
        }
        for field, (value, most) in numbers.items():
            if value > most:
                said = f"{field} makes {value} pixels a side, which" if field == "hires_scale" else f"{field}={value}"
                raise InvalidRequest(field, f"{said} must be at most {most} on a public page")

    def of_field(self, field: str) -> int | None:
        """Return the most that one plain number of a request may be; None if only its own range counts."""
        most = {"num_inference_steps": self.steps, "hires_steps": self.steps, "batch_size": self.batch}
        most |= {"width": self.side, "height": self.side, "num_images_per_prompt": self.images}
        return most.get(field)

    def check_text(self, request: GenerationRequest) -> None:
        """Refuse prompts that are too long for a public page.

        Raises:
            InvalidRequest: naming the prompt.
        """
        for field in ("prompt", "negative_prompt"):
            if (length := len(getattr(request, field))) > self.text:
                raise InvalidRequest(
                    field, f"{field} has {length:,} characters; at most {self.text:,} are allowed on a public page"
                )


class Visitors:
    """Who asked for how much today, and from where; forgotten at a restart. Safe to use from many threads.

    Args:
        limits: of each.
        disk: a folder on the disk that visitors fill.
        clock: seconds since the epoch.
    """

    def __init__(self, limits: Limits, disk: Path, clock: Callable[[], float] = time.time) -> None:
        self.limits, self._disk, self._clock = limits, disk, clock
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}
        self._spent: dict[tuple[str, str], int] = {}
        self._day = 0
        self._served: dict[str, int] = {}
        self._turns = 0

    def seen(self, owner: str, address: str) -> None:
        """Remember where a visitor comes from; an address within a network tells nobody apart."""
        place = f"@{address}" if is_global(address) else ""
        with self._lock:
            self._places.pop(owner, None)
            self._places[owner] = place
            while len(self._places) > KEPT:
                del self._places[next(iter(self._places))]

    def house(self, owner: str) -> str:
        """Return with whom a visitor shares: all of one address, or only the visitor where that is not known."""
        return self._places.get(owner) or owner

    def spend(self, owner: str, what: str, number: int, most: int) -> None:
        """Count what a visitor takes of a day's amount, and all of it or nothing.

        Args:
            owner: whose; "" is everybody without a name.
            what: is counted.
            number: of it, now.
            most: a day.

        Raises:
            StudioError: if today's amount is used up.
        """
        with self._lock:
            if self._day != (day := int(self._clock() // DAY)):
                self._day, self._spent = day, {}
            mine, ours = (owner, what), (self.house(owner), what)
            shares = {mine: most} | ({ours: most * self.limits.house} if ours != mine else {})
            if any(self._spent.get(key, 0) + number > limit for key, limit in shares.items()):
                raise StudioError(f"today's {what} are used up (at most {most:,} a visitor a day); come back tomorrow")
            for key in shares:
                self._spent[key] = self._spent.pop(key, 0) + number
            while len(self._spent) > 4 * KEPT:
                del self._spent[next(iter(self._spent))]

    def check_room(self, owner: str, number: int, open_jobs: Counter[str], kept: int) -> None:
        """Refuse jobs beyond a visitor's share of the queue and of the disk.

        Args:
            owner: who wants to submit.
            number: of jobs.
            open_jobs: how many of each visitor wait or run.
            kept: bytes of all visitors' pictures.

        Raises:
            StudioError: what is full, and what helps.
        """
        house = self.house(owner)
        ours = sum(count for other, count in open_jobs.items() if self.house(other) == house)
        most = self.limits.waiting
        if open_jobs[owner] + number > most or ours + number > most * self.limits.house:
            raise StudioError(f"a visitor may have {most} jobs waiting at once; wait for one, or cancel one")
        self.check_disk(0)
        if kept > self.limits.kept:
            raise StorageError("this page has no more room for visitors' pictures; tell its owner")

    def check_disk(self, number: int) -> None:
        """Refuse to write `number` bytes for a visitor where the disk is almost full.

        Raises:
            StorageError: if so.
        """
        if shutil.disk_usage(self._disk).free - number < self.limits.free:
            raise StorageError("the disk of this page is almost full, so nothing more is taken; tell its owner")

    def next_turn(self, waiting: Sequence[tuple[str, str]]) -> str:
        """Choose the job that is done next: the first one of whoever was served longest ago.

        Args:
            waiting: (id, owner) of the jobs in their order, at least one.
        """
        job, owner = min(waiting, key=lambda one: self._served.get(self.house(one[1]), 0))
        self._turns += 1
        self._served.pop(self.house(owner), None)
        self._served[self.house(owner)] = self._turns
        while len(self._served) > KEPT:
            del self._served[next(iter(self._served))]
        return job


def is_global(address: str) -> bool:
    """Say whether an address, or an IPv6 network, tells one customer of the internet from another."""
    try:
        return ipaddress.ip_network(address, strict=False).is_global
    except ValueError:
        return False
