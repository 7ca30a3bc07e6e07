"""Ratios against named baselines: `python -m benchmarks NAME [--runs N] …` prints one JSON line; exit code 1: a goal was missed."""

import argparse
import importlib
import json
import signal
import sys

from benchmarks import measure

BENCHMARKS = {
    "coldstart": "benchmarks.coldstart",
    "txt2img": "benchmarks.txt2img",
    "overhead": "benchmarks.overhead",
    "gallery": "benchmarks.gallery",
    "control": "benchmarks.control",
    "adapters": "benchmarks.adapters",
    "train": "benchmarks.train",
    "merging": "benchmarks.merging",
    "switches": "benchmarks.switches",
    "sharing": "benchmarks.sharing",
    "trust": "benchmarks.trust.board",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark; return the exit code: 0 goals reached, 1 missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in BENCHMARKS:
        print(f"usage: python -m benchmarks NAME [options], NAME one of: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    name = arguments[0]
    module = importlib.import_module(BENCHMARKS[name])
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_flags(parser)
    flags = parser.parse_args(arguments[1:])
    if flags.runs < 1:
        parser.error(f"--runs={flags.runs} must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever ends us ends our processes too
    machine = measure.machine()
    result = {"benchmark": name} | module.run(flags) | {"machine": machine}
    if warning := measure.load_warning(machine):
        result["warning"] = warning
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
