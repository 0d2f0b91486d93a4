"""The set-up tells a person what is missing, in one line, before it installs anything."""
import ast
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "setup.py"


@pytest.fixture
def setup(monkeypatch, tmp_path):
    "The set-up as a module whose project is an empty folder, with nothing on the path, and no conda."
    spec = importlib.util.spec_from_file_location("course_setup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    for name in ("constraints.txt", "pyproject.toml"): (tmp_path / name).write_text(name)
    (tmp_path / "path").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for name in ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CXX"): monkeypatch.delenv(name, raising=False)
    return module


def program(folder: Path, name: str, script: str) -> Path:
    "An executable shell script."
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_runs_on_old_pythons():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    imported = {a.name for n in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= {"hashlib", "os", "re", "shutil", "subprocess", "sys"}


def test_old_python_is_one_clear_line(setup):
    with pytest.raises(setup.Problem) as e: setup.choose_python(("/usr/bin/python3", (3, 9)))
    assert "this is Python 3.9" in str(e.value) and "3.11" in str(e.value) and "\n" not in str(e.value)


def test_old_python_uses_a_newer_one_on_the_path(setup, tmp_path):
    program(tmp_path / "path", "python3.13", "exit 1")                  # there, but broken
    good = program(tmp_path / "path", "python3.12", "echo 3 12")
    assert setup.choose_python(("/usr/bin/python3", (3, 9))) == str(good)


def test_a_new_python_is_used_as_it_is(setup):
    assert setup.choose_python(("/some/python", (3, 12))) == "/some/python"


def test_python_without_venv_is_one_clear_line(setup, tmp_path):
    python = program(tmp_path, "python", 'case "$2" in *ensurepip*) exit 1;; *) echo 3 11;; esac')
    with pytest.raises(setup.Problem, match="no venv module.*python3-venv"): setup.make_venv(tmp_path / ".venv", python)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("script, said", [(None, "no Rust"), ("echo cargo 1.70.0", "Rust 1.70 is older than 1.85"),
                                          ("exit 1", "cargo does not run"), ("echo cargo 1.85.1", None)])
def test_rust(setup, tmp_path, script, said):
    if script: program(tmp_path / "path", "cargo", script)
    found = setup.rust_problem()
    assert found is None if said is None else said in found


def test_compiler(setup, tmp_path):
    assert "no C++ compiler" in setup.compiler_problem()
    program(tmp_path / "path", "g++", "true")
    assert "C++" not in (setup.compiler_problem() or "")
    python = program(tmp_path, "python", "echo False")
    assert "headers" in setup.compiler_problem(python)


def test_advice_says_what_to_install_and_what_works_without(setup):
    rust, compiler = setup.advice()
    assert "pure Python" in rust and "same merges" in rust and "rustup" in rust
    assert "eager" in compiler and "apt install" in compiler
    assert "\n" not in rust + compiler


def test_a_failed_command_shows_its_last_lines_and_one_line(setup, tmp_path, capfd):
    failing = program(tmp_path, "uv", 'for i in $(/usr/bin/seq 30); do echo "line $i"; done; exit 1')
    with pytest.raises(setup.Problem, match="is there a network"): setup.call([failing], "is there a network?")
    said = capfd.readouterr().err
    assert "line 30" in said and "line 3\n" not in said


def test_no_network_is_one_line_and_exit_2(setup, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(setup, "make_venv", lambda env, python: (env / "bin").mkdir(parents=True))
    monkeypatch.setattr(setup, "python_of", lambda env: sys.executable)
    monkeypatch.setattr(setup, "programs", lambda env: tmp_path / "path")
    program(tmp_path / "path", "uv", "echo no route to host; exit 1")
    assert setup.main(["tour"]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("set-up: the packages could not be installed: is there a network")
    assert not list((tmp_path / ".venv").glob(".done-*"))


def test_an_interrupted_venv_is_made_again(setup, tmp_path, monkeypatch):
    "Ctrl-C while ensurepip runs leaves a Python without pip, which no pip can mend."
    env, calls = tmp_path / ".venv", []
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    assert not setup.has_pip(setup.python_of(env)) and setup.has_pip(sys.executable)
    monkeypatch.setattr(setup, "call", lambda command, what: calls.append([str(c) for c in command]))
    setup.make_venv(env, sys.executable)
    assert calls[0][1:4] == ["-m", "venv", "--clear"] and calls[1][-1] == "uv"


def test_ctrl_c_is_one_line_and_exit_130(setup, monkeypatch, capfd):
    def stopped(target): raise KeyboardInterrupt
    monkeypatch.setattr(setup, "prepare", stopped)
    assert setup.main(["tour"]) == 130 and "the same command goes on" in capfd.readouterr().err


def test_a_finished_set_up_is_not_done_again(setup, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, "make_venv", lambda env, python: env.mkdir(exist_ok=True))
    monkeypatch.setattr(setup, "version_of", lambda python: (3, 11))
    monkeypatch.setattr(setup, "install", lambda env, target: calls.append(target))
    setup.prepare("test")
    setup.prepare("tour"), setup.prepare("course"), setup.prepare("test")      # test holds the others
    assert calls == ["test"]
    (tmp_path / "constraints.txt").write_text("torch==9")
    setup.prepare("tour")                                                      # stale: what was there is renewed
    assert calls == ["test", "test"]


def test_the_tour_does_not_count_as_the_course(setup, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, "make_venv", lambda env, python: env.mkdir(exist_ok=True))
    monkeypatch.setattr(setup, "version_of", lambda python: (3, 11))
    monkeypatch.setattr(setup, "install", lambda env, target: calls.append(target))
    setup.prepare("tour"), setup.prepare("course")
    assert calls == ["tour", "course"]


def test_rust_sources_count_only_with_rust(setup, tmp_path):
    crate = tmp_path / "rustbpe" / "src"
    crate.mkdir(parents=True)
    before = setup.digest(True, "p"), setup.digest(False, "p")
    (crate / "lib.rs").write_text("fn main() {}")
    assert setup.digest(True, "p") != before[0] and setup.digest(False, "p") == before[1]


def test_conda_is_used_only_when_it_is_ours(setup, tmp_path):
    assert setup.conda_env({}) is None
    assert setup.conda_env({"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"}) is None
    ours = {"CONDA_PREFIX": "/opt/conda/envs/nanochat-course", "CONDA_DEFAULT_ENV": "nanochat-course"}
    assert setup.conda_env(ours) == Path(ours["CONDA_PREFIX"]) and setup.environment(ours) == Path(ours["CONDA_PREFIX"])
    by_path = tmp_path / "env"
    (by_path / "lib" / "python3.11" / "site-packages" / "nanochat_course-0.1.0.dist-info").mkdir(parents=True)
    assert setup.conda_env({"CONDA_PREFIX": str(by_path)}) == by_path
    assert setup.environment({}) == tmp_path / ".venv"


def test_an_incomplete_conda_environment_is_one_line(setup, tmp_path, monkeypatch, capfd):
    env = tmp_path / "envs" / "nanochat-course"
    (env / "bin").mkdir(parents=True)
    program(env / "bin", "python", 'case "$2" in *find_spec*) exit 1;; *) echo 3 11;; esac')
    monkeypatch.setenv("CONDA_PREFIX", str(env))
    assert setup.main(["tour"]) == 2
    assert "conda env update -f environment.yml" in capfd.readouterr().err.strip().splitlines()[-1]


def test_unknown_target_is_usage_and_exit_2():
    run = subprocess.run([sys.executable, "-B", SCRIPT, "lunch"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith("usage:") and run.stdout == ""


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
def test_make_without_python_is_one_clear_line():
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    run = subprocess.run(["make", "-s", "tour", "PY=python-that-is-not-here"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout.splitlines()[0].startswith("no python-that-is-not-here here: install Python 3.11")
