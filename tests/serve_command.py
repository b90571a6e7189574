"""What the console script `cjm-worker-serve` does."""

import sys

from cjm_worker_ext.commands.terminal import serve

if __name__ == "__main__":
    sys.exit(serve())
