"""The process that draws, with the same watch on its sockets as the app's."""

import sys

from benchmarks.trust.launched import watch_sockets

if __name__ == "__main__":
    watch_sockets()
    from studio.executors.worker_main import main

    sys.exit(main())
