"""Draw lessons/course_map.svg: the lessons in reading order, and what flows between them. `--check` only compares."""
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAP = ROOT / "lessons" / "course_map.svg"
ROWS = [      # (what the row makes, its lessons as number and title, what goes on to the next row)
    ("The bench", [("00", "Start here"), ("00a", "Workshop"), ("00b", "Microworld")], "text"),
    ("Text to tokens", [("01", "Tokenizer"), ("01a", "Trainer in Rust")], "token ids"),
    ("The model", [("02", "Attention"), ("02a", "Transformer"), ("02b", "Data"), ("02c", "Sampling"),
                   ("02d", "Optimization"), ("02e", "Checkpoints")], "a model with random weights"),
    ("It learns text", [("03", "Pretraining"), ("03a", "Evaluation"), ("03b", "Many processes"), ("04", "Muon")], "base model"),
    ("It learns to chat", [("04a", "Tasks"), ("04b", "Chat scores"), ("05", "Midtraining"), ("06", "SFT"), ("07", "GRPO")],
     "chat model"),
    ("It runs, and acts", [("08", "KV cache"), ("09", "Tool use"), ("10", "Identity"), ("11", "SpellingBee")], "skills"),
    ("Yours", [("11a", "Report card"), ("11b", "Chat"), ("12", "Capstone")], ""),
]
WIDTH, LEFT, BOX, GAP, HIGH, STEP = 900, 150, 112, 10, 40, 74
INK, SPINE, SIDE = "#1f2933", "#cfe3f5", "#f4f1ea"
ALT = ("Map of the course. Seven rows from top to bottom: the bench, text to tokens, the model, it learns text, "
       "it learns to chat, it runs and acts, yours. Each row holds its lessons by number; spine lessons are blue.")


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", weight: str = "normal") -> str:
    "One line of SVG text."
    return (f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{INK}">{escape(words)}</text>')


def box(x: int, y: int, number: str, title: str) -> list[str]:
    "One lesson."
    spine = number.isdigit() and number != "00"
    rect = (f'<rect x="{x}" y="{y}" width="{BOX}" height="{HIGH}" rx="6" fill="{SPINE if spine else SIDE}" '
            f'stroke="{INK}" stroke-width="{1.6 if spine else 0.7}"/>')
    return [rect, text(x + BOX / 2, y + 16, number, 12, weight="bold"), text(x + BOX / 2, y + 32, title, 13)]


def row(n: int, name: str, lessons: list, gives: str) -> list[str]:
    "One row: its name, its lessons, and an arrow with what it hands on."
    y = 24 + n * STEP
    out = [text(14, y + 25, name, 14, "start", "bold")]
    for i, (number, title) in enumerate(lessons): out += box(LEFT + i * (BOX + GAP), y, number, title)
    if gives:
        x, top = LEFT + BOX / 2, y + HIGH + 4
        out.append(f'<path d="M{x} {top} v20 m-5 -7 l5 7 l5 -7" fill="none" stroke="{INK}" stroke-width="1.4"/>')
        out.append(text(x + 14, top + 16, gives, 12, "start"))
    return out


def draw() -> str:
    "The whole map as SVG."
    high = 24 + len(ROWS) * STEP
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" width="{WIDTH}" height="{high}" '
            f'role="img" font-family="Helvetica, Arial, sans-serif">')
    parts = [head, f"<title>{escape(ALT)}</title>", f'<rect width="{WIDTH}" height="{high}" fill="#ffffff"/>']
    for n, (name, lessons, gives) in enumerate(ROWS): parts += row(n, name, lessons, gives)
    return "\n".join([*parts, "</svg>", ""])


def main(argv: list[str]) -> int:
    if "--check" in argv: return int(not MAP.exists() or MAP.read_text(encoding="utf-8") != draw())
    MAP.write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
