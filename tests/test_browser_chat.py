"The chat widget in a real JupyterLab with a real browser: send, stream, stop, send again."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")

CELL = """
import time, torch
torch.set_num_threads(1)
from nanochat.chat import Chat
from nanochat.gpt import GPT, config_for
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import ChatWidget

tokenizer = Tokenizer.train(["What is the colour of the box? It is red. "] * 3, 290)
model = GPT(config_for(1, tokenizer.vocab_size, 256, head_dim=64))     # untrained: every token is equally likely
chat = Chat(model, tokenizer, max_new_tokens=120, temperature=1.0, top_k=0, seed=3)

def slowly(history):
    for piece in chat.reply(history):
        time.sleep(0.05)
        yield piece

ChatWidget(slowly, examples=["Who are you?"])
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, seconds=120):
    "Until the server answers; fails when it dies or takes too long."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "jupyter lab ended"
        try: return urllib.request.urlopen(url, timeout=2).read()
        except (urllib.error.URLError, OSError): time.sleep(0.3)
    raise AssertionError("jupyter lab did not start")


@pytest.fixture
def lab(tmp_path):
    "The address of a notebook with one chat cell in a JupyterLab of its own."
    cell = nbformat.v4.new_code_cell(CELL)
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    (tmp_path / "books").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "books" / "chat.ipynb")
    settings = tmp_path / "config" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    env = os.environ | {k: str(tmp_path / v) for k, v in folders.items()} | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={tmp_path / 'books'}"]
    with open(tmp_path / "lab.log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", process)
        yield f"http://127.0.0.1:{port}/lab/tree/chat.ipynb"
    finally:
        process.terminate()
        try: process.wait(60)
        except subprocess.TimeoutExpired: process.kill()


@pytest.fixture
def page(tmp_path):
    "A page of a fresh browser; it remembers errors of scripts and requests that leave this machine."
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        page.failures = []
        page.on("pageerror", lambda e: page.failures.append(str(e)))
        page.on("request", lambda r: r.url.startswith(("http://127.0.0.1", "data:", "blob:", "ws://127.0.0.1"))
                or page.failures.append(r.url))
        yield page
        browser.close()


def log_text(page): return page.locator(".widget-html-content").first.inner_text()


def status(page): return page.locator(".widget-label").last.inner_text()


def until(condition, seconds=120):
    "Wait until a condition holds and return its value."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_send_stream_stop_send(lab, page):
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook", timeout=120_000)
    choose = page.get_by_role("button", name="Select", exact=True)               # Lab sometimes asks which kernel
    until(lambda: choose.is_visible() or page.get_by_text("| Idle").is_visible())
    if choose.is_visible(): choose.click()
    until(lambda: page.get_by_text("| Idle").is_visible())
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    box = page.locator(".widget-text input")
    box.wait_for(timeout=180_000)
    send, stop = page.get_by_role("button", name="Send"), page.get_by_role("button", name="Stop")

    box.fill("<script>document.title='broken'</script> What is it?")
    box.press("Enter")
    lengths = set()
    until(lambda: lengths.add(len(log_text(page))) or len(lengths) > 4)          # the reply grows while we look
    assert stop.is_enabled() and send.is_disabled() and "thinking" in status(page)
    assert "user: <script>" in log_text(page) and page.title() != "broken"       # shown as text, not run
    assert "assistant:" in log_text(page) and "<|" not in log_text(page)

    stop.click()
    until(lambda: "stopped" in status(page))
    length = len(log_text(page))
    assert send.is_enabled() and stop.is_disabled()
    time.sleep(0.5)
    assert len(log_text(page)) == length                                         # it really stopped

    page.get_by_role("button", name="Who are you?").click()
    until(lambda: "done" in status(page))
    text = log_text(page)
    assert text.count("user:") == 2 and text.count("assistant:") == 2
    assert page.failures == []
