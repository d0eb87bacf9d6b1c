"""The story of the moving shapes from end to end, with a few steps of everything: that every command does its part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_the_story_can_be_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demos.shapes.story", str(tmp_path / "story"), "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folder = tmp_path / "story"
    results = json.loads((folder / "results.json").read_text())
    assert (results["videos"]["count"], results["held_out"]["count"], results["continued"]["count"]) == (20, 4, 7)
    assert 0 < results["psnr"] < 24
    assert results["good"] is False, "a few steps teach nothing; a judge who is content sees nothing"
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width > 600 and sheet.height > 1000
    # Told again, everything is there: nothing is trained a second time.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "$ ostrain" not in again.stdout
