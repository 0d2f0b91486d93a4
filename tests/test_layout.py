"""The house itself: configuration that agrees, and notebooks that a reader on the web can read."""
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BOOKS = [p for d in ("lessons", "solutions", "exercises") for p in sorted((ROOT / d).glob("*.ipynb"))]
REMOTE = re.compile(r"!\[[^\]]*\]\(\s*https?://|<(?:img|script|iframe|link)[^>]+(?:src|href)=[\"']?(?:https?:)?//", re.I)
IMAGE = re.compile(r"<img\b[^>]*>", re.I)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)")

book = pytest.mark.parametrize("path", BOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")


def names(lines) -> set[str]:
    return {Requirement(line).name.lower().replace("_", "-") for line in lines}


def pinned() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {r.name.lower(): r for r in map(Requirement, lines)}


def test_there_are_lessons():
    assert len([b for b in BOOKS if b.parent.name == "lessons"]) >= 20


def test_configuration_agrees():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    settings, project = ini["DEFAULT"], tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert settings["lib_name"] == project["name"] and project["requires-python"] == ">=" + settings["min_python"]
    assert names(settings["requirements"].split()) == names(project["dependencies"])
    assert names(settings["dev_requirements"].split()) == names(project["optional-dependencies"]["course"])
    every = names(project["dependencies"]) | names(sum(project["optional-dependencies"].values(), []))
    assert every <= {n.replace("_", "-") for n in pinned()}
    assert f'__version__ = "{settings["version"]}"' in (ROOT / "nanochat" / "__init__.py").read_text()


def test_constraints_are_exact_and_name_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "@" not in text and "#" not in text and "+cpu" not in text
    for line in text.splitlines(): assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line), line
    assert len(text.splitlines()) > 100, "transitive packages are pinned too"


def test_what_is_installed_is_what_is_pinned():
    from importlib.metadata import distributions
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    wrong = {n: (str(r.specifier), installed[n]) for n, r in pinned().items()
             if n in installed and r.marker is None and installed[n].split("+")[0] not in r.specifier}
    assert not wrong, f"pinned and installed: {wrong}"


def test_environment_yml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"} and environment["name"] == "nanochat-course"
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert "pip" in conda and "make" in conda and any(re.fullmatch(r"python=3\.\d+", d) for d in conda)
    assert pip == ["-r constraints.txt", "-e ."]


def test_package_data_is_in_the_wheel_list():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["nanochat"]
    kept = {p for pattern in data for p in (ROOT / "nanochat").glob(pattern)}
    there = {p for p in (ROOT / "nanochat").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert there and there == kept


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and re.search(r"^exec make test$", script.read_text(), re.M)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_every_target_has_a_line_of_help():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in phony: assert re.search(rf"^make {target} +\S", shown, re.M), target
    wanted = "tour test test-fast lab author start ex sync check clean help execute install"
    assert set(wanted.split()) <= set(phony)


def test_clean_leaves_work_alone_whatever_it_is_called(tmp_path):
    for name in ("work/lessons/.ipynb_checkpoints", "work copy/lessons/.ipynb_checkpoints", "a b/__pycache__", "nanochat/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a").touch()
    (tmp_path / "work" / "mine.ipynb").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert subprocess.run(["make", "-s", "clean"], cwd=tmp_path).returncode == 0
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"Makefile", "work/mine.ipynb", "work/lessons/.ipynb_checkpoints/a", "work copy/lessons/.ipynb_checkpoints/a"}


def test_a_folder_with_a_space_is_quoted(tmp_path):
    place = tmp_path / "my course"
    (place / "tools").mkdir(parents=True)
    for name in ("Makefile", "tools/setup.py"): shutil.copy(ROOT / name, place / name)
    for target in ("tour", "lab", "test", "pins"):
        said = subprocess.run(["make", "-n", target], cwd=place, capture_output=True, text=True).stdout
        assert f'"{place}/.venv/bin/' in said and f" {place}/.venv" not in said.replace(f'"{place}', "")


def test_importing_the_package_writes_and_prints_nothing(tmp_path):
    modules = sorted(p.stem for p in (ROOT / "nanochat").glob("*.py") if not p.stem.startswith("_"))
    code = "; ".join(["import nanochat"] + [f"import nanochat.{m}" for m in modules])
    environment = {**os.environ, "NANOCHAT_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / "home").exists()


@book
def test_cells_have_unique_ids(path):
    cells = nbformat.read(path, 4).cells
    ids = [c.get("id") for c in cells]
    assert all(ids) and len(set(ids)) == len(ids)


@book
def test_notebook_is_small_and_clean(path):
    assert path.stat().st_size < 2_000_000
    notebook = nbformat.read(path, 4)
    assert set(notebook.metadata) == {"kernelspec"} and notebook.metadata.kernelspec.name == "python3"
    allowed = {"tags", "nbgrader", "editable", "deletable"}
    for cell in notebook.cells: assert set(cell.metadata) <= allowed, cell.id


def pages(cell):
    "The HTML and Markdown a cell shows."
    if cell.cell_type == "markdown": yield cell.source
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        yield from ("".join(data[k]) for k in ("text/html", "text/markdown") if k in data)


@book
def test_nothing_is_fetched_from_other_hosts(path):
    for cell in nbformat.read(path, 4).cells:
        for page in pages(cell): assert not REMOTE.search(page), cell.id


@book
def test_every_picture_has_alternative_text(path):
    for cell in nbformat.read(path, 4).cells:
        for page in pages(cell):
            for tag in IMAGE.findall(page): assert re.search(r'alt="[^"]{8,}"', tag), f"{cell.id}: {tag[:80]}"
            for alt, target in MARKDOWN_IMAGE.findall(page):
                assert len(alt) >= 8, f"{cell.id}: {target}"
                assert (path.parent / target).exists() or target.startswith("attachment:"), f"{cell.id}: {target}"
        for output in cell.get("outputs", []):
            images = [k for k in output.get("data", {}) if k.startswith("image/")]
            assert not images or output.metadata.get("alt"), f"{cell.id}: a picture that did not go through workshop.figure"


@book
def test_no_stored_error(path):
    if path.parent.name == "exercises": pytest.skip("an exercise is not executed")
    for cell in nbformat.read(path, 4).cells:
        marked = "raises-exception" in cell.metadata.get("tags", []) or "NBVAL_RAISES_EXCEPTION" in cell.source
        assert marked or not any(o.output_type == "error" for o in cell.get("outputs", [])), cell.id


def test_the_map_shows_every_lesson_and_is_drawn_anew_after_a_change():
    check = subprocess.run([sys.executable, "-B", ROOT / "tools" / "course_map.py", "--check"])
    assert check.returncode == 0, "run: python tools/course_map.py"
    shown = re.findall(r'font-weight="bold"[^>]*>([0-9z]\w*)<', (ROOT / "lessons" / "course_map.svg").read_text())
    assert shown == [b.stem.split("_")[0] for b in BOOKS if b.parent.name == "lessons"]


def test_glossary_is_sorted_and_points_to_lessons():
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \| ([\w, ]+) \|$", (ROOT / "lessons" / "glossary.md").read_text(), re.M)
    words = [word.lower() for word, _, _ in rows]
    numbers = {b.stem.split("_")[0] for b in BOOKS if b.parent.name == "lessons"}
    assert len(rows) > 80 and words == sorted(set(words))
    for word, meaning, places in rows: assert meaning.endswith(".") and set(places.split(", ")) <= numbers, word


def test_the_readme_opens_with_the_two_commands_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert re.match(r"# .+\n\n    make tour +# .+\n    make lab +# .+\n", text)
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text): assert (ROOT / target).exists(), target
    for name in ("dialogue", "results"): assert f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text
