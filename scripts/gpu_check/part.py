"""One part of the check, in a process of its own: ``python -m scripts.gpu_check.part NAME FOLDER --full``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flowprior.distributed import best_device
from flowprior.heap import keep_freed_memory
from scripts.gpu_check.parts import PARTS, REHEARSAL, Context
from scripts.gpu_check.runner import BEGUN, report_to


def main() -> None:
    name, folder, size = sys.argv[1:]
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    begun = json.loads((Path(folder) / BEGUN).read_text())
    (PARTS | REHEARSAL)[name].run(Context(device, size == "--tiny", Path(folder), report_to(Path(folder)), begun))


if __name__ == "__main__":
    main()
