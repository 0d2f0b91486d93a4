"""`make check` names each way in which the parts of the house can fall out of step, and writes nothing."""
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ("settings.ini", "pyproject.toml", "constraints.txt", "environment.yml", "jupytext.toml")
TOOLS = ("check.py", "sync.py", "make_exercises.py", "start.py")
LESSONS = {
    "00_start_here": ["# Start", "from nanochat.third import triple"],
    "00a_first": ["#| default_exp first", "#| export\ndef one(): return 1", "one()"],
    "01_second": ["#| default_exp second", "#| export\nfrom nanochat.first import one\n\ndef two(): return one() + 1"],
    "02_third": ["#| default_exp third", "#| export\ndef triple(x): return 3 * x", "from nanochat.second import two\ntwo()"],
    "02a_none": ["from nanochat.third import triple\ntriple(2)"],
    "12_roof": ["#| default_exp __main__", "#| export\nfrom importlib import import_module\n\n"
                "def serve(): return import_module('nanochat.late')"],
    "12a_late": ["#| default_exp late", "#| export\nfrom nanochat.third import triple"],
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(house: Path, tool: str, *names: str) -> Done:
    "Run a tool of a house in this process: starting Python and nbdev anew for each would take minutes."
    here, path, out, err = Path.cwd(), list(sys.path), io.StringIO(), io.StringIO()
    stems = [name.removesuffix(".py") for name in TOOLS]
    others = {stem: sys.modules.pop(stem) for stem in stems if stem in sys.modules}      # those of another folder
    try:
        sys.path.insert(0, str(house / "tools"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            module = import_module(tool)
            code = module.main(*([list(names)] if tool == "sync" else []))
    except SystemExit as stop: code = 1 if isinstance(stop.code, str) else stop.code
    finally:
        os.chdir(here)
        sys.path[:] = path
        for stem in stems: sys.modules.pop(stem, None)
        sys.modules.update(others)
    return Done(code or 0, out.getvalue(), err.getvalue())


def write_twin(house: Path, name: str, cells: list[str]) -> None:
    (house / "lessons" / "text" / f"{name}.py").write_text("\n\n".join(f"# %%\n{c}" for c in cells) + "\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    "A house of tiny lessons, two of which export nothing, with the project's own configuration and tools."
    house = tmp_path_factory.mktemp("built")
    for name in CONFIG: shutil.copy(ROOT / name, house / name)
    for folder in ("tools", "lessons/text", "nanochat", "exercises"): (house / folder).mkdir(parents=True)
    for name in TOOLS: shutil.copy(ROOT / "tools" / name, house / "tools" / name)
    shutil.copytree(ROOT / "solutions", house / "solutions", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "nanochat" / "__init__.py", house / "nanochat")
    for name, cells in LESSONS.items(): write_twin(house, name, cells)
    done = run(house, "sync")
    assert done.returncode == 0, done.stderr
    return house


@pytest.fixture
def house(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "house"))


def state(house: Path) -> dict[str, str]:
    return {str(p.relative_to(house)): hashlib.sha256(p.read_bytes()).hexdigest() for p in house.rglob("*") if p.is_file()}


def found(house: Path) -> list[str]:
    "The problems that the check prints."
    done = run(house, "check")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert done.returncode == (0 if lines[-1].endswith("configuration agree") else 1)
    return [] if done.returncode == 0 else lines


def only(house: Path, *words: str) -> None:
    "The check finds one problem, whose line holds these words."
    lines = found(house)
    assert len(lines) == 1 and all(w in lines[0] for w in words), lines


def test_a_house_in_order_passes_and_nothing_is_written(house):
    before = state(house)
    assert found(house) == [] and state(house) == before


def test_as_a_program_it_exits_with_1_and_says_the_same(house):
    (house / "nanochat" / "extra.py").write_text("")
    done = subprocess.run([sys.executable, "-B", house / "tools" / "check.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (1, found(house), "")


def test_file_times_and_outputs_play_no_part(house):
    path = house / "lessons" / "00a_first.ipynb"
    book = nbformat.read(path, 4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello\n")]
    nbformat.write(book, path)
    os.utime(house / "lessons" / "text" / "01_second.py", (2e9, 2e9))
    os.utime(house / "nanochat" / "first.py", (1, 1))
    assert found(house) == []


def test_a_hand_edit(house):
    path = house / "nanochat" / "first.py"
    path.write_text(path.read_text().replace("return 1", "return 7"))
    only(house, "nanochat/first.py", "00a_first.ipynb", "by hand")


def test_a_stale_twin(house):
    with (house / "lessons" / "text" / "01_second.py").open("a") as f: f.write("\n# %%\ntwo()\n")
    only(house, "lessons/text/01_second.py", "differs from the notebook")


def test_a_missing_twin_and_a_missing_module(house):
    (house / "lessons" / "text" / "01_second.py").unlink()
    (house / "nanochat" / "second.py").unlink()
    module, twin = found(house)
    assert module.startswith("nanochat/second.py: missing") and twin.startswith("lessons/01_second.ipynb: has no text twin")


@pytest.mark.parametrize("line", [
    "from nanochat.third import triple", "import nanochat.third as t", "from nanochat import third", "import nanochat.third",
    "def later():\n    from nanochat.third import triple", "from .third import triple", "from . import third",
    "%matplotlib inline\nfrom nanochat.third import triple",
    "from importlib import import_module\nimport_module('nanochat.third')"])
def test_a_forbidden_import_in_a_cell_that_is_not_exported(house, line):
    write_twin(house, "00a_first", [*LESSONS["00a_first"], line])
    assert run(house, "sync", "00a_first").returncode == 0
    only(house, "lessons/00a_first.ipynb", "imports nanochat.third", "a later lesson exports it")


def test_an_import_of_a_module_that_no_lesson_exports(house):
    write_twin(house, "02_third", [*LESSONS["02_third"], "from nanochat.nowhere import x"])
    assert run(house, "sync", "02_third").returncode == 0
    only(house, "02_third", "nanochat.nowhere", "no lesson exports it")


def test_only_the_roof_may_name_later_modules(house):
    write_twin(house, "02_third", [*LESSONS["02_third"], "import nanochat.late"])
    assert run(house, "sync", "02_third").returncode == 0
    only(house, "02_third", "nanochat.late")


def test_the_first_lesson_exports_nothing(house):
    write_twin(house, "00_start_here", ["#| default_exp start", "#| export\nx = 1"])
    assert run(house, "sync", "00_start_here").returncode == 0
    only(house, "00_start_here.ipynb", "must not export")


def test_a_module_of_a_removed_lesson(house):
    (house / "lessons" / "12a_late.ipynb").unlink()
    (house / "lessons" / "text" / "12a_late.py").unlink()
    lines = found(house)
    assert lines[0].startswith("nanochat/late.py: no lesson exports this module")
    assert run(house, "sync").returncode == 0
    assert not (house / "nanochat" / "late.py").exists()


def test_sync_never_removes_a_file_it_did_not_generate(house):
    mine = house / "nanochat" / "mine.py"
    mine.write_text("x = 1\n")
    assert run(house, "sync").returncode == 0 and mine.exists()
    only(house, "nanochat/mine.py", "no lesson exports this module")


def test_two_lessons_with_one_module(house):
    write_twin(house, "02_third", ["#| default_exp second", *LESSONS["02_third"][1:]])
    assert run(house, "sync", "02_third").returncode == 0
    assert any("module second is exported by 01_second.ipynb already" in line for line in found(house))


def test_a_stale_exercise(house):
    path = next((house / "exercises").glob("*.ipynb"))
    book = nbformat.read(path, 4)
    book.cells[0].source += "\nA hint."
    nbformat.write(book, path)
    only(house, "exercises:", path.name)


def test_a_pin_that_contradicts_the_project(house):
    path = house / "constraints.txt"
    path.write_text(path.read_text().replace("torch==2.13.0", "torch==2.1.0").replace("pytest==9.2.0\n", ""))
    assert sorted(line.split()[1] for line in found(house)) == ["pytest", "torch==2.1.0"]


def test_settings_that_contradict_the_project(house):
    path = house / "settings.ini"
    path.write_text(path.read_text().replace("requirements = torch>=2.6 numpy ", "requirements = torch>=2.6 ", 1))
    only(house, "settings.ini and pyproject.toml", "requirements")


def test_sync_twice_gives_the_same_files(house):
    before = state(house)
    assert run(house, "sync").returncode == 0
    assert state(house) == before


def test_sync_keeps_ids_and_outputs_of_cells_that_stay(house):
    path = house / "lessons" / "00a_first.ipynb"
    book = nbformat.read(path, 4)
    book.cells[2].outputs, book.cells[2].execution_count = [nbformat.v4.new_output("stream", text="1\n")], 3
    ids = [c.id for c in book.cells]
    nbformat.write(book, path)
    write_twin(house, "00a_first", [LESSONS["00a_first"][0], "import math", *LESSONS["00a_first"][1:]])
    os.utime(house / "lessons" / "text" / "00a_first.py", (2e9, 2e9))
    assert run(house, "sync", "00a_first").returncode == 0
    cells = nbformat.read(path, 4).cells
    assert [cells[i].id for i in (0, 2, 3)] == ids and cells[3].outputs[0].text == "1\n"
