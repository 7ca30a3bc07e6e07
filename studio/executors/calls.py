"""Tools at work: how many may wait for the process that draws, and which of them can be asked to end."""

import threading

from studio.errors import StudioError
from studio.executors.base import Executor, Heard
from studio.tools import ToolAnswer, ToolCall

WAITING = 4  # each holds a thread that answers pages


class Calls:
    """The calls of tools that an executor has been given.

    Args:
        executor: answers them.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._open: set[str] = set()
        self._room = threading.BoundedSemaphore(WAITING)

    def ask(self, tool: ToolCall, call: str, heard: Heard) -> ToolAnswer:
        """Let a tool work between two jobs; `call` is an id for `stop`, `heard` is told of its progress.

        Raises:
            StudioError: why it could not.
        """
        if not self._room.acquire(blocking=False):
            raise StudioError("other previews and checks are being made; try again in a moment")
        self._open.add(call)
        try:
            answer = self._executor.ask(tool, call, heard)
        finally:
            self._open.discard(call)
            self._room.release()
        if answer.problem:
            raise StudioError(answer.problem)
        return answer

    def stop(self, call: str) -> None:
        """Ask a call, if there is one of this id, to end; what it has found so far is its answer."""
        if call in self._open:
            self._executor.stop(call, "interrupt")
