"""Runs a script as two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def in_two_processes(module: str, folder: Path, *arguments: str) -> None:
    """Run `python -m module` twice in a folder, with LOCAL_RANK and MASTER_PORT in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    package = Path(__file__).parent.parent
    paths = os.pathsep.join([str(package), str(package.parent)])
    own = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}  # of an earlier command line
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LOCAL_RANK": rank, "MASTER_PORT": port},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"errors-{rank}").open("w"),
        )
        for rank in ("0", "1")
    ]
    try:
        statuses = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert statuses == [0, 0], "\n".join((folder / f"errors-{rank}").read_text()[-3000:] for rank in "01")
