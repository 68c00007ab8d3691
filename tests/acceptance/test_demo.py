"""`make demo`: it shows something, adds up, ends by itself and by signals."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "shop" / "demo.py"
SUMMARY = re.compile(r"^orders ([\d,]+)  invoices ([\d,]+)  statistics ([\d,]+)  dead letters ([\d,]+)$", re.MULTILINE)


def summary(output: str) -> tuple[int, int, int, int]:
    found = SUMMARY.search(output)
    assert found, f"no summary in:\n{output}"
    orders, invoices, statistics, dead_letters = (int(number.replace(",", "")) for number in found.groups())
    return orders, invoices, statistics, dead_letters


async def test_demo_ends_by_itself_with_an_invoice_for_each_order(launch, tmp_path):
    demo = await launch(sys.executable, str(DEMO), folder=tmp_path)
    assert await demo.ends() == 0, demo.errors
    orders, invoices, statistics, dead_letters = summary(demo.output)
    assert orders == invoices == statistics > 1234
    assert dead_letters == 1
    assert demo.errors == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_the_endless_demo_after_everything_ordered_is_dealt_with(launch, tmp_path, number):
    demo = await launch(sys.executable, str(DEMO), "--forever", folder=tmp_path)
    await demo.says("orders/s")
    assert await demo.ends(number) == 0, demo.errors
    orders, invoices, statistics, _ = summary(demo.output)
    assert orders == invoices == statistics > 0


async def test_demo_whose_invoices_do_not_add_up_says_so_and_fails(launch, tmp_path):
    program = (
        "import sys, demo\n"
        "demo.DURATION = 0.2\n"
        "demo.events.handled['bill'] = 5\n"  # five invoices that nobody wrote
        "sys.exit(demo.main([]))\n"
    )
    demo = await launch(sys.executable, "-c", program, folder=tmp_path, environment={"PYTHONPATH": str(DEMO.parent)})
    assert await demo.ends() == 1
    assert "invoices written, expected" in demo.errors


async def test_terminal_gets_a_table_with_every_consumer(tmp_path):
    terminal, side = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(DEMO), "--forever", cwd=tmp_path, stdout=side, stderr=side
    )
    os.close(side)
    shown = ""
    try:
        async with asyncio.timeout(120):
            while not all(name in shown for name in ("billing", "statistics", "books", "shipping", "complaints")):
                shown += (await asyncio.to_thread(os.read, terminal, 65536)).decode()
            process.send_signal(signal.SIGINT)
            try:
                while text := await asyncio.to_thread(os.read, terminal, 65536):
                    shown += text.decode()
            except OSError:  # how Linux says that nobody holds the other side any more
                pass
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(terminal)
    orders, invoices, statistics, _ = summary(shown.replace("\r\n", "\n"))
    assert orders == invoices == statistics > 0
