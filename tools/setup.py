"""Make the environment that a make target needs: `python3 tools/setup.py tour|course|test`.

Uses the active conda environment when it was made from environment.yml, else a `.venv` beside this folder, filled
by uv. Runs on the standard library of any Python 3.6 or newer, so that it can say what is missing. What is already
there is not done again: a stamp holds a digest of everything an installation depends on.
`python3 tools/setup.py bin` only prints the folder of the environment's programs.
"""
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "nanochat-course"
EXTRAS = {"tour": [], "course": ["course"], "test": ["course", "test"]}
OLDEST = (3, 11)
OLDEST_RUST = (1, 85)
WINDOWS = os.name == "nt"


class Problem(Exception):
    "What stops the set-up: one line that says what to do."


def say(text):
    print("set-up: " + text, file=sys.stderr, flush=True)


# -- which environment ---------------------------------------------------------------------------------------------

def conda_env(environ=os.environ):
    "The active conda environment when it is the course's own, else None."
    prefix = environ.get("CONDA_PREFIX")
    if not prefix: return None
    named = NAME in (environ.get("CONDA_DEFAULT_ENV"), Path(prefix).name)
    holds = any(Path(prefix).glob("lib/python3*/site-packages/nanochat_course-*.dist-info"))
    return Path(prefix) if named or holds else None


def environment(environ=os.environ):
    "Folder of the environment in use: conda's, or `.venv`."
    return conda_env(environ) or ROOT / ".venv"


def programs(env):
    "Folder of an environment's programs."
    return env / ("Scripts" if WINDOWS and env == ROOT / ".venv" else "bin")


def python_of(env):
    if WINDOWS and env != ROOT / ".venv": return env / "python.exe"
    return programs(env) / ("python.exe" if WINDOWS else "python")


# -- what the machine has ------------------------------------------------------------------------------------------

def version_of(python):
    "(major, minor) of an interpreter, None when it does not run."
    code = "import sys; print(*sys.version_info[:2])"
    try: out = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.SubprocessError): return None
    numbers = out.stdout.decode().split()
    return tuple(map(int, numbers)) if out.returncode == 0 and len(numbers) == 2 else None


def choose_python(current=None):
    "An interpreter that is new enough: the running one, else the newest of `python3.11` to `python3.14` on the path."
    current = current or (sys.executable, sys.version_info[:2])
    if current[1] >= OLDEST: return current[0]
    for minor in (14, 13, 12, 11):
        found = shutil.which("python3.%d" % minor)
        if found and (version_of(found) or (0, 0)) >= OLDEST: return found
    raise Problem("this is Python %d.%d, the course needs 3.11 or newer: install it (python.org, your system's packages, or "
                  "`conda env create -f environment.yml`), then run `make PY=python3.11 ...`" % current[1])


def can_make_venv(python):
    "Whether the interpreter has venv and ensurepip (some systems pack them apart)."
    run = subprocess.run([str(python), "-c", "import venv, ensurepip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return run.returncode == 0


def has_pip(python):
    "Whether pip is there: not when the making of the environment was interrupted."
    run = subprocess.run([str(python), "-c", "import pip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return run.returncode == 0


def rust_problem():
    "Why the Rust trainer cannot be built, None when it can."
    if not shutil.which("cargo"): return "no Rust (cargo) here"
    try: out = subprocess.run(["cargo", "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.SubprocessError): return "cargo does not run"
    found = re.match(r"cargo (\d+)\.(\d+)", out.stdout.decode(errors="replace"))
    if not found: return "cargo does not run"
    if tuple(map(int, found.groups())) < OLDEST_RUST: return "Rust %s.%s is older than 1.85" % found.groups()
    return None


def compiler_problem(python=None):
    "Why torch.compile will not work on this machine's CPU, None when nothing is known to be missing."
    if not any(shutil.which(c) for c in ([os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"])):
        return "no C++ compiler here"
    code = "import sysconfig, pathlib; print((pathlib.Path(sysconfig.get_paths()['include']) / 'Python.h').exists())"
    out = subprocess.run([str(python or sys.executable), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return "Python's C headers are not here" if out.stdout.strip() == b"False" else None


def advice(python=None):
    "One line for each optional part that is missing: what to install, and what works without it."
    lines, rust, compiler = [], rust_problem(), compiler_problem(python)
    if rust: lines.append(rust + ": the tokenizer is trained in pure Python, slower but with the same merges; "
                          "to have the fast one install Rust 1.85 or newer (rustup.rs), then run this again")
    if compiler: lines.append(compiler + ": models run eager instead of compiled, slower but the same; to compile them "
                              "install a compiler (Debian: `apt install g++ python3-dev`, macOS: `xcode-select --install`)")
    return lines


# -- stamps ----------------------------------------------------------------------------------------------------------

def sources(rust):
    "The files an installation depends on."
    files = [ROOT / "constraints.txt", ROOT / "pyproject.toml"]
    crate = ROOT / "rustbpe"
    if rust: files += [p for p in sorted(crate.rglob("*")) if p.suffix in (".rs", ".toml", ".lock")
                       and "target" not in p.relative_to(crate).parts]
    return [f for f in files if f.is_file()]


def digest(rust, python):
    "What an installation depends on, in one number: files, place, interpreter."
    h = hashlib.sha256(("%s %s" % (ROOT, python)).encode())
    for f in sources(rust): h.update(f.name.encode() + b"\0" + f.read_bytes() + b"\0")
    return h.hexdigest()


def done(env, target, mark):
    "Whether the environment already holds what the target needs (a larger installation holds the smaller)."
    wanted = [t for t in EXTRAS if set(EXTRAS[t]) >= set(EXTRAS[target])]
    for t in wanted:
        stamp = env / (".done-" + t)
        if stamp.is_file() and stamp.read_text() == mark: return True
    return False


def largest(env, target):
    "The target, or a larger one that was installed before and is out of date."
    return max([t for t in EXTRAS if (env / (".done-" + t)).is_file()] + [target], key=lambda t: len(EXTRAS[t]))


# -- the work --------------------------------------------------------------------------------------------------------

def call(command, what):
    "Run a command silently; on failure show its last lines and stop."
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    run = subprocess.run([str(c) for c in command], cwd=str(ROOT), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode == 0: return
    tail = run.stdout.decode(errors="replace").strip().splitlines()[-8:]
    print("\n".join(tail), file=sys.stderr)
    raise Problem(what)


def make_venv(env, python):
    "A fresh .venv with uv in it; one that is of no use any more is replaced."
    uv = programs(env) / ("uv.exe" if WINDOWS else "uv")
    if (version_of(python_of(env)) or (0, 0)) < OLDEST or not (uv.is_file() or has_pip(python_of(env))):
        if not can_make_venv(python):
            raise Problem("this Python has no venv module: install it (Debian, Ubuntu: `apt install python3-venv`) and run this again")
        say("making .venv: a download of 3 GB on Linux, where PyTorch brings CUDA, and 6 GB on disk ...")
        call([python, "-m", "venv", "--clear", env], "the virtual environment could not be made; is the disk full?")
    if not uv.is_file():
        call([python_of(env), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", "uv"],
             "uv could not be installed: is there a network? Run the same command again to go on")


def install(env, target):
    "Packages of the target in their pinned versions, then the course itself, editable."
    uv = [programs(env) / ("uv.exe" if WINDOWS else "uv"), "pip", "install", "-q", "--python", python_of(env)]
    pins = ["-c", "constraints.txt", "-b", "constraints.txt"]
    extras = "[%s]" % ",".join(EXTRAS[target]) if EXTRAS[target] else ""
    # where Python may not write bytecode later, every start would compile all of torch again
    compiled = ["--compile-bytecode"] if sys.dont_write_bytecode else []
    call(uv + pins + compiled + ["-e", "." + extras],
         "the packages could not be installed: is there a network, and 6 GB of free disk? Run the same command again to go on")


def check_conda(env):
    "A conda environment is used as it is: it must hold the course already."
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ('nanochat', 'torch', 'pytest', 'uv')))"
    call([python_of(env), "-c", code], "the conda environment is not complete: run `conda env update -f environment.yml`, then this again")


def install_rust(env):
    "The Rust trainer; when it cannot be built the course works without it."
    uv = [programs(env) / ("uv.exe" if WINDOWS else "uv"), "pip", "install", "-q", "--python", python_of(env)]
    try: call(uv + ["-b", "constraints.txt", "--reinstall", "./rustbpe"],
              "the Rust trainer could not be built: the tokenizer is trained in pure Python, slower but with the same merges")
    except Problem as e: say(str(e))


def prepare(target):
    "Everything a make target needs."
    env, conda = environment(), conda_env()
    python = python_of(env) if conda else choose_python()
    has_crate, rust = (ROOT / "rustbpe" / "pyproject.toml").is_file(), rust_problem() is None
    mark = digest(rust, env)
    if done(env, target, mark) and version_of(python_of(env)): return
    target = largest(env, target)
    if conda: say("using the conda environment " + str(env))
    else: make_venv(env, python)
    for line in advice(python_of(env)): say(line)
    if conda: check_conda(env)
    else: install(env, target)
    if rust and has_crate: install_rust(env)
    for old in env.glob(".done-*"): old.unlink()
    (env / (".done-" + ("test" if conda else target))).write_text(mark)
    say("ready")


def main(args):
    if args == ["bin"]:
        print(programs(environment()))
        return 0
    if len(args) != 1 or args[0] not in EXTRAS:
        print("usage: python3 tools/setup.py %s|bin" % "|".join(EXTRAS), file=sys.stderr)
        return 2
    try: prepare(args[0])
    except Problem as e:
        say(str(e))
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        return 130
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
