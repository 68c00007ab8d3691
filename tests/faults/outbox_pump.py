"""The program under test: sends an outbox as `python -m deimos_async outbox` does, and says what it left open."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
from fault_audit import run_audited
from outbox_app import app

if __name__ == "__main__":
    run_audited(app, ("outbox",))
