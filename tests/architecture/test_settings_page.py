"""docs/settings.md is what the settings say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import reference

from deimos_async.settings import setting_fields, variable_name


def test_page_is_up_to_date() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run python scripts/reference.py"


def test_page_has_a_row_for_every_setting() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", reference.page(), re.MULTILINE))
    settings = {".".join(path): variable_name(path) for path, _ in setting_fields()}
    del settings["clusters"]  # a mapping of groups: a section of its own
    assert rows == settings
    assert "\n## clusters\n" in reference.page()


def test_every_row_is_complete() -> None:
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 5
        assert all(cell.strip() for cell in cells), row


def test_check_fails_when_the_page_is_out_of_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "PAGE", tmp_path / "settings.md")
    assert reference.main(["--check"]) == 1
    assert "settings.md is not what the settings say" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    reference.PAGE.write_text("something else")
    assert reference.main(["--check"]) == 1
    assert reference.main(["--help"]) == 2
