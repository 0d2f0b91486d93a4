"""How pytest runs notebooks: which environment their kernels get, and how a failing cell is told to a learner."""
import os
import re

import pytest

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_RUN = re.compile(r"^#\|\s*eval:\s*false\s*$", re.M)
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt|Warning)\b")
STUB = "NotImplementedError: your code here"


def pytest_addoption(parser):
    parser.addoption("--lesson-env", action="append", default=[], metavar="NAME=VALUE",
                     help="a variable that notebook kernels (and no other test) get")


def is_cell(item) -> bool:
    "Whether a test item is a cell of a notebook."
    return hasattr(item, "cell")


def pytest_collection_modifyitems(items):
    "Cleaned notebooks have outputs without counts, which nbval refuses; `#| eval: false` is a skip."
    for item in filter(is_cell, items):
        if item.cell.outputs and item.cell.execution_count is None: item.cell.execution_count = 0
        if NOT_RUN.search(item.cell.source): item.add_marker(pytest.mark.skip(reason="#| eval: false"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "A kernel starts when its first cell is set up: it then inherits what --lesson-env names."
    if not is_cell(item): return
    if getattr(item.parent, "broken", None):
        pytest.skip(f"cell {item.parent.broken!r} of this notebook failed before")
    item.stash[SAVED] = dict(os.environ)
    os.environ.update(pair.split("=", 1) for pair in item.config.getoption("--lesson-env"))


def pytest_runtest_call(item):
    restore(item)


def pytest_runtest_teardown(item):
    restore(item)


SAVED = pytest.StashKey[dict]()


def restore(item) -> None:
    "Give this process its own environment back once the kernel runs."
    before = item.stash.get(SAVED, None)
    if before is None: return
    for name in os.environ.keys() - before.keys(): del os.environ[name]
    os.environ.update(before)
    del item.stash[SAVED]


def cell_name(cell) -> str:
    "The name of a cell: its nbgrader name in an exercise, else its id."
    return cell.metadata.get("nbgrader", {}).get("grade_id") or cell.get("id", "")


def explain(file: str, cell, error) -> str:
    "What a learner reads when a cell fails: what, where, and the traceback without colours."
    trace = COLOUR.sub("", getattr(error, "inner_traceback", None) or "").strip()
    last = trace.splitlines()[-1] if trace else ""
    if STUB in trace:
        return (f"NOT FILLED IN YET: {file}, cell '{cell_name(cell)}'\n"
                f"Replace `raise NotImplementedError` above it, save, and run this command again.")
    if ERROR_LINE.match(last): return f"{file}, cell '{cell_name(cell)}' failed: {last}\n\n{cell.source}\n\n{trace}"
    detail = trace or COLOUR.sub("", str(error))
    return f"{file}, cell '{cell_name(cell)}' failed\n\n{cell.source}\n\n{detail}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    "After the first failing cell the rest of a notebook is skipped."
    outcome = yield
    error = call.excinfo and call.excinfo.value
    if not is_cell(item) or call.when != "call" or type(error).__name__ != "NbCellError": return
    item.parent.broken = cell_name(item.cell)
    outcome.get_result().longrepr = explain(item.parent.path.name, item.cell, error)
