"""Takes a picture of the top of an HTML page with Chromium, as the one in the README was taken.

python tools/page_picture.py loop/report.html docs/report.png [--width 1100] [--height 1000]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100, help="in pixels")
    parser.add_argument("--height", type=int, default=1000, help="in pixels")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium: not found; install it (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        size = f"--window-size={arguments.width},{arguments.height}"
        picture = f"--screenshot={arguments.picture.resolve()}"
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", size, picture]
        subprocess.run([*command, arguments.page.resolve().as_uri()], check=True)


if __name__ == "__main__":
    main()
