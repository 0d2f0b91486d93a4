# %% [markdown]
# # 00a. The workshop
#
# Every craft has a bench with a few good tools on it. This lesson lays out ours, so that the later lessons can talk about
# language models and not about progress bars.
#
# After it you can
#
# * tell an error of the program from a mistake of its user, and report each in its own way;
# * write a file that is never half there, and say which three steps make it so;
# * choose a device and a number format by asking the machine instead of guessing;
# * show progress that reads well in a notebook, on a terminal and in a log;
# * put a chat window over any Python generator.
#
# You need Python and a first look at torch. Reading takes 25 minutes, doing 30, computing under 20 seconds.

# %% [markdown]
# ## A file with nothing in it
#
# Run this cell. It saves a number, as a training run saves its best loss, and the program dies at the worst moment.

# %%
#| default_exp workshop

# %%
import os, tempfile

path = os.path.join(tempfile.mkdtemp(), "loss.txt")
with open(path, "w") as f: f.write("best loss 1.25")
try:
    with open(path, "w") as f:                 # open for writing empties the file at once
        raise RuntimeError("power cut")
except RuntimeError: pass
print("left on the disk:", repr(open(path).read()))
os.unlink(path)

# %% [markdown]
# The old number is gone and the new one never came. Nobody made a coding error you would notice in a review. A course that
# trains for hours on your machine must not do this, so we will repair it here, once. First, the imports of this module.

# %%
#| export
import base64, contextlib, errno, html, io, itertools, json, os, platform, random, shutil, subprocess, sys
import tempfile, threading, time, warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from fastcore.basics import patch


# %% [markdown]
# ## Errors that a person can mend
#
# Two kinds of things go wrong. A bug is ours: you want the whole traceback. A misspelt file name is the user's: forty lines
# of traceback hide the one line that matters. So we give the second kind a class of its own. The command line, which you
# build in lesson 12, catches exactly this class, prints its one line and exits with status 2. Everything else stays loud.
#
# The rule for the text: name the thing, and name the way out.

# %%
#| export
class UserError(Exception):
    "A mistake the user can mend: one line that names the thing and the way out."


# %%
try: raise UserError("no recipe 'lapptop'; choose one of: smoke, laptop")
except UserError as e: print(e)


# %% [markdown]
# ## Where things live, and how large a lesson runs
#
# All that nanochat writes goes to one folder. You can move it with an environment variable, which is also how the tests keep
# away from your files. A second variable makes the lessons small: at the *smoke* tier a lesson that trains for minutes
# trains for seconds. We read both when they are asked for, not when the module is imported: importing should do nothing.

# %%
#| export
def home() -> Path:  # folder of runs and data; it may not exist yet
    "The folder that holds everything nanochat writes: `$NANOCHAT_HOME`, else `~/.cache/nanochat`."
    return Path(os.environ.get("NANOCHAT_HOME") or "~/.cache/nanochat").expanduser()

def tier() -> str:  # "smoke" or "full"
    "How large the lessons run: \"smoke\" when `$NANOCHAT_TIER` says so (tests do), else \"full\"."
    return "smoke" if os.environ.get("NANOCHAT_TIER") == "smoke" else "full"

def by_tier(smoke, full):
    "The first value at the smoke tier, the second otherwise."
    return smoke if tier() == "smoke" else full


# %%
print("files go to a folder named", home().name, "and this is the", tier(), "tier:", by_tier(60, 600), "steps")
assert by_tier(1, 2) == {"smoke": 1, "full": 2}[tier()]


# %% [markdown]
# Some experiments take an hour. They ran once, as scripts, and wrote what they found beside the package; a lesson shows that instead. It asks
# for the file by its name and not by a path from where it stands, since your own copy of a lesson stands elsewhere than ours.

# %%
#| export
def stored_result(
    name: str,  # a file in the course's benchmarks/results, "scaling.json"
) -> dict:      # what the script wrote
    "The result of a long experiment. `UserError` where the package stands without the course around it."
    course = Path(find_spec("nanochat").origin).resolve().parent.parent
    path = course / "benchmarks" / "results" / name
    if not path.is_file():
        raise UserError(f"{path} is not there; open the lesson in a clone of the whole course")
    return json.loads(path.read_text(encoding="utf-8"))


# %%
print("an experiment of lesson 03 stored", ", ".join(stored_result("scaling.json")))
try: stored_result("no_such.json")
except UserError as e: print("..." + str(e).split("results")[1])
else: raise AssertionError("this must be refused")


# %% [markdown]
# ## Files that are never half written
#
# Back to the lost number. The cure has three steps, and each guards against something else:
#
# 1. write to a *temporary file in the same folder*, so the old file stands while we work;
# 2. *flush it to the disk* (`fsync`), since the system otherwise keeps it in memory for a while;
# 3. *rename* it over the old one, which the file system does in one indivisible step.
#
# Same folder matters: a rename across two disks is a copy, and a copy can be cut off.

# %%
#| export
def atomic_write(
    path: Path | str,   # the file to write; its folder is made when missing
    data: bytes | str,  # text is stored as UTF-8
) -> Path:              # the path
    """Write a whole file or nothing: temporary file in the same folder, flush to disk, rename.

    `UserError` when the disk is full or the place cannot be written; the old file then stands."""
    path, temp = Path(path).resolve(), None               # through a link, to the file that it names
    data = data.encode("utf-8") if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temp, path.stat().st_mode & 0o777 if path.exists() else 0o644)      # it was made for us alone
        os.replace(temp, path)
    except OSError as e:
        raise disk_error(path, e) from e
    finally:
        if temp: Path(temp).unlink(missing_ok=True)      # after a good rename there is none
    return path

def disk_error(
    path: Path | str,  # what was being written
    error: OSError,    # what the system said
) -> UserError:        # to be raised by the caller
    "The clear line for a write that failed."
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; "
                     "free some space, or set NANOCHAT_HOME to another folder")


# %%
with tempfile.TemporaryDirectory() as folder:
    path = atomic_write(Path(folder) / "notes" / "a.txt", "naïve\n")
    print(path.read_bytes(), [p.name for p in path.parent.iterdir()])
    assert path.read_text(encoding="utf-8") == "naïve\n" and len(list(path.parent.iterdir())) == 1

# %% [markdown]
# Now the accident of the beginning again. Nothing can interrupt us between two lines of a test, so we break the last step
# on purpose: the rename fails as it would on a full disk.

# %%
from unittest import mock

with tempfile.TemporaryDirectory() as folder:
    path = atomic_write(Path(folder) / "loss.txt", "best loss 1.25")
    with mock.patch("os.replace", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        try: atomic_write(path, "best loss 1.10")
        except UserError as e: print(str(e).replace(folder, "FOLDER"))
    assert path.read_text() == "best loss 1.25" and len(os.listdir(folder)) == 1


# %% [markdown]
# The old number stands, no litter is left, and the message says what to do.
#
# ## The same numbers every time
#
# Three libraries draw random numbers here, and each has its own generator. Seed one and forget another, and two runs differ
# for no visible reason. One function seeds all three.

# %%
#| export
def seed_all(seed: int) -> None:
    "Seed the random numbers of Python, numpy and torch (every device)."
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# %%
def three_numbers():
    return random.random(), float(np.random.rand()), torch.rand(1).item()

seed_all(7)
first = three_numbers()
seed_all(7)
assert three_numbers() == first
print(first)


# %% [markdown]
# ## Who am I, among many processes?
#
# On a machine with eight GPUs, `torchrun` starts our program eight times. Each copy learns its place from three environment
# variables. Alone, you are rank 0 of 1, and nothing needs a special case.

# %%
#| export
def ranks() -> tuple[int, int, int]:  # (rank, local rank, world size); (0, 0, 1) when alone
    "This process's place among the processes that `torchrun` started, read from its environment."
    names = ("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)
    return tuple(int(os.environ.get(name, default)) for name, default in names)

def print0(*args, **kwargs) -> None:
    "`print`, but only on rank 0, so that eight processes do not say everything eight times."
    if ranks()[0] != 0: return
    try: print(*args, **kwargs)
    except BrokenPipeError: sys.stdout = open(os.devnull, "w")     # whoever read us has gone; the work goes on


# %%
rank, local_rank, world = ranks()
print0(f"rank {rank} of {world}")
assert 0 <= rank < world


# %% [markdown]
# ## Which device, which numbers
#
# The first question of everybody who tries such a project is: does it run on *my* machine? So the program asks the machine.
# It also refuses to guess: whoever asks for `cuda` and has none gets a sentence, not a slow run on the CPU.

# %%
#| export
def pick_device(
    name: str = "auto",  # "auto", "cpu", "cuda", "cuda:1" or "mps"
) -> torch.device:
    """The device to compute on: CUDA, else Apple's MPS, else the CPU; rank by rank on CUDA.

    `UserError` when the device asked for is absent or unknown."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto": name = next(kind for kind, there in found.items() if there)
    kind, colon, index = name.partition(":")
    if kind not in found or (colon and not (index.isascii() and index.isdigit())):
        raise UserError(f"no device is called {name!r}; choose auto, cpu, cuda or mps")
    at = int(index) if index else ranks()[1] if kind == "cuda" else 0
    if not found[kind] or at >= (torch.cuda.device_count() if kind == "cuda" else 1):
        raise UserError(f"torch finds no device {kind}:{at} on this machine; "
                        "use --device cpu or --device auto")
    return torch.device(kind, at) if kind == "cuda" else torch.device(kind)


# %%
print(pick_device())
try: pick_device("abacus")
except UserError as e: print(e)
else: raise AssertionError("an unknown device must be refused")


# %% [markdown]
# A number format is a harder choice. bfloat16 keeps the range of float32 with 8 bits of precision in place of 24. GPUs from
# 2020 on multiply it several times as fast. Some CPUs do too, and others fall back to a path that is slower than float32. No
# table of names stays right for long, so on a CPU we race the two for a fifth of a second.

# %%
#| export
def _matmul_rate(dtype: torch.dtype, seconds: float) -> float:
    "Products of two (512, 512) matrices a second, on the CPU, measured for about `seconds`."
    a = torch.randn(512, 512).to(dtype)
    a @ a                                     # the first one pays for the set-up
    n, start = 0, time.perf_counter()
    while n < 3 or time.perf_counter() - start < seconds:
        a @ a
        n += 1
    return n / (time.perf_counter() - start)

def pick_dtype(
    device: torch.device,  # where the model will run
    name: str = "auto",    # "auto", "float32" or "bfloat16"
) -> torch.dtype:
    """The number format to compute in: bfloat16 where the device is faster with it, else float32.

    On a CPU the two are raced for 0.2 s. `UserError` for any other name."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in named: return named[name]
    if name != "auto":
        raise UserError(f"no number format {name!r}; choose auto, float32 or bfloat16")
    if device.type == "cuda":
        new_enough = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if new_enough else torch.float32
    if device.type == "mps": return torch.float32
    with torch.random.fork_rng(devices=[]):      # the race must not move the caller's numbers
        faster = _matmul_rate(torch.bfloat16, 0.1) > 1.3 * _matmul_rate(torch.float32, 0.1)
    return torch.bfloat16 if faster else torch.float32


# %%
seed_all(3)
picked, after = pick_dtype(torch.device("cpu")), torch.rand(1)
seed_all(3)
assert torch.equal(after, torch.rand(1)) and picked in (torch.float32, torch.bfloat16)
print("this CPU computes in", picked)

# %% [markdown]
# `torch.compile` turns a model into fused machine code. On a CPU it needs a C++ compiler and Python's header files, which many
# laptops lack, and then it fails deep inside. We try it on a tiny function in a *child process*: whatever happens there, an
# error, a crash, an endless wait, costs us a line of text and not the run.

# %%
#| export
_COMPILE_PROBE = """
import torch
x = torch.ones(8, 8, device={device!r}, requires_grad=True)
torch.compile(lambda t: (t * 2 + 1).relu().sum())(x).backward()
"""

@cache
def _compile_works(device: str, timeout: float) -> bool:
    "Whether a child process could compile a tiny function; says what to install when not."
    try:
        child = subprocess.run([sys.executable, "-c", _COMPILE_PROBE.format(device=device)],
                               capture_output=True, timeout=timeout)
        if child.returncode == 0: return True
        reason = "torch.compile does not work here"
    except subprocess.TimeoutExpired:
        reason = f"torch.compile did not finish a tiny test in {timeout:.0f} s"
    print0(f"{reason}, so we run without it (slower, same results); "
           "on Debian or Ubuntu it needs the packages g++ and python3-dev")
    return False

def can_compile(
    device: str = "cpu",   # where the test runs
    timeout: float = 180,  # seconds
) -> bool:
    """Whether `torch.compile` works here: tried once, in a child process that cannot hurt us.

    With `NANOCHAT_COMPILE=0` the answer is no, at once."""
    return os.environ.get("NANOCHAT_COMPILE") != "0" and _compile_works(device, timeout)


# %%
os.environ["NANOCHAT_COMPILE"], before = "0", os.environ.get("NANOCHAT_COMPILE")
assert can_compile() is False
if before is None: del os.environ["NANOCHAT_COMPILE"]
else: os.environ["NANOCHAT_COMPILE"] = before


# %% [markdown]
# A measurement without its machine is a rumour. These five facts go beside every number we write down.

# %%
#| export
def _cpu_name() -> str:
    "The processor's name, as the system tells it."
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"): return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

def machine() -> dict:  # cpu, cores, ram_gb, torch, threads
    "What this computer is, in the five facts that a measurement needs beside it."
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "ram_gb": round(ram, 1),
            "torch": torch.__version__, "threads": torch.get_num_threads()}


# %%
print(machine())
assert machine()["cores"] >= 1 and machine()["ram_gb"] > 0.5


# %% [markdown]
# ### Memory that is given back too eagerly
#
# A training step makes and drops a few large tensors. On Linux the C library returns each of them to the system at once, and the
# system hands out fresh pages, filled with zeros, a moment later: a d4 step asks for hundreds of megabytes of zeros that nobody reads.
# Two settings of the allocator keep the memory in the process. Nothing else changes, and the next cell shows what it is worth.

# %%
#| export
def keep_memory() -> bool:  # whether this system's C library knows the settings
    "Let the C library keep freed memory for the next tensor instead of returning it (glibc's mallopt(3))."
    import ctypes
    no_mmap, trim, most = -4, -1, 2**31 - 1                  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    try: mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError): return False      # macOS, Windows, musl
    return bool(mallopt(no_mmap, 0) and mallopt(trim, most))


# %%
_touch = """
import sys, time, torch
if sys.argv[1] == "kept":
    from nanochat.workshop import keep_memory
    keep_memory()
x = torch.ones(2**23)                                      # 32 MB
for i in range(12):
    if i == 2: start = time.perf_counter()
    y = x * 2 + 1
print(f"{(time.perf_counter() - start) * 100:.0f}")
"""
for how in ("usual", "kept"):
    child = subprocess.run([sys.executable, "-c", _touch, how], capture_output=True, text=True)
    print(f"x * 2 + 1 on 32 MB, memory {how}: {child.stdout.strip()} ms")
    assert child.returncode == 0, child.stderr


# %% [markdown]
# ## A bar that tells how long
#
# Training is waiting. You want to know how long, and you want it in three places: a notebook cell, a terminal, and a log file
# that somebody opens tomorrow. In the first two a line may change in place. In a log each line stays, so ten are enough.
#
# **Trap.** A progress bar in the innermost loop can cost more than the loop. Drawing a chart takes about 50 ms; a small model
# takes a step in 10 ms. So `update` usually does one comparison and returns, and after each drawing we wait at least
# twenty times as long as the drawing took. That bounds its cost at a twentieth, whatever the machine.

# %%
#| export
def _place() -> str:  # "quiet", "notebook", "tty" or "log"
    "Where progress is shown: nowhere, in a notebook, on a terminal line, or as lines of a log."
    if os.environ.get("NANOCHAT_QUIET") == "1" or ranks()[0] != 0: return "quiet"
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None and type(shell).__name__ == "ZMQInteractiveShell": return "notebook"
    return "tty" if sys.stderr.isatty() else "log"

def clock(seconds: float) -> str:  # "42 s", "3:07" or "1:02:09"
    "Seconds as people read them."
    s = round(seconds)
    if s < 60: return f"{s} s"
    return f"{s // 60}:{s % 60:02}" if s < 3600 else f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}"

def _numbers(numbers: dict) -> list[str]:
    "Name and value of each number; floats with four digits."
    return [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()]


# %%
print([clock(s) for s in (4.2, 187, 3729)])
assert [clock(s) for s in (4.2, 187, 3729)] == ["4 s", "3:07", "1:02:09"]


# %%
#| export
class _Line:
    "A line of text that changes in place; in a log it is repeated, about ten times at most."

    def __init__(self, total: int | None, every: float):
        self.place, self.total, self.every = _place(), total, every
        self.next_time, self.handle = 0.0, None
        self.tenth = max(1, (total or 0) // 10)
        self.next_count = self.tenth

    def due(self, count: int, now: float) -> bool:
        "Whether something should be shown: a comparison or two, so that the loop is never slowed."
        if self.place == "quiet": return False
        if self.place != "log": return now >= self.next_time
        return count >= self.next_count if self.total else now >= self.next_time

    def shown(self, count: int, now: float, elapsed: float) -> None:
        "Set when the next one is due: drawing may cost a twentieth of the time, not more."
        cost = time.perf_counter() - now
        if self.place == "log": self.next_time = now + max(1.0, elapsed)     # at 1, 2, 4, ... s
        else: self.next_time = now + max(self.every, 20 * cost)
        self.next_count = (count // self.tenth + 1) * self.tenth


# %% [markdown]
# Does a log stay short? We pretend to be one and take 95 steps.

# %%
line, shown_at = _Line(total=95, every=0.2), []
line.place = "log"
for i in range(1, 96):
    if line.due(i, now=0.0):
        line.shown(i, now=0.0, elapsed=0.0)
        shown_at.append(i)
print(len(shown_at), "lines for 95 steps, at", shown_at)
assert 9 <= len(shown_at) <= 11


# %% [markdown]
# Showing differs by place. A notebook hands out a handle through which an output can be changed later. A terminal
# needs the two codes that go back to the start of the line and clear it. A log gets plain lines.

# %%
#| export
@patch
def write(self: _Line, text: str, bundle: dict | None = None, end: bool = False) -> None:
    "Show the text, or in a notebook the bundle of it by MIME type."
    if self.place == "notebook":
        from IPython.display import display
        bundle = bundle or {"text/plain": text}
        if self.handle: self.handle.update(bundle, raw=True)
        else: self.handle = display(bundle, raw=True, display_id=True)
    elif self.place == "tty":
        text = text[: shutil.get_terminal_size().columns - 1]      # a second row would not be cleared
        print("\r\x1b[K" + text, end="\n" if end else "", file=sys.stderr, flush=True)
    elif self.place == "log": print(text, file=sys.stderr, flush=True)


# %%
with contextlib.redirect_stderr(io.StringIO()) as shown:
    line.place = "tty"
    for word in ("one", "two"): line.write(word)
print(repr(shown.getvalue()))
assert shown.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo"


# %% [markdown]
# The bar itself only counts, and asks the line whether something should be shown.

# %%
#| export
class Progress:
    """A bar with elapsed and remaining time, in a notebook, on a terminal or as lines of a log.

    Silent when `NANOCHAT_QUIET=1` and on every rank but 0."""

    def __init__(self,
        total: int | None,  # how many updates are expected; None when nobody knows
        label: str = "",    # what is being done
        every: float = 0.2, # seconds between redraws, at least
    ):
        self.total, self.label, self.n, self.numbers = total, label, 0, {}
        self.line, self.start = _Line(total, every), time.perf_counter()

    def __enter__(self): return self

    def __exit__(self, *exc):
        if self.line.place != "quiet": self.line.write(self.text(), end=True)

    def update(self, n: int = 1, **numbers) -> None:
        "Count `n` more; `numbers` are shown behind the bar."
        self.n += n
        if numbers: self.numbers = numbers
        now = time.perf_counter()
        if not self.line.due(self.n, now) or self.n == self.total: return    # the exit shows it
        self.line.write(self.text())
        self.line.shown(self.n, now, now - self.start)


# %% [markdown]
# What it says: how far, how long so far, how long still. The rest is estimated from the mean time of an update, which is
# honest while updates cost the same.

# %%
#| export
@patch
def text(self: Progress) -> str:
    "What the bar says now."
    elapsed = time.perf_counter() - self.start
    if not self.total: parts = [f"{self.n:,}", clock(elapsed)]
    else:
        filled = min(20, 20 * self.n // self.total)
        parts = [f"[{'#' * filled:.<20}]", f"{self.n:,}/{self.total:,}", clock(elapsed)]
        if 0 < self.n < self.total:
            parts.append(f"{clock(elapsed / self.n * (self.total - self.n))} left")
    return "  ".join([self.label] * bool(self.label) + parts + _numbers(self.numbers))

def progress(iterable: Iterable, total: int | None = None, label: str = "") -> Iterator:
    "Go through `iterable` and show how far it is."
    if total is None and hasattr(iterable, "__len__"): total = len(iterable)
    with Progress(total, label) as bar:
        for item in iterable:
            yield item
            bar.update()


# %%
assert list(progress(range(5), label="counting")) == [0, 1, 2, 3, 4]

with Progress(50, "adding") as bar:
    for i in range(50):
        time.sleep(0.002)
        bar.update(total=i * 1.5)
assert bar.n == 50 and "50/50" in bar.text()

# %% [markdown]
# Does it slow the loop? We count what a hundred thousand updates cost.

# %%
with Progress(100_000, "nothing at all") as bar:
    start = time.perf_counter()
    for _ in range(100_000): bar.update()
    each = (time.perf_counter() - start) / 100_000
print(f"{each * 1e6:.2f} millionths of a second an update")
assert each < 50e-6

# %% [markdown]
# ## Figures for every reader
#
# Some readers cannot see a figure, and some see it on a site where the notebook does not run. So a figure here carries a
# text that says what it shows, a number, a caption, and the picture itself as a small PNG inside the notebook. The function
# refuses a figure without words, because a rule that nothing enforces is forgotten by the third lesson.

# %%
#| export
_figure_numbers = itertools.count(1)

def _image(fig, alt: str) -> str:
    "A matplotlib figure as an HTML image with its alternative text, the picture inside."
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=100, facecolor="white")
    data = base64.b64encode(png.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"/>'

def figure(
    fig,                # a matplotlib figure; it is closed
    *,
    alt: str = "",      # what it shows, for a reader who cannot see it
    caption: str = "",  # one sentence below it
) -> None:
    """Show a figure with its number, caption and alternative text, as a small PNG; then close it.

    `ValueError` when the caption or the text is missing."""
    if not alt.strip(): raise ValueError("a figure needs alt=: say in a sentence what it shows")
    if not caption.strip(): raise ValueError("a figure needs caption=")
    title = f"Figure {next(_figure_numbers)}: {caption}"
    picture = _image(fig, alt)
    if "matplotlib.pyplot" in sys.modules: sys.modules["matplotlib.pyplot"].close(fig)
    page = f"<figure>{picture}<figcaption>{html.escape(title)}</figcaption></figure>"
    _show({"text/html": page, "text/plain": f"{title} {alt}"})

def _show(bundle: dict) -> None:
    "Show a bundle by MIME type in IPython; elsewhere print its plain text."
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return print(bundle["text/plain"])
    from IPython.display import display
    display(bundle, raw=True)


# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
ax.plot([1, 2, 4, 8], [0, 1, 6, 28], "o-")
ax.set(xlabel="workers", ylabel="pairs that talk")
figure(fig, caption="Pairs among n workers.", alt="A curve that rises from 0 at one worker to 28 at eight.")

# %%
try: figure(plt.figure(), caption="No words for those who cannot see it.")
except ValueError as e: print(e)
else: raise AssertionError("a figure without alt text must be refused")
plt.close("all")


# %% [markdown]
# A training run deserves a figure that grows. `Live` draws the loss so far and falls back to text where there is no notebook.
# It keeps at most 4,000 points: when there are more it drops every second one, so a run of a million steps draws as fast
# as a short one.

# %%
#| export
class Live:
    "A loss curve that grows: a chart in a notebook, a line on a terminal, ten lines in a log."

    def __init__(self,
        total: int,      # steps when training is done
        label: str = "", # what is being trained
    ):
        self.total, self.label, self.xs, self.ys = total, label, [], []
        self.line, self.start, self.text = _Line(total, every=0.5), time.perf_counter(), ""

    def __enter__(self): return self

    def __exit__(self, *exc): self.close()

    def step(self,
        i: int,       # steps done so far, from 1 (after a resume: from where it went on)
        loss: float,  # the loss to plot
        **more,       # other numbers to show
    ) -> None:
        "Take one more point."
        now = time.perf_counter()
        if not self.xs: self.first, self.start = i, now
        self.xs.append(i)
        self.ys.append(loss)
        if len(self.xs) > 4000: self.xs, self.ys = self.xs[::2], self.ys[::2]
        self.last = (i, loss, more)
        if self.line.due(i, now):
            self._draw()
            self.line.shown(i, now, now - self.start)

    def close(self) -> None:
        "Show the last state, once and for all."
        if self.xs and self.line.place != "quiet": self._draw(end=True)


# %% [markdown]
# What it draws: a line of numbers, and in a notebook the curve below it, with its own alternative text.

# %%
#| export
@patch
def _draw(self: Live, end: bool = False) -> None:
    "Show the state of the last step."
    i, loss, more = self.last
    elapsed = time.perf_counter() - self.start
    parts = [self.label, f"step {i:,}/{self.total:,}", f"loss {loss:.4f}", *_numbers(more)]
    if self.first < i < self.total:
        parts.append(f"{clock(elapsed / (i - self.first) * (self.total - i))} left")
    self.text, bundle = "  ".join(filter(None, [*parts, clock(elapsed)])), None
    if self.line.place == "notebook":
        bundle = {"text/html": self._chart(), "text/plain": self.text}
    self.line.write(self.text, bundle, end)

@patch
def _chart(self: Live) -> str:
    "The curve as an HTML image; its alternative text says where it starts and ends."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(5, 2.4), layout="constrained")
    ax = fig.subplots()
    ax.plot(self.xs, self.ys, linewidth=1)
    ax.set(xlabel="step", ylabel="loss")
    ends = [f"{y:.2f} at step {x}" for x, y in ((self.xs[k], self.ys[k]) for k in (0, -1))]
    alt = f"Loss against step: {ends[0]}, {ends[1]}."
    return f"<div>{html.escape(self.text)}</div>" + _image(fig, alt)


# %%
with Live(30, "a pretend run") as live:
    for i in range(1, 31):
        time.sleep(0.005)
        live.step(i, 3.0 * 0.9**i + 1, lr=0.02)
assert live.xs == list(range(1, 31)) and abs(live.ys[-1] - 1.127) < 0.001


# %% [markdown]
# ## A window to talk through
#
# At the end of the course you will talk to your model, in this window. It takes any function from the history of the
# conversation to a generator of pieces of text, so today an echo will do.
#
# Three details decide whether such a window works. The reply runs in a *thread*: a notebook handles clicks one after
# the other, so a reply that ran in the handler of Send would block the handler of Stop. It redraws at most twenty times a second.
# And it escapes every character that means something in HTML: a model can be talked into writing a script.

# %%
#| export
class ChatWidget:
    """A chat panel for notebooks over any generator of text: box, Send, Stop, a reply that grows.

    It shows everything as plain text, so a model that writes HTML cannot reach the page."""

    def __init__(self,
        reply: Callable[[list[dict]], Iterable[str]],  # history -> pieces of the answer
        examples: Iterable[str] = (),                  # messages to offer as buttons
    ):
        import ipywidgets as w
        self.reply, self.history, self.worker = reply, [], None
        self._stopped = threading.Event()
        self.log, self.status = w.HTML(), w.Label("ready")
        self.box = w.Text(placeholder="Say something, then press Enter", layout=w.Layout(flex="1"))
        self.send = w.Button(description="Send", button_style="primary")
        self.stop = w.Button(description="Stop", disabled=True)
        self.examples = [w.Button(description=text, layout=w.Layout(width="auto"))
                         for text in examples]
        row = w.HBox([self.box, self.send, self.stop])
        self.panel = w.VBox([self.log, w.HBox(self.examples), row, self.status])
        self._connect()
        self._render()

    def _connect(self) -> None:
        "Tie the buttons and the Enter key to what they do."
        self.send.on_click(lambda _: self.submit())
        self.stop.on_click(lambda _: self._stopped.set())
        for button in self.examples: button.on_click(lambda b: self.submit(b.description))
        with warnings.catch_warnings():              # what is advised instead fires on lost focus
            warnings.simplefilter("ignore", DeprecationWarning)
            self.box.on_submit(lambda _: self.submit())

    def _ipython_display_(self):
        from IPython.display import display
        display(self.panel)


# %% [markdown]
# Sending adds two messages to the history, yours and an empty one, and starts the thread that fills the empty one.

# %%
#| export
@patch
def submit(self: ChatWidget, text: str | None = None) -> None:
    "Send a message (else what the box holds). The answer grows in the thread `worker`."
    text = (self.box.value if text is None else text).strip()
    if not text or (self.worker and self.worker.is_alive()): return
    self.box.value = ""
    self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    self._stopped.clear()
    self.send.disabled, self.stop.disabled, self.status.value = True, False, "thinking"
    self.worker = threading.Thread(target=self._answer, daemon=True)
    self.worker.start()


# %% [markdown]
# The thread adds piece after piece. Whatever happens, an end, a stop or an error, the buttons come back.

# %%
#| export
@patch
def _answer(self: ChatWidget) -> None:
    "Append pieces to the last message until the reply ends, fails or is stopped."
    pieces, start, drawn, word = 0, time.perf_counter(), 0.0, "done"
    try:
        for piece in self.reply([dict(m) for m in self.history[:-1]]):
            if self._stopped.is_set(): break
            self.history[-1]["content"] += piece
            pieces += 1
            if time.perf_counter() - drawn > 0.05:    # at most 20 redraws a second
                self._render()
                drawn = time.perf_counter()
        if self._stopped.is_set(): word = "stopped"
        rate = pieces / max(1e-9, time.perf_counter() - start)
        self.status.value = f"{word}: {pieces} pieces, {rate:.0f} a second"
    except Exception as e:
        self.status.value = f"failed: {e if isinstance(e, UserError) else repr(e)}"
        if not self.history[-1]["content"]:           # nothing was said: the message goes back to where it was typed
            self.box.value = self.history[-2]["content"]
            del self.history[-2:]
    finally:
        self.send.disabled, self.stop.disabled = False, True
        self._render()

@patch
def _render(self: ChatWidget) -> None:
    "Redraw the conversation, newest line in view."
    style = "white-space:pre-wrap;margin:4px 0"
    rows = [f"<p style='{style}'><b>{m['role']}:</b> {html.escape(m['content'])}</p>"
            for m in self.history]
    box = ("height:240px;overflow:auto;display:flex;flex-direction:column-reverse;"
           "border:1px solid #ccc;padding:6px")
    self.log.value = f"<div style='{box}'><div>{''.join(rows)}</div></div>"


# %%
def echo(history):
    for word in history[-1]["content"].split(): yield word + " "

chat = ChatWidget(echo, examples=["hello there"])
chat.submit("<b>tell me</b> a story")
chat.worker.join()
assert chat.history[-1]["content"] == "<b>tell me</b> a story " and "<b>tell" not in chat.log.value
print(chat.status.value.split(":")[0], chat.history)


# %% [markdown]
# Stop works from another thread, so we can press it from a cell. The generator below would go on for ever.

# %%
def for_ever(history):
    while True:
        yield "and then "
        time.sleep(0.01)

chat = ChatWidget(for_ever)
chat.submit("tell me a story")
time.sleep(0.1)
chat.stop.click()
chat.worker.join(timeout=5)
print(chat.status.value.split(":")[0], "after:", chat.history[-1]["content"][:18])
assert not chat.worker.is_alive() and chat.status.value.startswith("stopped")


# %% [markdown]
# What a failing reply does belongs to the contract too: the status line says so and the window stays usable.

# %%
def broken(history):
    yield "I was about to say"
    raise UserError("the model file is missing; train one first")

chat = ChatWidget(broken)
chat.submit("hello")
chat.worker.join()
print(chat.status.value)
assert "train one first" in chat.status.value and not chat.send.disabled

# %% [markdown]
# ## Recap
#
# * A mistake of the user gets one line that names the thing and the way out; a bug keeps its traceback.
# * A file is written beside the old one, flushed, and renamed over it. Half a file cannot happen.
# * Device, number format and compiler are asked, not guessed, and the asking cannot hurt the run.
# * Progress costs at most a twentieth of the time, and a log gets about ten lines.
# * A figure without words is refused. A chat window streams from a thread, can be stopped, and escapes all text.
