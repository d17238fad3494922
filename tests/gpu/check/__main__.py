"""``python -m tests.gpu.check``: see `command`. An older Python than ours gets this far, and one line."""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  (an image may have an older one)
        sys.exit("gpu-check: needs Python 3.11 or newer, this is " + sys.version.split()[0])
    from tests.gpu.check.command import main

    sys.exit(main("python -m tests.gpu.check"))
