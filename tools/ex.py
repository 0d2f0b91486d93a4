"""Check a learner's copy of an exercise, and nothing else: `ex.py NN` runs pytest and nbval on work/NN_*.ipynb."""
import os
import subprocess
import sys
from pathlib import Path

from start import ROOT, copy_of, mistake

OPTIONS = ["-q", "-x", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=60", "-p", "no:cacheprovider"]


def check(copy: Path, root: Path) -> int:
    "Exit status of pytest for one notebook; the package and conftest.py of `root` are found from anywhere."
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-c", root / "pyproject.toml", copy]
    return subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": path}).returncode


def main(argv: list[str], root: Path = ROOT) -> int:
    if len(argv) != 1: mistake("usage: ex.py NN")
    return check(copy_of(argv[0], root), root)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
