"""X/Y/Z plots that were started: one JSON file each in the data root, so that a restart finds them."""

import logging
from pathlib import Path

from pydantic import ValidationError

from studio.errors import StorageError, StudioError
from studio.fields import Frozen
from studio.plots import PlotSpec
from studio.store import writer
from studio.store.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING

logger = logging.getLogger(__name__)

KEPT = 100  # plots whose files stay; their pictures are the gallery's


class PlotCell(Frozen):
    """One cell: the job that makes it, how far that is, and the picture once it is there."""

    job: str
    state: str = WAITING
    image: str = ""
    error: str = ""

    @property
    def open(self) -> bool:
        """Whether its job has still to end."""
        return self.state in (WAITING, RUNNING)


class Plot(Frozen):
    """A plot and what became of it. `cells` are numbered as `plots.cells_of` does; `grid` is the finished picture's id."""

    id: str
    owner: str
    created: str
    spec: PlotSpec
    cells: tuple[PlotCell, ...]
    grid: str = ""
    error: str = ""

    @property
    def done(self) -> int:
        """How many cells have their picture."""
        return sum(cell.state == DONE for cell in self.cells)

    @property
    def state(self) -> str:
        """Return `done`, `running`, `joining` (all cells are there), `failed` or `stopped`."""
        if self.grid:
            return DONE
        if any(cell.open for cell in self.cells):
            return RUNNING
        if self.error or any(cell.state == FAILED for cell in self.cells):
            return FAILED
        return "stopped" if any(cell.state == CANCELLED for cell in self.cells) else "joining"


class PlotStore:
    """The files of `plots/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, plot: Plot) -> None:
        """Write a plot; it is on disk when this returns.

        Raises:
            StorageError: if it is not.
        """
        try:
            writer.write_file(self.folder / f"{plot.id}.json", plot.model_dump_json(indent=1).encode())
        except OSError as error:
            raise StorageError(f"the plot could not be saved: {error.strerror or error}") from error

    def load(self) -> dict[str, Plot]:
        """Read all plots, oldest first; files that cannot be read are left alone, the oldest beyond `KEPT` are removed."""
        plots = []
        for path in self.folder.glob("*.json"):
            try:
                plots.append(Plot.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError, StudioError) as error:
                logger.warning("%s cannot be read and is left out: %s", path.name, error)
        plots.sort(key=lambda plot: plot.created)
        for plot in plots[:-KEPT]:
            (self.folder / f"{plot.id}.json").unlink(missing_ok=True)
        return {plot.id: plot for plot in plots[-KEPT:]}
