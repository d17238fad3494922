"""``python3 gpu-check.pyz [FLAGS]``: the check from one file, with the wheels that lie beside it. The archive's main.

It unpacks itself into a folder of its own, which is gone afterwards. The report comes to ``./gpu-check`` unless --out
names another folder. Standard library only.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  (an image may have an older one)
        print(f"gpu-check: needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    archive = Path(sys.argv[0]).resolve()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *before])}
        flags = ["--wheels", str(archive.parent), "--out", "gpu-check", *sys.argv[1:]]
        # -P: a folder `tests` where we were called is not ours.
        return subprocess.call([sys.executable, "-P", "-m", "tests.gpu.check", *flags], env=environment)


if __name__ == "__main__":
    sys.exit(main())
