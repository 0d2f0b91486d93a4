"""How pytest runs notebooks here: kernels get their own variables, and a failing cell is told in plain words."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

ROOT = Path(__file__).resolve().parent.parent


def book(path: Path, *sources: str, outputs: dict | None = None) -> None:
    "Write a notebook; `outputs` maps the number of a cell to the text it is said to have printed."
    cells = [v4.new_code_cell(s, id=f"cell-{i}") for i, s in enumerate(sources)]
    for i, text in (outputs or {}).items(): cells[i].outputs = [v4.new_output("stream", text=text)]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path.write_text(nbformat.writes(v4.new_notebook(cells=cells, metadata=kernel)))


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    "pytest on everything in a folder that has the course's conftest.py."
    shutil.copy(ROOT / "conftest.py", folder)
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env",
               "--nbval-sanitize-with", ROOT / "tests" / "sanitize.cfg", "--rootdir", folder, *options, folder]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NANOCHAT_"))}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_kernels_get_their_variables_and_tests_do_not(tmp_path):
    book(tmp_path / "a.ipynb", "import os\nassert os.environ['NANOCHAT_TIER'] == 'smoke'", "assert 'A=B' in os.environ['NANOCHAT_X']")
    (tmp_path / "test_z.py").write_text("import os\n\ndef test_mine(): assert not {'NANOCHAT_TIER', 'NANOCHAT_X'} & set(os.environ)\n")
    done = run(tmp_path, "--lesson-env", "NANOCHAT_TIER=smoke", "--lesson-env", "NANOCHAT_X=A=B")
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_failing_cell_is_told_once(tmp_path):
    book(tmp_path / "b.ipynb", "x = 1", "assert x == 2, 'x is wrong'", "x = 3")
    done = run(tmp_path)
    assert done.returncode == 1 and "1 failed, 1 passed, 1 skipped" in done.stdout
    assert "b.ipynb, cell 'cell-1' failed: AssertionError: x is wrong" in done.stdout
    assert "\x1b[" not in done.stdout and "of this notebook failed before" in done.stdout


@pytest.mark.slow
def test_outputs_without_counts_and_sanitised_outputs(tmp_path):
    same = "# NBVAL_CHECK_OUTPUT\nprint(object(), '12.5 tok/s', 41)"
    book(tmp_path / "c.ipynb", "print(1)", same, "#| eval: false\n1 / 0", outputs={
        0: "another machine\n", 1: "<object object at 0x7f0123456789> 3.1 tok/s 41\n"})
    done = run(tmp_path)
    assert done.returncode == 0 and "2 passed, 1 skipped" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_checked_output_that_differs_fails(tmp_path):
    book(tmp_path / "d.ipynb", "# NBVAL_CHECK_OUTPUT\nprint(42)", outputs={0: "41\n"})
    done = run(tmp_path)
    assert done.returncode == 1 and "cell 'cell-0' failed" in done.stdout and "42" in done.stdout


@pytest.mark.slow
def test_execute_stores_the_same_file_twice_and_keeps_ids(tmp_path):
    path = tmp_path / "e.ipynb"
    book(path, "import sys\nfor i in range(3): print(f'\\r{i}', end='', flush=True)", "print('a'); print('b', file=sys.stderr); 6 * 7", "import os; os.environ['NANOCHAT_TIER']")
    def execute() -> bytes:
        command = [sys.executable, "-B", ROOT / "tools" / "execute.py", path]
        assert subprocess.run(command, capture_output=True, env={**os.environ, "NANOCHAT_TIER": "smoke"}).returncode == 0
        return path.read_bytes()
    age = path.stat().st_mtime_ns
    first = execute()
    assert path.stat().st_mtime_ns == age and [p.name for p in tmp_path.iterdir()] == ["e.ipynb"]    # a newer twin stays the newer
    cells = nbformat.read(path, 4).cells
    assert execute() == first and [c.id for c in cells] == ["cell-0", "cell-1", "cell-2"]
    assert cells[0].outputs[0].text.endswith("2") and "0" not in cells[0].outputs[0].text
    assert cells[1].outputs[-1].data["text/plain"] == "42" and cells[1].execution_count == 2
    assert cells[2].outputs[-1].data["text/plain"] == "'full'"


@pytest.mark.slow
def test_execute_leaves_a_failing_notebook_alone(tmp_path):
    path = tmp_path / "f.ipynb"
    book(path, "1 / 0")
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-B", ROOT / "tools" / "execute.py", path], capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED f.ipynb" in done.stderr and path.read_bytes() == before


def test_execute_of_an_unknown_name_is_one_line():
    done = subprocess.run([sys.executable, "-B", ROOT / "tools" / "execute.py", "99_nothing"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == ("execute: no notebook '99_nothing'; give the name of a lesson "
                                                            "or a path to a notebook")
