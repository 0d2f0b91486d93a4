"""The workshop: faults of the disk, absent devices, progress in a log and on a terminal, figures, the chat widget."""
import base64
import errno
import io
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from html.parser import HTMLParser

import matplotlib
import pytest
import torch

matplotlib.use("agg")
from nanochat import workshop as w


def test_import_writes_nothing_and_loads_no_heavy_library(tmp_path):
    code = ("import sys, nanochat.workshop; "
            "print([m for m in ('matplotlib', 'ipywidgets', 'IPython') if m in sys.modules])")
    env = {**os.environ, "NANOCHAT_HOME": str(tmp_path / "home")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == "[]" and not (tmp_path / "home").exists()


def test_home_and_tier_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    assert w.home() == tmp_path
    monkeypatch.setenv("NANOCHAT_HOME", "~/x")
    assert w.home().is_absolute() and w.home().name == "x"
    monkeypatch.delenv("NANOCHAT_HOME")
    assert w.home().parts[-2:] == (".cache", "nanochat")
    for value, expected in (("smoke", "s"), ("full", "f"), ("", "f")):
        monkeypatch.setenv("NANOCHAT_TIER", value)
        assert w.by_tier("s", "f") == expected


def test_a_stored_result_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert w.stored_result("scaling.json")["runs"]
    with pytest.raises(w.UserError, match="clone of the whole course"): w.stored_result("none.json")


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(monkeypatch, tmp_path, stage):
    path = w.atomic_write(tmp_path / "a.json", "old")
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device")
    if stage == "write":
        real = os.fdopen
        def broken(handle, mode):
            f = real(handle, mode)
            return type("Full", (), {"__enter__": lambda s: s, "__exit__": lambda s, *e: f.close(), "write": full})()
        monkeypatch.setattr(os, "fdopen", broken)
    else: monkeypatch.setattr(os, stage, full)
    with pytest.raises(w.UserError, match="disk is full.*NANOCHAT_HOME"): w.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(w.UserError, match="cannot write"): w.atomic_write(tmp_path / "file" / "a", "x")


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, stop, seen = w.atomic_write(tmp_path / "a", "A" * 50_000), threading.Event(), set()
    def read():
        while not stop.is_set(): seen.add(path.read_text())
    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40): w.atomic_write(path, "AB"[i % 2] * 50_000)
    stop.set()
    reader.join()
    assert seen <= {"A" * 50_000, "B" * 50_000} and len(seen) == 2


def test_ranks_and_print0(monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"): monkeypatch.delenv(name, raising=False)
    assert w.ranks() == (0, 0, 1)
    for name, value in (("RANK", "9"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "16")): monkeypatch.setenv(name, value)
    assert w.ranks() == (9, 1, 16)
    w.print0("only the first rank says this")
    assert capsys.readouterr().out == ""


def test_devices(monkeypatch):
    assert w.pick_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cpu0", "", "cpu:x", "cpu:1", "cpu:", "cuda:x", "cuda:-1", "mps:٠"):
        with pytest.raises(w.UserError): w.pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert w.pick_device() == torch.device("cpu")
    with pytest.raises(w.UserError, match="cuda"): w.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert w.pick_device() == torch.device("cuda:1") and w.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(w.UserError, match="cuda:2"): w.pick_device("cuda:2")
    with pytest.raises(w.UserError, match="cuda:-1"): w.pick_device("cuda:-1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)              # two processes on one GPU
    with pytest.raises(w.UserError, match="cuda:1"): w.pick_device()


def test_dtypes(monkeypatch):
    cpu = torch.device("cpu")
    assert w.pick_dtype(cpu, "bfloat16") == torch.bfloat16 and w.pick_dtype(cpu, "float32") == torch.float32
    with pytest.raises(w.UserError, match="float16"): w.pick_dtype(cpu, "float16")
    for fast, slow in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        monkeypatch.setattr(w, "_matmul_rate", lambda dtype, seconds: 2.0 if dtype == fast else 1.0)
        assert w.pick_dtype(cpu) == fast
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (7, 5))
    assert w.pick_dtype(torch.device("cuda")) == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (9, 0))
    assert w.pick_dtype(torch.device("cuda")) == torch.bfloat16


def test_compile_probe_fails_in_one_line_and_once(monkeypatch, capsys):
    w._compile_works.cache_clear()
    monkeypatch.delenv("NANOCHAT_COMPILE", raising=False)
    monkeypatch.setattr(w, "_COMPILE_PROBE", "raise SystemExit('no compiler: ' + {device!r})")
    assert [w.can_compile(), w.can_compile()] == [False, False]
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "g++" in out and "python3-dev" in out
    w._compile_works.cache_clear()
    monkeypatch.setattr(w, "_COMPILE_PROBE", "import time; time.sleep(60)  # {device!r}")
    assert w.can_compile(timeout=0.2) is False and "did not finish" in capsys.readouterr().out
    w._compile_works.cache_clear()
    monkeypatch.setattr(w, "_COMPILE_PROBE", "# {device!r}")
    assert w.can_compile() is True
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    assert w.can_compile() is False
    w._compile_works.cache_clear()


@pytest.mark.parametrize("total", [1, 7, 10, 99, 1000, 12_345])
def test_a_log_has_about_ten_lines(monkeypatch, capsys, total):
    monkeypatch.delenv("NANOCHAT_QUIET", raising=False)
    list(w.progress(range(total), label="work"))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 12 and f"{total:,}/{total:,}" in lines[-1]
    assert "\r" not in "".join(lines)


def test_a_log_without_a_total_stays_short(monkeypatch, capsys):
    monkeypatch.delenv("NANOCHAT_QUIET", raising=False)
    now = [0.0]
    monkeypatch.setattr(w.time, "perf_counter", lambda: now[0])
    with w.Progress(None, "stream") as bar:
        for _ in range(1000):
            now[0] += 1.0                      # a thousand seconds
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 14 and "1,000" in lines[-1]


def test_a_terminal_gets_one_line_that_changes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.delenv("NANOCHAT_QUIET", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with w.Progress(3, "x", every=0) as bar:
        for _ in range(3): bar.update(loss=0.5)
    text = sys.stderr.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and "loss 0.5" in text and text.startswith("\r")


def test_remaining_time_is_right(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(w.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    bar = w.Progress(10)
    now[0] += 60
    bar.update(4)                              # 15 s each, 6 to come
    assert "4/10  1:00  1:30 left" in bar.text()


def test_quiet_and_other_ranks_are_silent(monkeypatch, capsys):
    for name, value in (("NANOCHAT_QUIET", "1"), ("RANK", "1")):
        with monkeypatch.context() as m:
            m.delenv("NANOCHAT_QUIET", raising=False)
            m.setenv(name, value)
            assert list(w.progress(range(30))) == list(range(30))
            with w.Live(30) as live:
                for i in range(1, 31): live.step(i, 1.0)
    assert capsys.readouterr() == ("", "")


def test_progress_ends_its_line_when_the_loop_fails(monkeypatch, capsys):
    monkeypatch.delenv("NANOCHAT_QUIET", raising=False)
    with pytest.raises(ZeroDivisionError):
        for i in w.progress([1, 0], label="dividing"): 1 / i
    assert "dividing" in capsys.readouterr().err


def test_live_after_a_resume_counts_from_where_it_went_on(monkeypatch, capsys):
    monkeypatch.delenv("NANOCHAT_QUIET", raising=False)
    with w.Live(100, "run") as live:
        for i in range(91, 101): live.step(i, 2.0)
    assert "step 100/100" in capsys.readouterr().err.splitlines()[-1]
    with w.Live(10**6) as live:
        live.line.place = "quiet"
        for i in range(1, 20_001): live.step(i, 1 / i)
    assert len(live.xs) <= 4001 and live.xs[0] == 1 and live.xs == sorted(live.xs)


class Images(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        if tag == "img": self.found.append(dict(attrs))


def test_figures(monkeypatch):
    import matplotlib.pyplot as plt
    shown = []
    monkeypatch.setattr(w, "_show", shown.append)
    plt.close("all")
    for i in range(2):
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([1, 2])
        w.figure(fig, alt='a "line" <up>', caption="A line & more.")
    assert plt.get_fignums() == []
    numbers = [int(re.match(r"Figure (\d+): A line & more\.", b["text/plain"])[1]) for b in shown]
    assert numbers[1] == numbers[0] + 1 and 'a "line" <up>' in shown[0]["text/plain"]
    image, = Images(shown[0]["text/html"]).found
    assert image["alt"] == 'a "line" <up>' and "A line &amp; more." in shown[0]["text/html"]
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert png.startswith(b"\x89PNG") and len(png) < 50_000
    for words in ({}, {"alt": "  ", "caption": "c"}, {"alt": "a"}):
        with pytest.raises(ValueError): w.figure(plt.figure(), **words)


def test_live_chart_has_words(monkeypatch):
    live = w.Live(3, "run")
    live.line.place = "quiet"
    for i, loss in enumerate((3.0, 2.0, 1.5), 1): live.step(i, loss)
    live.text = "now"
    image, = Images(live._chart()).found
    assert image["alt"] == "Loss against step: 3.00 at step 1, 1.50 at step 3."


@pytest.fixture
def chat_class():
    pytest.importorskip("ipywidgets")
    return w.ChatWidget


def test_chat_passes_the_history_and_escapes(chat_class):
    seen = []
    def reply(history):
        seen.append([dict(m) for m in history])
        history[-1]["content"] = "spoiled"                      # its own copy, so this must not matter
        yield from ("<script>", "alert(1)", "</script>")
    chat = chat_class(reply, examples=["one", "two"])
    for text in ("<img src=x onerror=alert(1)>", "again"):
        chat.submit(text)
        chat.worker.join(5)
    assert [len(h) for h in seen] == [1, 3] and seen[1][1]["content"] == "<script>alert(1)</script>"
    assert chat.history[0]["content"].startswith("<img")
    assert "<script" not in chat.log.value and "<img" not in chat.log.value
    chat.examples[1].click()
    chat.worker.join(5)
    assert chat.history[4] == {"role": "user", "content": "two"}


def test_chat_refuses_nothing_and_a_second_message_at_once(chat_class):
    go = threading.Event()
    def reply(history):
        go.wait(5)
        yield "done"
    chat = chat_class(reply)
    chat.submit("   ")
    assert chat.history == [] and chat.worker is None
    chat.submit("first")
    chat.submit("second")
    assert chat.send.disabled and not chat.stop.disabled
    go.set()
    chat.worker.join(5)
    assert [m["content"] for m in chat.history] == ["first", "done"] and not chat.send.disabled


def test_chat_stops_and_survives_errors(chat_class):
    def for_ever(history):
        while True:
            yield "x"
            time.sleep(0.001)
    chat = chat_class(for_ever)
    chat.submit("go")
    while not chat.history[-1]["content"]: time.sleep(0.001)
    chat.stop.click()
    chat.worker.join(5)
    assert not chat.worker.is_alive() and chat.status.value.startswith("stopped")
    def broken(history):
        yield "I"
        raise RuntimeError("boom")
    chat.reply = broken
    chat.submit("again")
    chat.worker.join(5)
    assert chat.status.value == "failed: RuntimeError('boom')" and not chat.send.disabled
    assert chat.history[-1]["content"] == "I"


def test_enter_sends(chat_class):
    chat = chat_class(lambda history: iter(["ok"]))
    chat.box.value = "typed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat.box._handle_string_msg(None, {"event": "submit"}, [])
    chat.worker.join(5)
    assert chat.history[0]["content"] == "typed" and chat.box.value == ""


def test_seeds_repeat_every_generator():
    import random

    import numpy as np
    def draw(): return random.random(), np.random.rand(), torch.rand(2).tolist()
    w.seed_all(5)
    first = draw()
    w.seed_all(5)
    again = draw()
    w.seed_all(6)
    other = draw()
    assert first == again and all(a != b for a, b in zip(first, other))
    w.seed_all(-1)                                               # numpy alone would refuse it


def test_machine_names_itself():
    m = w.machine()
    assert set(m) == {"cpu", "cores", "ram_gb", "torch", "threads"} and m["cpu"] and m["cores"] >= 1
