"""Write exercises/ from solutions/: marked answers become a stub. `--check` only compares.

An answer stands between `### BEGIN SOLUTION` and `### END SOLUTION` in a cell whose nbgrader metadata says
`solution: true`. Cell ids stay, outputs go (except under NBVAL_CHECK_OUTPUT, where they show what is expected).
"""
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
ANSWER = re.compile(r"^([ \t]*)### BEGIN SOLUTION[^\n]*\n.*?^[ \t]*### END SOLUTION[^\n]*$", re.M | re.S)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS[^\n]*\n.*?^[ \t]*### END HIDDEN TESTS[^\n]*\n?", re.M | re.S)
MARKER = re.compile(r"### (BEGIN|END) (SOLUTION|HIDDEN)")
STUB = {"code": r'\1raise NotImplementedError("your code here")', "markdown": r"\1*Your answer here.*"}
METADATA = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def strip_cell(cell, where: str) -> int:
    "Take the answers out of one cell; how many there were."
    source, answers = ANSWER.subn(STUB.get(cell.cell_type, r"\1"), cell.source)
    cell.source = HIDDEN.sub("", source)
    grader = cell.metadata.get("nbgrader", {})
    if MARKER.search(cell.source): raise SystemExit(f"{where}: BEGIN and END markers do not pair up")
    if bool(answers) != bool(grader.get("solution")):
        raise SystemExit(f"{where}: solution markers and nbgrader metadata disagree")
    if grader: cell.metadata["deletable"] = False
    if grader.get("locked"): cell.metadata["editable"] = False
    if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" not in cell.source:
        cell.outputs, cell.execution_count = [], None
    return answers


def strip(nb, name: str) -> str:
    "The text of the exercise notebook made from a solution notebook."
    names = [c.metadata.nbgrader.grade_id for c in nb.cells if "nbgrader" in c.metadata]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled: raise SystemExit(f"{name}: grade_id {doubled[0]!r} is used twice")
    if not sum([strip_cell(c, f"{name}, cell {c.id}") for c in nb.cells]):
        raise SystemExit(f"{name}: no answer is marked")
    nb.metadata = nbformat.from_dict(METADATA)
    nbformat.validate(nb)
    return nbformat.writes(nb) + "\n"


def wanted(root: Path) -> dict[str, str]:
    "File name to text of every exercise."
    books = sorted((root / "solutions").glob("*.ipynb"))
    return {book.name: strip(nbformat.read(book, 4), book.name) for book in books}


def main(argv: list[str], root: Path = ROOT) -> int:
    "Write what is stale, or with --check name it; 1 when --check finds something."
    want, folder = wanted(root), root / "exercises"
    have = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.ipynb")}
    stale = sorted(n for n in want.keys() | have.keys() if want.get(n) != have.get(n))
    if "--check" in argv:
        print("stale: " + " ".join(stale) if stale else f"{len(want)} exercises up to date")
        return int(bool(stale))
    folder.mkdir(exist_ok=True)
    for name in stale:
        if name in want: (folder / name).write_text(want[name], encoding="utf-8")
        else: (folder / name).unlink()
        print(f"exercises/{name}: {'written' if name in want else 'removed'}")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
