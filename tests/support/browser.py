"""Pages in a headless Chromium: the content of a page after its scripts have run, and their errors."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# runs before all other scripts, and again when the page is complete
PROBE = """
<script>
const problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message)));
window.addEventListener("securitypolicyviolation", (event) => problems.push("blocked: " + event.blockedURI));
window.addEventListener("load", () => setTimeout(() => {
  let found;
  try { found = (PROBED)(); } catch (error) { problems.push(String(error)); }
  const place = document.createElement("pre");
  place.id = "probe";
  place.textContent = JSON.stringify({found, problems});
  document.body.append(place);
}, 0));
</script>
"""


def chromium() -> str:
    """The path of Chromium. Skips the test where it is not installed."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    return path


def probe(page: Path, script: str, *flags: str) -> Any:
    """The value that a function returns inside a page.

    Args:
        page: an HTML file.
        script: a JavaScript function without arguments that returns JSON.
        flags: flags of Chromium.

    Raises:
        AssertionError: a script failed, the console has an error, or the page asked for something from outside.
    """
    text = page.read_text(encoding="utf8")
    copy = page.with_name(f"probed_{page.name}")
    copy.write_text(text.replace("<head>", "<head>" + PROBE.replace("PROBED", script), 1), encoding="utf8")
    profile = page.with_name("chromium_profile")
    ended = subprocess.run(
        [
            *(chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--window-size=1200,1000"),
            *(*flags, "--dump-dom", copy.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(profile, ignore_errors=True)
    complaints = [line for line in ended.stderr.splitlines() if ":CONSOLE" in line]
    assert complaints == []
    match = re.search(r'<pre id="probe">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert match, f"no answer from the page: {ended.stderr[-2000:]}"
    answer = json.loads(html.unescape(match[1]))
    assert answer["problems"] == []
    return answer["found"]
