"""The scoreboard: kills, faults, hostile input, load, isolation, offline, upgrades; counts (survived of tried), never only "pass".

`--only F1,F5` runs some families, `--full` the nightly sizes, `--mutants` the same harness against products that are broken on purpose,
where every family must be red. `--out FILE.json` keeps the result, with a Markdown table beside it.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.trust.figure import Figure, families, run_family
from studio.settings import ROOT
from studio.store import writer

GOALS = {"families_that_passed": ("==", 1.0)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--only", default="", help="ids between commas, such as F1,F5; default: all")
    parser.add_argument("--full", action="store_true", help="nightly sizes instead of minutes")
    parser.add_argument("--mutants", action="store_true", help="products broken on purpose: every family must be red")
    parser.add_argument("--out", type=Path, help="a .json file; the Markdown table lies beside it")
    parser.set_defaults(runs=1)


def chosen(only: str) -> dict[str, str]:
    """Return id -> module of the families that were asked for.

    Raises:
        ValueError: if there is no such family.
    """
    known = families()
    wanted = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    by_lower = {name.lower(): name for name in known}
    unknown = [name for name in wanted if name.lower() not in by_lower]
    if unknown:
        raise ValueError(f"--only={','.join(unknown)} is no family; there are: {', '.join(known)}")
    return {by_lower[name.lower()]: known[by_lower[name.lower()]] for name in wanted}


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the families one after the other; one that breaks is red and the next is run."""
    try:
        wanted = chosen(flags.only)
    except ValueError as error:
        sys.exit(f"python -m benchmarks trust: {error}")
    figures: list[Figure] = []
    for identity, module in wanted.items():
        print(f"{identity} …", file=sys.stderr, flush=True)
        figures.append(figure_of(identity, module, full=flags.full, mutant=flags.mutants))
        print(line_of(figures[-1]), file=sys.stderr, flush=True)
        if flags.out:
            keep(flags.out, report(figures, full=flags.full, mutants=flags.mutants))
    return report(figures, full=flags.full, mutants=flags.mutants)


def figure_of(identity: str, module: str, *, full: bool, mutant: bool) -> Figure:
    """Return a family's figure; an error of the harness is a red figure that says so."""
    began = time.monotonic()
    try:
        return run_family(importlib.import_module(module).run, full=full, mutant=mutant)
    except Exception as error:  # the families are the jobs of this loop: one that breaks must not hide the others
        told = {"error": f"{type(error).__name__}: {error}"[:2000], "broken": True}
        return Figure(identity, module, 0, 0, told, round(time.monotonic() - began, 1), "the harness runs", False)


def report(figures: list[Figure], *, full: bool, mutants: bool) -> dict[str, Any]:
    """Return the result: the figures, and on what they were made."""
    good = (
        [not one.passed and "broken" not in one.details for one in figures]
        if mutants
        else [one.passed or "not_run" in one.details for one in figures]
    )
    return {
        "version": tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "size": "full" if full else "minutes",
        "mutants": mutants,
        "machine": measure.machine(),
        "figures": [one.row() for one in figures],
        "ok": all(good),
    }


def commit() -> str:
    """Return the commit that was measured, with a + if files differ from it; "" outside of a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def line_of(figure: Figure) -> str:
    """Return a figure in one line."""
    verdict = "not run" if "not_run" in figure.details else "passed" if figure.passed else "RED"
    return f"{figure.id} {figure.survived}/{figure.tried} {verdict} in {figure.seconds:.0f} s: {figure.name}"


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON file and the table beside it."""
    writer.write_json(path.resolve(), result)
    writer.write_file(path.resolve().with_suffix(".md"), table(result).encode())


def table(result: dict[str, Any]) -> str:
    """Return the scoreboard as Markdown."""
    facts = result["machine"]
    title = "Scoreboard of the mutants (every row must be red)" if result["mutants"] else "Scoreboard"
    lines = [
        f"# {title}",
        "",
        f"Studio {result['version']}, commit {result['commit'] or 'unknown'}, {result['date']}, size: {result['size']}; "
        f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}, torch {facts['torch']}, "
        f"load {facts['load']}.",
        "",
        "| id | what was tried | survived / tried | goal | | seconds | details |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["figures"]:
        details = plain(json.dumps(row["details"], ensure_ascii=False))
        verdict = "not run" if "not_run" in row["details"] else "passed" if row["passed"] else "**red**"
        lines.append(
            f"| {row['id']} | {plain(row['name'])} | {row['survived']} / {row['tried']} | {plain(row['goal'])} | {verdict} "
            f"| {row['seconds']:.0f} | {details[:600]} |"
        )
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Return a text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
