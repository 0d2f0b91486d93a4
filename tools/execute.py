"""Run notebooks and store their outputs, so that a second run gives the same file: `execute.py [NAME ...]`.

A name is a lesson (`01_tokenizer`) or a path (`solutions/01_tokenizer.ipynb`); none means all lessons and solutions.
Ids, sources and cell metadata stay as they are. A notebook whose cell fails is left untouched. Lessons run at full size, whatever
`NANOCHAT_TIER` says: what a reader finds stored is what the lesson can do.
"""
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
REDRAWN = re.compile(r"[^\n]*\r(?=[^\n])")     # what a later carriage return drew over
TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+")      # another folder in each run
HOME = re.compile(re.escape(str(Path.home())) + r"(?=/)")                # another one on each machine


def placeless(text: str) -> str:
    "The text without folders of this machine."
    return HOME.sub("~", TEMPORARY.sub("TEMP", text))


def joined(outputs: list) -> list:
    "Neighbouring pieces of one stream as one, each line only in its last state."
    out = []
    for o in outputs:
        if o.output_type == "stream" and out and out[-1].get("name") == o.name: out[-1].text += o.text
        else: out.append(o)
    for o in out:
        if o.output_type == "stream": o.text = placeless(REDRAWN.sub("", o.text.replace("\r\n", "\n")))
        plain = o.get("data", {}).get("text/plain")
        if plain: o.data["text/plain"] = placeless(plain)
    return out


def tidy(nb) -> None:
    "Number the code cells from 1 and drop what differs from run to run."
    nb.metadata = nbformat.from_dict(KERNEL)
    for n, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
        cell.metadata.pop("execution", None)
        cell.outputs = joined(cell.outputs)
        cell.execution_count = n
        for o in cell.outputs:
            if "execution_count" in o: o.execution_count = n


def execute(path: Path, timeout: int = 1800) -> None:
    "Run one notebook in its own folder and store its outputs; its age stays, since its source does (`sync.py`: the newer wins)."
    was, nb = path.stat(), nbformat.read(path, 4)
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", store_widget_state=False,
                            resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    tidy(nb)
    part = path.with_suffix(".tmp")
    part.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    os.utime(part, ns=(was.st_atime_ns, was.st_mtime_ns))
    os.replace(part, path)


def find(name: str) -> Path:
    "The notebook that a name or a path means."
    for path in (Path(name), ROOT / "lessons" / f"{name}.ipynb", ROOT / name):
        if path.suffix == ".ipynb" and path.is_file(): return path.resolve()
    raise SystemExit(f"execute: no notebook {name!r}; give the name of a lesson or a path to a notebook")


def main(names: list[str]) -> int:
    "Execute the named notebooks, or all; the number of those that failed."
    os.environ["NANOCHAT_TIER"] = "full"           # kernels inherit it
    books = [find(n) for n in names] or [*sorted((ROOT / "lessons").glob("*.ipynb")), *sorted((ROOT / "solutions").glob("*.ipynb"))]
    failed = 0
    for book in books:
        try: execute(book)
        except CellExecutionError as e:
            failed += 1
            print(f"FAILED {book.name}: {str(e).strip()}", file=sys.stderr)
        else: print("executed", book.relative_to(ROOT) if book.is_relative_to(ROOT) else book)
    return failed


if __name__ == "__main__": sys.exit(min(1, main(sys.argv[1:])))
