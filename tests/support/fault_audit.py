"""For programs under test: serve as the command line does, and say at the end what was left open."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys

from deimos_async import Deimos
from deimos_async.cli.loading import configure_logging, reporting
from deimos_async.cli.run import run_loop, serve


def open_sockets() -> list[str]:
    """Connections and listeners of the internet families that this process has."""
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    found.append(f"{copy.getsockname()}")
        except OSError:
            continue  # the descriptor by which the folder was read
    return found


async def audited(app: Deimos, only: tuple[str, ...] | None = None) -> int:
    """Serve until a signal, then say what is left."""
    status = await serve(app, only)
    for _ in range(10):
        await asyncio.sleep(0)  # transports that were closed give up their sockets in the loop's next rounds
    tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    left = {"tasks": sorted(tasks), "sockets": open_sockets()}
    os.write(1, f"= {json.dumps(left)}\n".encode())
    return status


def run_audited(app: Deimos, only: tuple[str, ...] | None = None) -> None:
    """The program's main part; it ends the program."""
    configure_logging("info", messages=False)
    with reporting():
        sys.exit(run_loop("asyncio", lambda: audited(app, only)))
