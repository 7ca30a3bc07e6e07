"""Sixteen visitors with gradio_client do mixed work at once: no job lost, no picture crossed, no server error, quick submits."""

import contextlib
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.target import Target, target
from benchmarks.trust.visiting import VISITORS, meet, prompt_of

SECONDS = {True: 300.0, False: 60.0}
THINK = 4.0  # seconds between two things that a visitor does
PATIENCE = 300.0  # seconds for a job that was taken
SLOWEST = 2.0
GOAL = f"0 lost, 0 crossed, 0 server errors, p99 of a submit below {SLOWEST:g} s for the client"


@dataclass
class Notes:
    """What all visitors wrote down."""

    tally: Tally
    submits: list[float] = field(default_factory=list)
    full: int = 0
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def case(self, what: str) -> Iterator[None]:
        """Count a case from any thread."""
        problem = ""
        try:
            yield
        except Exception as error:  # a visitor is a boundary: what goes wrong is what is counted
            problem = f"{type(error).__name__}: {error}"
        with self.lock:
            self.done[what.partition(":")[0]] += 1
            with self.tally.case(what):
                assert not problem, problem


class Visitor:
    """One of them.

    Args:
        one: the app.
        name: of the visitor.
        place: decides prompt and chances.
        notes: for all.
    """

    def __init__(self, one: Target, name: str, place: int, notes: Notes) -> None:
        from gradio_client import Client

        self._one, self._name, self._place, self._notes = one, name, place, notes
        self._chance = random.Random(place)
        headers = {"Cookie": one.visitors[name], "Host": one.host}
        self._client = Client(f"http://127.0.0.1:{one.port}", verbose=False, headers=headers)
        self._jobs: dict[str, int] = {}

    def live(self, until: float) -> None:
        """Do things until the time is over, then wait for what was submitted."""
        actions = [self.submit] * 5 + [self.gallery, self.reload, self.cancel]
        while time.monotonic() < until:
            self._chance.choice(actions)()
            time.sleep(self._chance.uniform(0.5, 1.5) * THINK)
        for job, seed in self._jobs.items():
            with self._notes.case(f"job: of {self._name}"):
                self.check(job, seed)

    def submit(self) -> None:
        """Ask for a picture, which takes a moment of the visitor's time and not of the server's."""
        seed, began = self._place * 10_000 + len(self._jobs), time.monotonic()
        asked: dict[str, Any] = {
            "prompt": prompt_of(self._place),
            "seed": seed,
            "num_inference_steps": 2,
            "wait": False,
        }
        with self._notes.case(f"submit: of {self._name}"):
            try:
                answer = self._client.predict(**asked, width=64, height=64, api_name="/txt2img")
            except Exception as error:  # told, and not lost
                if "jobs waiting at once" not in str(error):
                    raise
                self._notes.full += 1
                return
            self._notes.submits.append(time.monotonic() - began)
            self._jobs[answer["job"]] = seed

    def gallery(self) -> None:
        """Look at the own pictures: nobody else's are there."""
        with self._notes.case(f"gallery: of {self._name}"):
            rows = self._client.predict(api_name="/gallery")["images"]
            assert all(row["seed"] // 10_000 == self._place for row in rows), "a picture of somebody else"

    def reload(self) -> None:
        """Load the page again."""
        with self._notes.case(f"reload: of {self._name}"):
            for path in ("/", "/config", "/studio/state?since=-1"):
                status = self._one.raw("GET", path, who=self._name, timeout=60).status
                assert status == 200, f"{path} is answered with {status}"

    def cancel(self) -> None:
        """Take back the last job; what is finished of it stays."""
        if self._jobs:
            with self._notes.case(f"cancel: of {self._name}"):
                job = list(self._jobs)[-1]
                self._client.predict(job=job, api_name="/cancel")

    def check(self, job: str, seed: int) -> None:
        """Raise if a job was lost, or its picture is not the one that was asked for."""
        until = time.monotonic() + PATIENCE
        while (found := self._client.predict(job=job, api_name="/job"))["state"] in ("queued", "running"):
            assert time.monotonic() < until, f"still {found['state']}"
            time.sleep(0.5)
        assert found["state"] in ("done", "cancelled"), found["error"]
        for image in found["images"]:
            said = self._one.raw("GET", f"/studio/metadata/{image['id']}", who=self._name).json()["record"]
            assert (said["seed"], said["request"]["prompt"]) == (seed, prompt_of(self._place)), "another's picture"


def work(one: Target, seconds: float, notes: Notes) -> None:
    """Let all visitors live for a while, and look into the log."""
    visitors = [Visitor(one, name, place, notes) for place, name in enumerate(meet(one))]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=visitor.live, args=(until,)) for visitor in visitors]
    before = one.log().count("Traceback (most recent call last)")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with notes.case("log: of the app"):
        faults = one.log().count("Traceback (most recent call last)") - before
        assert not faults, f"{faults} tracebacks"


def run(full: bool, mutant: bool = False) -> Figure:
    """Let all of them work; the mutant forgets every fifth job."""
    notes = Notes(Tally())
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        with target("space", Path(folder), mutant="loses-jobs" if mutant else "none") as one:
            one.call(
                "txt2img", prompt="x", num_inference_steps=1
            )  # the model is loaded before anybody looks at the clock
            work(one, SECONDS[full], notes)
    times = sorted(notes.submits) or [0.0]
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    details = {"visitors": VISITORS, "done": dict(notes.done), "told that the share is full": notes.full}
    details |= {"submit p50": round(times[len(times) // 2], 3), "submit p99": round(p99, 3)}
    return notes.tally.figure("F4", __doc__ or "", GOAL, passed=p99 < SLOWEST, **details)
