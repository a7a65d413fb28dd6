"""report.html as a browser shows it: without a network, on a wide and on a narrow screen, by day and by night."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import QUICK, make_treebank, run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1280, 390

# A window of a browser without a screen is no narrower than 500 pixels; a frame is.
FRAME = """
<html><body style="margin: 0">
<script>addEventListener("message", event => { document.body.dataset.found = event.data; });</script>
<iframe src="PAGE" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
</body></html>
"""

# Whatever would leave the page is forbidden, and counted. What the page looks like is told to the frame around it.
PROBE = """
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<script>
const outside = [];
addEventListener("securitypolicyviolation", event => outside.push(event.blockedURI));
addEventListener("load", () => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => channels(color).slice(0, 3)
    .map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const scrolls = element => element.closest(".wide") !== null;
  const ink = image => {  // the share of its pixels that are neither white nor see-through
    if (!image.naturalWidth) return 0;
    const canvas = Object.assign(document.createElement("canvas"), {width: 400, height: 300});
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 400, 300);
    const {data} = context.getImageData(0, 0, 400, 300);
    let inked = 0;
    for (let i = 0; i < data.length; i += 4)
      inked += data[i + 3] > 0 && Math.min(data[i], data[i + 1], data[i + 2]) < 200;
    return inked / 120000;
  };
  const night = matchMedia("(prefers-color-scheme: dark)").matches;
  const ground = night ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)";  // Chromium's own, which the page asks for
  const lights = [light(getComputedStyle(document.body).color), light(ground)];
  parent.postMessage(JSON.stringify({
    outside, night,
    width: innerWidth, scrollWidth: document.documentElement.scrollWidth,
    beyond: [...document.querySelectorAll("body *")]
      .filter(e => !scrolls(e) && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName),
    pictures: [...document.images].map(i => ({
      natural: i.naturalWidth, shown: [i.clientWidth, i.clientHeight], ink: ink(i), alt: i.alt})),
    unscrollable: [...document.querySelectorAll(".wide")]
      .filter(e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX !== "auto").length,
    titles: [...document.querySelectorAll("h2")].map(e => e.innerText),
    text: document.body.innerText,
    contrast: (Math.max(...lights) + .05) / (Math.min(...lights) + .05),
  }), "*");
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no browser here: none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """report.html of a run and of a comparison, in a folder of a long name."""
    folder = tmp_path_factory.mktemp("a_folder_whose_name_has_no_place_to_break_it_" * 3)
    data = ["--data", make_treebank(folder), *QUICK]
    run("train", *data, "--aux", "xpos,feats.Number", "--out", str(folder / "run"))
    run(
        "compare",
        *data,
        "--aux",
        "xpos",
        "--strategies",
        "stl,mtl,switch",
        "--seeds",
        "2",
        "--out",
        str(folder / "both"),
    )
    return {name: folder / name / "report.html" for name in ("run", "both")}


def shown(browser: str, page: Path, width: int, *options: str) -> dict[str, Any]:
    """What a browser without a network makes of a page."""
    probed = page.with_name(f"probed-{width}-{len(options)}.html")
    probed.write_text(page.read_text("utf-8").replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    frame = probed.with_name(f"frame-of-{probed.name}")
    frame.write_text(FRAME.replace("PAGE", probed.name).replace("WIDTH", str(width)), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--window-size={WIDE},900", f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=5000",
        *options, "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(html.unescape(found[1]))
    return answer


@pytest.mark.parametrize("name", ["run", "both"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_page_is_whole_on_every_screen(browser: str, pages: dict[str, Path], name: str, width: int) -> None:
    found = shown(browser, pages[name], width)
    assert found["outside"] == []
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["beyond"] == []
    assert found["unscrollable"] == 0
    assert len(found["pictures"]) == 2
    for picture in found["pictures"]:
        assert picture["natural"] > 0
        assert picture["alt"]
        assert min(picture["shown"]) > 150
        assert picture["shown"][0] >= 500  # or its letters cannot be read
        assert picture["ink"] > 0.01


def test_what_is_told(browser: str, pages: dict[str, Path]) -> None:
    of_run, of_both = (shown(browser, pages[name], WIDE) for name in ("run", "both"))
    for title in ("Curves", "Tasks", "Phases, and how their steps were taken", "What was read", "Options"):
        assert title in of_run["titles"]
    for words in (
        "upos on the test rows, by class",
        "precision",
        "feats.Number",
        "one kernel call",
        "xpos, feats.Number",
    ):
        assert words in of_run["text"], words
    for words in ("stl", "mtl", "switch", "To the target", "time to target vs stl"):
        assert words in of_both["text"], words
    for found in (of_run, of_both):
        assert not re.search(r"\bNone\b|\{\}|\bnan\b|\('", found["text"])  # what only Python calls so


@pytest.mark.parametrize("name", ["run", "both"])
def test_letters_stand_out_by_night(browser: str, pages: dict[str, Path], name: str) -> None:
    found = shown(browser, pages[name], NARROW, "--blink-settings=preferredColorScheme=0")
    assert found["night"]
    assert found["contrast"] > 7


def test_the_probe_finds_what_is_wrong(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(
        "<html><head></head><body><img alt='' src='https://example.org/x.png'><p style='width: 2000px'>x</p>"
        "<div class=wide style='overflow: hidden; width: 50px'><p style='width: 99px'>y</p></div></body></html>"
    )
    found = shown(browser, page, NARROW)
    assert found["outside"] == ["https://example.org/x.png"]
    assert found["scrollWidth"] >= 2000
    assert found["beyond"] == ["P"]
    assert found["unscrollable"] == 1
    assert found["pictures"][0]["natural"] == 0
