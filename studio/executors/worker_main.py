"""The worker process: `python -m studio.executors.worker_main`, started by WorkerExecutor, ended by the closing of its pipe.

It reads orders as JSON lines from stdin and writes events as JSON lines to what was stdout. Libraries print too: their output goes
to stderr, which is the log.
"""

import json
import logging
import os
import queue
import sys
import threading
import traceback
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from studio.errors import DeviceError, StudioError
from studio.events import Event, Ready
from studio.executors.base import StopFlag, open_engine, ready, run_job, run_tool
from studio.records import Job, ModelRef
from studio.settings import Settings
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.tools import ToolAnswer, ToolCall, ToolProgress

logger = logging.getLogger(__name__)

LOST_EXIT = 3
TOOLS: TypeAdapter[ToolCall] = TypeAdapter(ToolCall)


class Worker:
    """One engine and one gallery; orders are done one after the other, `stop` at once."""

    def __init__(self, orders: BinaryIO, events: BinaryIO) -> None:
        self._orders, self._events = orders, events
        self._lock = threading.Lock()
        self._todo: queue.Queue[dict] = queue.Queue()
        self._flag = StopFlag()
        self._forgotten: set[str] = set()  # tool calls that nobody waits for any more
        self.settings = Settings.model_validate(json.loads(orders.readline())["settings"])

    def emit(self, event: Event | ToolAnswer | ToolProgress) -> None:
        with self._lock:
            self._events.write(event.model_dump_json().encode() + b"\n")
            self._events.flush()

    def read_orders(self) -> None:
        """Read until the pipe closes; then the app is gone, and so is the reason to live."""
        for line in self._orders:
            order = json.loads(line)
            if order["op"] == "stop":
                self._flag.ask(order["job"], order["kind"])
            elif order["op"] == "forget":
                self._forgotten.add(order["call"])
            else:
                self._todo.put(order)
        os._exit(0)

    def work(self) -> None:
        """Load the libraries, say that we are ready, do what is asked."""
        data = self.settings.data_dir
        previews = data / "cache" / "previews"
        previews.mkdir(parents=True, exist_ok=True)
        gallery = Gallery(data / "images", ImageIndex(Database(data / "studio.db")))
        engine, problem = None, ""
        try:
            engine = open_engine(self.settings)
            self.emit(ready(engine.device))
        except StudioError as error:
            problem = str(error)
            self.emit(Ready(device=self.settings.device, problem=problem))

        def opened() -> Any:
            if engine is None:
                raise DeviceError(problem)
            return engine

        while True:
            order = self._todo.get()
            if order["op"] == "warm" and engine:
                self._warm(engine, ModelRef.model_validate(order["model"]))
            elif order["op"] == "run":
                job = Job.model_validate(order["job"])
                self._flag.begin(job.id)
                if not run_job(opened, gallery, job, self.emit, self._flag, previews):
                    os._exit(LOST_EXIT)  # a device that is lost may not even let the interpreter end
            elif order["op"] == "tool" and order["call"] not in self._forgotten:
                tool = TOOLS.validate_python(order["tool"])
                self._flag.begin(order["call"])
                made, facts = self.settings.tool_pictures, {"call": order["call"], "heard": self.emit}
                self.emit(run_tool(opened, gallery, tool, made, flag=self._flag, **facts))

    def _warm(self, engine, model: ModelRef) -> None:
        try:
            engine.pipelines.warm(model)
        except StudioError as error:
            logger.warning("not loaded ahead: %s", error)


def main() -> None:
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    worker = Worker(sys.stdin.buffer, events)
    threading.Thread(target=worker.read_orders, name="orders", daemon=True).start()
    try:
        worker.work()
    except BaseException:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    main()
