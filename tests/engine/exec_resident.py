"""``python -m tests.engine.exec_resident``: the resident on the CPU with workers that are started by exec, as on a GPU.

They attach to weights and KV pool by descriptor where a GPU has IPC handles; all the rest is what runs there.
SEMIPD_WRONG_CHECKSUM makes the resident export a checksum that no worker will find.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import msgspec

from semipd_engine.contract import EngineOptions
from semipd_engine.resident import loading, resident
from semipd_engine.resident.loaded_model import Attachment


class ExecModel(loading.LoadedTorchModel):
    def attachment(self) -> Attachment | None:
        found = super().attachment()
        if found is not None and os.environ.get("SEMIPD_WRONG_CHECKSUM"):
            return Attachment(msgspec.structs.replace(found.message, checksum=1), found.fds)
        return found


def load(options: EngineOptions, progress: Callable[[int], None]) -> loading.LoadedTorchModel:
    model = loading.load(options, progress, exported=True)
    model.__class__ = ExecModel
    return model


if __name__ == "__main__":
    sys.exit(resident.run(EngineOptions.parse(None, "exec_resident", ""), load))
