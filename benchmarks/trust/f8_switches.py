"""Models and LoRA are switched: the base's weights are afterwards what they were, and no memory stays behind."""

import argparse
import tempfile
from pathlib import Path
from unittest.mock import patch

from benchmarks import switches
from benchmarks.trust.drawing import Drawing
from benchmarks.trust.f6_recovery import DRAW, left_on
from benchmarks.trust.figure import Figure, Tally

SLOPE_MAX = 0.5  # MB a switch


def run(full: bool, mutant: bool = False, times: int = 0) -> Figure:
    """Switch 200 times, or 30; the mutant leaves a little of each LoRA in the model."""
    tally = Tally()
    number = times or (200 if full else 30)
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        drawing = Drawing(Path(folder))
        plain = drawing.draw(num_inference_steps=1)
        before = drawing.weights()
        with patch.object(Drawing, "draw", left_on if mutant else DRAW):
            for nth in range(number):
                with tally.case(f"switch {nth}"):
                    drawing.draw(num_inference_steps=1, loras=[{"name": "red-to-blue", "weight": 0.1 * (nth % 10 + 1)}])
                    assert drawing.weights() == before, "the model is not what it was"
        if not mutant:
            assert drawing.draw(num_inference_steps=1) == plain
    if mutant or times:
        return tally.figure("F8", __doc__ or "", "every switch")
    slope = switches.run(argparse.Namespace(runs=number))["ratio"]
    goal = f"every switch; at most {SLOPE_MAX} MB a switch"
    return tally.figure("F8", __doc__ or "", goal, passed=slope <= SLOPE_MAX, mb_a_switch=slope)
