"""Make what is missing in work/, where a learner's own copies of the lessons live. Never overwrites a file."""
from pathlib import Path

from start import ROOT, copy_new, start_lessons

NO_TWINS = "# copies of lessons have no text twins\n"


def prepare(root: Path) -> None:
    "The lessons, the pictures and the glossary they point to, and a file that keeps jupytext from pairing copies."
    start_lessons(root)
    for extra in sorted((root / "lessons").iterdir()):
        if extra.suffix in (".svg", ".md"): copy_new(extra, root / "work" / "lessons" / extra.name)
    config = root / "work" / "jupytext.toml"
    if not config.exists(): config.write_text(NO_TWINS)


if __name__ == "__main__": prepare(ROOT)
