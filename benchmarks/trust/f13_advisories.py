"""Known advisories about what the lock file installs, as pip-audit reads them; where it is not there, or not served, it is not run."""

import json
import subprocess
import sys
from typing import Any

from benchmarks.trust.figure import Figure, Tally
from studio.settings import ROOT

GOAL = "0 advisories"
MUTANT = {"dependencies": [{"name": "pillow", "version": "9.0", "vulns": [{"id": "CVE-2023-50447"}]}]}


def audit() -> dict[str, Any] | str:
    """Return pip-audit's report, or why there is none."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "requirements.lock"), "--no-deps", "-f", "json"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return "it took more than five minutes"
    except ValueError:
        return (answer.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]


def run(full: bool, mutant: bool = False) -> Figure:
    """Ask pip-audit; the mutant is a report with a hole."""
    tally, report = Tally(), MUTANT if mutant else audit()
    if isinstance(report, str):
        return tally.figure("F13", __doc__ or "", GOAL, not_run=report)
    for one in report["dependencies"]:
        with tally.case(f"{one['name']} {one.get('version', '')}"):
            assert not one.get("vulns"), ", ".join(found["id"] for found in one["vulns"])
    return tally.figure("F13", __doc__ or "", GOAL)
