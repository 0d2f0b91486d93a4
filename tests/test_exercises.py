"""Every exercise notebook: its solution passes, its stub does not, and wrong answers get the right message.

Wrong answers run in one namespace in this process, which is quick; the solution and the stub also run as a learner
runs them. tests/wrong_answers/NN_x.py holds at least two wrong answers for each exercise.
"""
import re
import runpy
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import ex  # noqa: E402
import make_exercises  # noqa: E402
import start  # noqa: E402

BOOKS = sorted((ROOT / "solutions").glob("*.ipynb"))
STUB = "your code here"


def cells_of(path: Path) -> list:
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def grader(cell) -> dict:
    return cell.metadata.get("nbgrader", {})


def exercises() -> list:
    "(solution notebook, name of the exercise) for every exercise of every notebook."
    return [pytest.param(book, grader(c)["grade_id"], id=f"{book.stem}:{grader(c)['grade_id']}")
            for book in BOOKS for c in cells_of(book) if grader(c).get("solution")]


def wrong_answers(book: Path) -> dict:
    "The wrong answers for a notebook, by exercise."
    return runpy.run_path(str(ROOT / "tests" / "wrong_answers" / f"{book.stem}.py"))["WRONG"]


def wrong_cases() -> list:
    return [pytest.param(book, name, source, message, id=f"{book.stem}:{name}:{i}")
            for book in BOOKS for name, answers in wrong_answers(book).items()
            for i, (source, message) in enumerate(answers)]


def run(book: Path, name: str, source: str | None = None) -> None:
    "Run a solution notebook up to the check of one exercise, with another answer in its place."
    space = {"__name__": "__main__"}
    for cell in cells_of(book):
        mine = grader(cell).get("grade_id") == name and source is not None
        exec(compile(source if mine else cell.source, cell.id, "exec"), space)
        if grader(cell).get("grade_id") == f"{name}-check": return
    raise LookupError(f"{book.name} has no check for {name}")


def test_there_are_exercises():
    assert BOOKS and exercises()


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: b.stem)
def test_each_exercise_is_whole(book):
    "Task with minutes and hints, answer cell, locked check cell: in this order, for each exercise."
    cells = nbformat.read(book, 4).cells
    ids = [c.id for c in cells]
    assert len(set(ids)) == len(ids)
    answers = [i for i, c in enumerate(cells) if grader(c).get("solution")]
    assert len(answers) >= 4
    for i in answers:
        task, check, name = cells[i - 1], cells[i + 1], grader(cells[i])["grade_id"]
        assert task.cell_type == "markdown" and "minutes" in task.source and task.source.count("<details>") >= 2
        assert any(word in task.source for word in ("*Easy", "*Medium", "*Hard"))
        assert grader(check)["grade_id"] == f"{name}-check"
        assert grader(check)["locked"] and grader(check)["grade"] and grader(check)["points"] > 0
        assert len(wrong_answers(book).get(name, [])) >= 2, f"{name} needs two wrong answers"


@pytest.mark.parametrize("book,name", exercises())
def test_solution_passes(book, name):
    for _ in range(3): run(book, name)          # checks draw fresh inputs


@pytest.mark.parametrize("book,name", exercises())
def test_stub_empty_and_broken_answers_fail(book, name):
    stub = next(c for c in cells_of(ROOT / "exercises" / book.name) if grader(c).get("grade_id") == name).source
    with pytest.raises(NotImplementedError, match=STUB): run(book, name, stub)
    with pytest.raises(NameError): run(book, name, "")
    with pytest.raises(SyntaxError): run(book, name, stub + "\n    return )")


@pytest.mark.parametrize("book,name,source,message", wrong_cases())
def test_wrong_answer_is_caught_with_the_right_message(book, name, source, message):
    for _ in range(3):
        with pytest.raises(AssertionError) as caught: run(book, name, source)
        assert message in str(caught.value)


def test_generated_files_are_up_to_date_and_the_generator_repeats():
    assert make_exercises.main(["--check"]) == 0
    assert make_exercises.wanted(ROOT) == make_exercises.wanted(ROOT)
    for book in BOOKS:
        text = (ROOT / "exercises" / book.name).read_text(encoding="utf-8")
        assert "BEGIN SOLUTION" not in text and STUB in text
        assert [c.id for c in nbformat.reads(text, 4).cells] == [c.id for c in nbformat.read(book, 4).cells]


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    "A folder with exercises, as a learner's checkout has them; the package comes from here."
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises")
    shutil.copytree(ROOT / "solutions", tmp_path / "solutions")
    for name in ("conftest.py", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_check_finds_stale_and_missing_and_surplus_exercises(house, capsys):
    book = house / "exercises" / BOOKS[0].name
    original = book.read_text(encoding="utf-8")
    book.write_text(original.replace(STUB, "my code here"), encoding="utf-8")
    (house / "exercises" / "99_gone.ipynb").write_text("{}", encoding="utf-8")
    assert make_exercises.main(["--check"], house) == 1
    assert capsys.readouterr().out.split() == ["stale:", BOOKS[0].name, "99_gone.ipynb"]
    assert make_exercises.main([], house) == 0 and book.read_text(encoding="utf-8") == original
    assert not (house / "exercises" / "99_gone.ipynb").exists()
    book.unlink()
    assert make_exercises.main(["--check"], house) == 1


@pytest.mark.parametrize("old,new,message", [
    ("    ### END SOLUTION", "", "do not pair up"),
    ("### BEGIN SOLUTION", "### BEGIN", "do not pair up"),
])
def test_generator_refuses_broken_markers(old, new, message):
    nb = nbformat.read(BOOKS[0], 4)
    cell = next(c for c in nb.cells if grader(c).get("solution"))
    cell.source = cell.source.replace(old, new)
    with pytest.raises(SystemExit, match=message): make_exercises.strip(nb, "x.ipynb")


def test_lessons_find_their_files_from_anywhere():
    "A learner's copy stands in work/lessons, so a path from where the lesson stands leads nowhere."
    for twin in sorted((ROOT / "lessons" / "text").glob("*.py")):
        code = [line for line in twin.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert not [line for line in code if re.search(r"""["']\.\.?/""", line)], twin.name


def test_generator_refuses_an_answer_that_is_not_declared():
    nb = nbformat.read(BOOKS[0], 4)
    del next(c for c in nb.cells if grader(c).get("solution")).metadata["nbgrader"]
    with pytest.raises(SystemExit, match="disagree"): make_exercises.strip(nb, "x.ipynb")


def test_start_copies_and_never_overwrites(house, capsys):
    copy, number = house / "work" / BOOKS[0].name, BOOKS[0].stem.split("_")[0]
    start.main([number], house)
    assert copy.read_bytes() == (house / "exercises" / copy.name).read_bytes()
    copy.write_text("my work", encoding="utf-8")
    start.main([number], house)
    start.main([copy.stem], house)
    assert copy.read_text(encoding="utf-8") == "my work"
    assert "stays as it is" in capsys.readouterr().out


def test_half_a_copy_does_not_stay(house, monkeypatch):
    copy = house / "work" / BOOKS[0].name
    def full(source, target):
        target.write(b"{")
        raise OSError("no space left")
    monkeypatch.setattr(start.shutil, "copyfileobj", full)
    with pytest.raises(OSError): start.main([BOOKS[0].stem], house)
    assert not copy.exists()
    monkeypatch.undo()
    start.main([BOOKS[0].stem], house)
    assert copy.read_bytes() == (house / "exercises" / copy.name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_answer_in_single_precision_passes(dtype):
    "Torch computes in float32 unless told otherwise, and the task asks for nothing else."
    source = (f"def power_law(D, loss, floor):\n    x = torch.tensor(D, dtype=torch.{dtype}).log()\n"
              f"    y = (torch.tensor(loss, dtype=torch.{dtype}) - floor).log()\n"
              "    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()\n"
              "    return (y.mean() - slope * x.mean()).exp().item(), -slope.item()")
    for _ in range(3): run(ROOT / "solutions" / "03_pretraining.ipynb", "power", source)


def test_positions_may_be_an_index():
    source = ("def rotate(x, positions):\n    D = x.shape[-1]\n"
              "    angles = torch.arange(1000)[:, None] * 10000 ** (-torch.arange(0, D, 2) / D)\n"
              "    cos, sin = angles.cos()[positions], angles.sin()[positions]\n"
              "    a, b = x[..., : D // 2], x[..., D // 2 :]\n"
              "    return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)")
    run(ROOT / "solutions" / "02_attention.ipynb", "rotate", source)


def test_start_lessons_copies_only_what_is_missing(house):
    (house / "lessons").mkdir()
    for name in ("a", "b"): (house / "lessons" / f"{name}.ipynb").write_text(f"new {name}", encoding="utf-8")
    (house / "work" / "lessons").mkdir(parents=True)
    mine = house / "work" / "lessons" / "a.ipynb"
    mine.write_text("mine", encoding="utf-8")
    start.main(["lessons"], house)
    assert mine.read_text(encoding="utf-8") == "mine"
    assert (mine.parent / "b.ipynb").read_text(encoding="utf-8") == "new b"


@pytest.mark.parametrize("argv", [["77"], [""], ["--check", "77"], ["--check", "01"], ["--bad"], []])
def test_mistakes_are_one_line_and_status_2(house, capsys, argv):
    with pytest.raises(SystemExit) as left: start.main(argv, house)
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.strip() and said.count("\n") == 1
    assert not (house / "work").exists()


def test_ex_names_a_missing_copy_and_checks_nothing(house, capsys):
    with pytest.raises(SystemExit) as left: ex.main([BOOKS[0].stem], house)
    assert left.value.code == 2 and "make start" in capsys.readouterr().err


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: b.stem)
def test_ex_judges_the_learners_copy_and_nothing_else(book, house, capfd):
    "The stub says NOT FILLED IN YET, the solution passes; other notebooks beside it play no part."
    number, copy = book.stem.split("_")[0], house / "work" / book.name
    start.main([number], house)
    (copy.parent / f"{number}z_other.ipynb").write_text("not a notebook", encoding="utf-8")
    assert ex.main([number], house) == 1
    said = capfd.readouterr().out
    assert "NOT FILLED IN YET" in said and book.name in said and "1 failed" in said
    shutil.copy(book, copy)
    (house / "exercises" / book.name).write_text("broken", encoding="utf-8")
    assert ex.main([number], house) == 0
    assert "failed" not in capfd.readouterr().out
