"""Whether notebooks, package, twins, exercises and configuration agree: one line a problem, exit status 1.

Exports into a temporary folder and compares; writes nothing in the project, and ignores outputs and file times.
"""
import ast
import contextlib
import io
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

sys.dont_write_bytecode = True
import make_exercises
import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sync import BOOKS, PACKAGE, ROOT, TWINS, export, module_of, twin_text

FREE = "00_start_here"          # exports nothing and may import anything
ROOF = "__main__"               # wires everything together and may name later modules
NOT_EXPORTED = {"__init__.py", "_modidx.py"}


def lessons() -> list[Path]:
    "The lessons in reading order, which is the order of their names."
    return sorted(BOOKS.glob("*.ipynb"))


def sources_of(book: Path) -> list[tuple[str, str]]:
    "(cell id, source) of each code cell."
    return [(c.get("id", "?"), c.source) for c in nbformat.read(book, 4).cells if c.cell_type == "code"]


# -- package -------------------------------------------------------------------------------------------------------

def exported() -> dict[str, str]:
    "File name to text of every module, as an export into a temporary folder writes it."
    with tempfile.TemporaryDirectory() as folder:
        books, package = Path(folder) / BOOKS.name, Path(folder) / PACKAGE.name
        books.mkdir(), package.mkdir()
        for book in lessons():
            copy = books / book.name
            copy.write_bytes(book.read_bytes())
            export(copy.stem, package, books)
        return {p.name: p.read_text(encoding="utf-8") for p in package.glob("*.py")}


def first_difference(a: str, b: str) -> int:
    "Number of the first line in which two texts differ."
    rows = zip(a.splitlines(), b.splitlines())
    same = next((n for n, (x, y) in enumerate(rows) if x != y), None)
    return (min(a.count("\n"), b.count("\n")) if same is None else same) + 1


def package() -> Iterator[str]:
    "Modules that are not what their lesson exports."
    want, owner = exported(), {}
    for book in lessons():
        name = module_of(book)
        if name is None: continue
        if name in owner: yield f"{book.name}: module {name} is exported by {owner[name]} already"
        else: owner[name] = book.name
    have = {p.name: p.read_text(encoding="utf-8") for p in PACKAGE.glob("*.py") if p.name not in NOT_EXPORTED}
    for name in sorted(want.keys() | have.keys()):
        if name in NOT_EXPORTED: continue
        book = owner.get(name.removesuffix(".py"))
        if name not in want: yield f"nanochat/{name}: no lesson exports this module; `make sync` removes it"
        elif name not in have: yield f"nanochat/{name}: missing; lessons/{book} exports it, run `make sync`"
        elif want[name] != have[name]:
            line = first_difference(want[name], have[name])
            yield (f"nanochat/{name}: line {line} is not what lessons/{book} exports; run `make sync` "
                   f"(an edit by hand belongs into the lesson)")


# -- twins and exercises -------------------------------------------------------------------------------------------

def twins() -> Iterator[str]:
    "Lessons whose text twin is missing or says something else."
    for twin in sorted(TWINS.glob("*.py")):
        if not (BOOKS / f"{twin.stem}.ipynb").exists(): yield f"lessons/text/{twin.name}: has no notebook; run `make sync`"
    for book in lessons():
        twin = TWINS / f"{book.stem}.py"
        if not twin.exists(): yield f"lessons/{book.name}: has no text twin; run `make sync`"
        elif twin.read_text(encoding="utf-8") != twin_text(book):
            line = first_difference(twin.read_text(encoding="utf-8"), twin_text(book))
            yield f"lessons/text/{twin.name}: line {line} differs from the notebook; run `make sync`"


def exercises() -> Iterator[str]:
    "What the generator of exercises finds stale."
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said): bad = make_exercises.main(["--check"])
    except SystemExit as stop: bad = stop.code
    if bad: yield f"exercises: {bad if isinstance(bad, str) else ' '.join(said.getvalue().split())}; run `make sync`"


# -- order of imports ----------------------------------------------------------------------------------------------

def plain_python(source: str) -> str:
    "A cell without its magics, so that it parses."
    if source.lstrip().startswith("%%"): return ""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)


def imported(source: str) -> set[str]:
    "Modules of the package that a cell imports, in any form and at any depth."
    found = set()
    for node in ast.walk(ast.parse(plain_python(source))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nanochat.")}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if not node.level else ["nanochat", *(node.module or "").split(".")]
            parts = [p for p in parts if p]
            if parts[:1] == ["nanochat"]: found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found |= {n.split(".")[1] for n in names if n.startswith("nanochat.")}
    return found


def import_order() -> Iterator[str]:
    "Cells that import what a later lesson, or none, exports."
    modules = {book: module_of(book) for book in lessons()}
    known, before = {m for m in modules.values() if m} | {ROOF}, set()
    for book, module in modules.items():
        before |= {module}
        if book.stem == FREE:
            if module: yield f"lessons/{book.name}: must not export anything (it exports {module})"
            continue
        for cell, source in sources_of(book):
            try: names = imported(source)
            except SyntaxError as e:
                yield f"lessons/{book.name}, cell {cell}: does not parse ({e.msg})"
                continue
            for name in sorted(names - before):
                if module == ROOF and name in known: continue
                why = "a later lesson exports it" if name in known else "no lesson exports it"
                yield f"lessons/{book.name}, cell {cell}: imports nanochat.{name}, but {why}"


# -- configuration -------------------------------------------------------------------------------------------------

def requirements(lines: list[str]) -> dict[str, str]:
    "Canonical name to version demand of each requirement."
    found = [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier) for r in found}


def configuration() -> Iterator[str]:
    "Where settings.ini, pyproject.toml, constraints.txt and environment.yml contradict each other."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    settings = ini["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pin_lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements(pin_lines)
    init = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    same = [("name", settings["lib_name"], project["name"]),
            ("description", settings["description"], project["description"]),
            ("oldest Python", ">=" + settings["min_python"], project["requires-python"]),
            ("requirements", requirements(settings["requirements"].split()), requirements(project["dependencies"])),
            ("dev_requirements", requirements(settings["dev_requirements"].split()), requirements(extras["course"])),
            ("console_scripts", dict(x.split("=") for x in settings["console_scripts"].split()), project["scripts"])]
    for what, one, other in same:
        if one != other: yield f"settings.ini and pyproject.toml: {what} differs ({one} and {other})"
    if f'__version__ = "{settings["version"]}"' not in init: yield "nanochat/__init__.py: its version is not that of settings.ini"
    yield from unpinned({**requirements(project["dependencies"]), **requirements(sum(extras.values(), []))}, pins)
    yield from loose(pin_lines)
    yield from conda()


def unpinned(wanted: dict[str, str], pins: dict[str, str]) -> Iterator[str]:
    "Requirements that constraints.txt does not pin, or pins outside what is allowed."
    for name, demand in wanted.items():
        if name not in pins: yield f"constraints.txt: {name} is not pinned; run `make pins`"
        elif pins[name].removeprefix("==") not in Requirement(name + demand).specifier:
            yield f"constraints.txt: {name}{pins[name]} is not {name}{demand}"


def loose(lines: list[str]) -> Iterator[str]:
    "Lines of constraints.txt that are no exact pin."
    for line in lines:
        if line.strip() and not re.match(r"^[\w.-]+==[\w.]+( ;.*)?$", line): yield f"constraints.txt: {line!r} is no exact pin"


def conda() -> Iterator[str]:
    "Where environment.yml would not install what constraints.txt names (read as text: its form is fixed)."
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    for line in ("name: nanochat-course", "  - pip", "      - -r constraints.txt", "      - -e ."):
        if line not in text.splitlines(): yield f"environment.yml: the line {line!r} is missing"
    if not re.search(r"^  - python=3\.\d+$", text, re.M): yield "environment.yml: it must name one Python, as in `- python=3.11`"


def problems() -> Iterator[str]:
    "All problems, one line each."
    for check in (package, twins, exercises, import_order, configuration): yield from check()


def main() -> int:
    os.chdir(ROOT)        # nbdev looks for settings.ini from here
    found = list(problems())
    for line in found: print(line)
    if not found: print(f"{len(lessons())} lessons, package, twins, exercises and configuration agree")
    return 1 if found else 0


if __name__ == "__main__": sys.exit(main())
