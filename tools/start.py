"""Give a learner a copy to work on: `start.py NN` (an exercise) or `start.py lessons`. Never overwrites a file.

`start.py --check NN` says nothing when the copy is there, and one line with exit status 2 when it is not.
"""
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def mistake(text: str):
    "Leave with one line and exit status 2."
    print(text, file=sys.stderr)
    raise SystemExit(2)


def find(name: str, root: Path) -> Path:
    "The exercise notebook that `01`, `01_tokenizer` or `01_tokenizer.ipynb` names."
    books = sorted((root / "exercises").glob("*.ipynb"))
    numbers = [book.stem.split("_")[0] for book in books]
    stem = name.strip().removesuffix(".ipynb")
    for book, number in zip(books, numbers):
        if stem in (number, book.stem): return book
    asked = f"no exercise {name!r}" if name.strip() else "which exercise?"
    mistake(f"{asked}; there are NN={', '.join(numbers)}")


def copy_of(name: str, root: Path) -> Path:
    "The learner's copy of an exercise; a mistake where it is missing."
    copy = root / "work" / find(name, root).name
    if not copy.is_file():
        mistake(f"work/{copy.name} is not there: run `make start NN={copy.stem.split('_')[0]}` first")
    return copy


def copy_new(source: Path, target: Path) -> bool:
    "Copy unless the target exists; whether a copy was made. Holds also when two run at once."
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as book, target.open("xb") as out:
            try: shutil.copyfileobj(book, out)
            except BaseException:                       # half a copy would stay for ever
                target.unlink()
                raise
    except FileExistsError:
        return False
    return True


def start_exercise(name: str, root: Path) -> None:
    "Copy one exercise to work/."
    book = find(name, root)
    number = book.stem.split("_")[0]
    made = copy_new(book, root / "work" / book.name)
    print(f"work/{book.name} is {'ready' if made else 'already there and stays as it is'}; "
          f"`make ex NN={number}` checks it")


def start_lessons(root: Path) -> None:
    "Copy the lessons that are not yet in work/lessons."
    books = sorted((root / "lessons").glob("*.ipynb"))
    made = [copy_new(book, root / "work" / "lessons" / book.name) for book in books]
    print(f"work/lessons: {sum(made)} lessons copied, {len(made) - sum(made)} were there and stay as they are")


def main(argv: list[str], root: Path = ROOT) -> None:
    if len(argv) == 2 and argv[0] == "--check": copy_of(argv[1], root)
    elif argv == ["lessons"]: start_lessons(root)
    elif len(argv) == 1 and not argv[0].startswith("-"): start_exercise(argv[0], root)
    else: mistake("usage: start.py NN | start.py lessons | start.py --check NN")


if __name__ == "__main__": main(sys.argv[1:])
