"""``python3 gpu-check.pyz [FLAGS]``: the check from one file, with the wheels that lie beside it. The archive's main.

It unpacks itself into a folder of its own, which is gone afterwards, and is the check from then on: one process, which
whoever started it can interrupt. The report comes to ``./gpu-check`` unless --out names another folder. Standard
library only.
"""

import os
import signal
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  (an image may have an older one)
        print(f"gpu-check: needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # until the check has its own: the folder goes
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda came, _: sys.exit(128 + came))
    archive = Path(sys.argv[0]).resolve()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *before])  # the parts': a `tests` elsewhere is not ours
        sys.path.insert(0, folder)
        from tests.gpu.check.command import main as check

        return check(archive.name, Path("gpu-check"), archive.parent)


if __name__ == "__main__":
    sys.exit(main())
