"""`python -m benchmarks.trust` is `python -m benchmarks trust`."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["trust", *sys.argv[1:]]))
