"""`python -m trainers METHOD --config FILE --run-dir DIR`: train a model.

Ctrl+C, SIGTERM or `{"number": 1, "command": "stop"}` in DIR/control.json finish the step and save; `--resume` goes on from there.
"""

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from studio.errors import InvalidRequest, StudioError
from studio.settings import read_settings
from trainers.config_files import read_config
from trainers.methods import METHODS

DONE, FAILED, INVALID, INTERRUPTED = 0, 1, 2, 130


class Stopping:
    """Hears SIGINT and SIGTERM; a run looks between two steps."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers", description=__doc__)
    methods = parser.add_subparsers(dest="method", required=True)
    for name, (config_class, _) in METHODS.items():
        told = {field: info for field, info in config_class.model_fields.items() if field not in config_class.idle}
        fields = "\n".join(f"  {field}: {info.description}" for field, info in told.items())
        method = methods.add_parser(
            name, epilog=f"fields:\n{fields}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        method.add_argument("--config", type=Path, required=True, help="YAML file: a mapping of fields to values")
        method.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="replace fields"
        )
        method.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
        method.add_argument("--resume", action="store_true", help="go on with the run in that folder")
        method.add_argument(
            "--estimate", action="store_true", help="say how long it takes and how much memory, and end"
        )
        method.add_argument("--data-dir", type=Path, help="data root (default ./data)")
        method.add_argument("--extra-models", type=Path, action="append", metavar="DIR")
        method.add_argument("--device", help="cpu, cuda, cuda:1, mps or auto (default)")
        method.add_argument("--cpu-threads", type=int)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train; return the exit code: 0 done or stopped, 1 failed, 2 invalid, 130 interrupted."""
    flags = parse_flags(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stopping = Stopping()
    given = {"data_dir": flags.data_dir, "device": flags.device, "cpu_threads": flags.cpu_threads}
    given["extra_models"] = tuple(flags.extra_models) if flags.extra_models else None
    try:
        settings = read_settings(given, dict(os.environ))
        config = read_config(METHODS[flags.method][0], flags.config, flags.set)
        from trainers.session import Session  # torch is imported only for a config that is sound

        session = Session(flags.method, config, settings, flags.run_dir, lambda: stopping.signal != 0)
        answer = session.estimate() if flags.estimate else session.run(resume=flags.resume)
    except InvalidRequest as error:
        print(error, file=sys.stderr)
        return INVALID
    except StudioError as error:
        print(error, file=sys.stderr)
        return FAILED
    if answer is not None:
        print(json.dumps(answer), flush=True)
    return INTERRUPTED if stopping.signal == signal.SIGINT else DONE


if __name__ == "__main__":
    sys.exit(main())
