"""`python -m trainers.kohya LORA.safetensors OUT.safetensors`: a LoRA of ours in the keys of kohya's tools and A1111."""

import argparse
import sys
from pathlib import Path

from studio.errors import InvalidRequest, StudioError
from studio.store import writer
from studio.store.kohya_export import kohya_file


def main(arguments: list[str] | None = None) -> int:
    """Export; return the exit code: 0 done, 1 failed, 2 invalid."""
    parser = argparse.ArgumentParser(prog="python -m trainers.kohya", description=__doc__)
    parser.add_argument("lora", type=Path, help="what a run of lora or dreambooth made")
    parser.add_argument("out", type=Path, help="new file that ends in .safetensors")
    flags = parser.parse_args(arguments)
    try:
        if flags.out.suffix != ".safetensors" or flags.out.exists():
            raise InvalidRequest("out", f"out={str(flags.out)!r} must be a new file that ends in .safetensors")
        writer.write_file(flags.out, b"".join(kohya_file(flags.lora).parts))
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(flags.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
