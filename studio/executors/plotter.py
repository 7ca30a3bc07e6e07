"""Plotter: makes the cells of X/Y/Z plots jobs of the queue, follows them, and joins the finished ones into a grid."""

import io
import logging
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from studio.errors import InvalidRequest, StudioError
from studio.executors.dispatcher import Dispatcher
from studio.grid import draw_grid
from studio.plots import (
    CELLS_MAX,
    GridRecord,
    PlotSpec,
    axis_labels,
    cell_refusal,
    cells_of,
    check_number,
    fix_seeds,
    label_of,
    run_order,
)
from studio.records import Job
from studio.spec import SEED_MAX, GenerationRequest
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.jobs import CANCELLED, DONE, RUNNING, WAITING, new_job_id
from studio.store.plots import Plot, PlotCell, PlotStore

logger = logging.getLogger(__name__)

PAUSE = 0.15  # seconds between two looks into the journal
SHOWN = 6  # plots that a page lists


class Plotter:
    """Owner of the plots of one data root.

    Args:
        dispatcher: does the cells.
        gallery: has the cells' pictures and takes the grids.
        store: keeps the plots.
    """

    def __init__(self, dispatcher: Dispatcher, gallery: Gallery, store: PlotStore) -> None:
        self._dispatcher, self._gallery, self._store = dispatcher, gallery, store
        self._plots: dict[str, Plot] = {}
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._follow, name="plotter", daemon=True)

    def start(self) -> None:
        """Go on with the plots of the last run."""
        self._plots = self._store.load()
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Stop following; the jobs are the dispatcher's and stay in the queue."""
        self._closing = True
        self._wake.set()
        self._thread.join(10)

    def begin(self, spec: PlotSpec, owner: str, *, limit: int = CELLS_MAX) -> Plot:
        """Queue a job for each cell; plot and jobs are on disk when this returns.

        Raises:
            StudioError: naming axis and value if one cell cannot be made; nothing is queued then.
        """
        spec = fix_seeds(spec, lambda: secrets.randbelow(SEED_MAX - 64))
        cells = cells_of(spec)
        check_number(len(cells), limit)
        jobs = [self._prepare(cell.request, owner, spec, cell.values) for cell in cells]
        made = tuple(PlotCell(job=job.id) for job in jobs)
        plot = Plot(id=new_job_id(), owner=owner, created=utc_now().isoformat(), spec=spec, cells=made)
        self._enqueue(plot, [jobs[number] for number in run_order(cells)])
        return plot

    def _prepare(self, request: GenerationRequest, owner: str, spec: PlotSpec, values: dict[str, Any]) -> Job:
        try:
            return self._dispatcher.prepare(request, owner)
        except InvalidRequest as error:
            raise cell_refusal(spec, values, error) from None

    def _enqueue(self, plot: Plot, jobs: list[Job]) -> None:
        """Write the plot, then queue: a crash in between leaves cells that `resume` queues."""
        with self._lock:  # nobody looks for the jobs before they are there
            self._dispatcher.check_room(len(jobs), plot.owner)
            self._keep(plot)
            self._dispatcher.enqueue(jobs)
        self._wake.set()

    def cancel(self, plot_id: str, owner: str) -> None:
        """Cancel all cells that are not done; finished ones stay."""
        plot = self._owned(plot_id, owner)
        for cell in reversed(plot.cells):  # the running one last, so that no other begins meanwhile
            if cell.open:
                with suppress(StudioError):
                    self._dispatcher.cancel(cell.job, owner)

    def resume(self, plot_id: str, owner: str) -> Plot:
        """Queue the cells again that failed or were cancelled, with the same seeds; join the grid again if only that failed.

        Raises:
            StudioError: if there is no such plot, or a cell can no longer be made.
        """
        plot = self._owned(plot_id, owner)
        cells = cells_of(plot.spec)
        again = [n for n in run_order(cells) if plot.cells[n].state != DONE and not plot.cells[n].open]
        jobs = {n: self._prepare(cells[n].request, owner, plot.spec, cells[n].values) for n in again}
        with self._lock:
            plot = self._owned(plot_id, owner)
            if any(plot.cells[n].open or plot.cells[n].state == DONE for n in again):
                raise StudioError("this plot was resumed already")
            made = tuple(PlotCell(job=jobs[n].id) if n in jobs else cell for n, cell in enumerate(plot.cells))
            plot = plot.model_copy(update={"cells": made, "error": ""})
            self._enqueue(plot, list(jobs.values()))
        return plot

    def _owned(self, plot_id: str, owner: str) -> Plot:
        plot = self._plots.get(plot_id)
        if plot is None or not owner or plot.owner != owner:
            raise StudioError(f"there is no plot {plot_id!r} of yours")
        return plot

    def get(self, plot_id: str) -> Plot | None:
        """Return a plot as it is known now."""
        return self._plots.get(plot_id)

    def state(self, owner: str) -> list[dict[str, Any]]:
        """Return what a page shows of the newest plots, newest first."""
        with self._lock:
            mine = [plot for plot in self._plots.values() if owner and plot.owner == owner]
        return [facts_of(plot) for plot in reversed(mine[-SHOWN:])]

    def _keep(self, plot: Plot) -> None:
        with self._lock:
            self._store.save(plot)
            self._plots[plot.id] = plot

    def _follow(self) -> None:
        with self._dispatcher.listening(self._wake.set):
            while not self._closing:
                self._wake.wait()
                self._wake.clear()
                try:
                    if self._look():
                        self._dispatcher.announce()
                except Exception:  # a process boundary: the thread that follows must live
                    logger.exception("plots")
                time.sleep(PAUSE)

    def _look(self) -> bool:
        """Take over what became of the jobs, join what is complete; return whether anything changed."""
        changed = False
        for plot in list(self._plots.values()):
            if plot.state == RUNNING:
                changed |= self._update(plot.id)
            current = self._plots[plot.id]
            if current.state == "joining" and not self._closing:
                self._dispatcher.announce()
                self._keep(self._join(current))
                changed = True
        return changed

    def _update(self, plot_id: str) -> bool:
        with self._lock:
            plot = self._plots[plot_id]
            outcomes = self._dispatcher.jobs.outcomes([cell.job for cell in plot.cells if cell.open])
            cells = tuple(after(cell, outcomes.get(cell.job)) if cell.open else cell for cell in plot.cells)
            if cells == plot.cells:
                return False
            self._keep(plot.model_copy(update={"cells": cells}))
            return True

    def _join(self, plot: Plot) -> Plot:
        """Draw the grid and commit it; a cell whose picture is gone can be made again by `resume`."""
        cells, paths = list(plot.cells), []
        for number, cell in enumerate(cells):
            try:
                paths.append(self._gallery.path(cell.image))
            except StudioError:
                cells[number] = PlotCell(job=cell.job, state=CANCELLED, error="its picture was deleted")
        if len(paths) < len(cells):
            return plot.model_copy(update={"cells": tuple(cells)})
        now = utc_now()
        record = GridRecord(
            id=new_image_id(now),
            created=now.isoformat(timespec="milliseconds"),
            spec=plot.spec,
            cells=tuple(cell.image for cell in cells),
        )
        try:
            png = io.BytesIO()
            draw_grid(paths, axis_labels(plot.spec)).save(png, "PNG", compress_level=1)
            self._gallery.commit(png.getvalue(), record, plot.owner)
        except (OSError, StudioError, MemoryError) as error:
            logger.exception("the grid of plot %s", plot.id)
            return plot.model_copy(update={"error": f"the grid could not be made: {error or 'not enough memory'}"})
        return plot.model_copy(update={"grid": record.id})


def after(cell: PlotCell, outcome: tuple[str, tuple[str, ...], str] | None) -> PlotCell:
    """Return a cell after its job's outcome; a job without a picture, or that the journal lost, was cancelled."""
    if outcome is None:
        return cell.model_copy(update={"state": CANCELLED, "error": "its job was lost"})
    state, images, error = outcome
    if images and state not in (WAITING, RUNNING):
        return cell.model_copy(update={"state": DONE, "image": images[0], "error": ""})
    return cell.model_copy(update={"state": CANCELLED if state == DONE else state, "error": error})


def facts_of(plot: Plot) -> dict[str, Any]:
    """Return what a page shows of a plot."""
    error = plot.error or next((cell.error for cell in plot.cells if cell.error), "")
    axes = " · ".join(f"{name.upper()} {label_of(axis.field)}" for name, axis in plot.spec.axes)
    return {
        "id": plot.id,
        "state": plot.state,
        "done": plot.done,
        "total": len(plot.cells),
        "grid": plot.grid,
        "error": error,
        "title": axes,
        "prompt": plot.spec.base.prompt,
        "cells": [cell.image for cell in plot.cells if cell.image],
    }
