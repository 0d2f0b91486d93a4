"""Training and encoding byte-pair tokenizers: the crate of lesson 01a against published ones, in the same run.

    NANOCHAT_REAL_DATA=FOLDER python benchmarks/bpe_train.py            # everything: about 18 minutes on two cores
    python benchmarks/bpe_train.py --sizes 10 --repeat 1 --out taste.json   # a taste: half a minute
    python benchmarks/bpe_train.py --ladder                             # what each step of lesson 01a gains (needs cargo)

The text is a shuffled mix of real prose (`text/*.gz` and `chat/*.gz` in NANOCHAT_REAL_DATA, left out when it is not set) and the
prose, documentation and source files of the installed Python packages, no 4,096 characters twice. Peers are installed
into folders of their own (`--peers`), since the published `rustbpe` has our import name. Each run is a process of its own:
seconds (and CPU seconds, of all threads) are those of the training call, which reads the text from a file through the same generator for all
(gigatoken reads files only); memory is the peak of the process less what it had before. Runs of the peers alternate.
Results are kept by run in `results/bpe_train.json`; `--table` prints them as in `results/bpe_train.md`.
"""
import argparse
import gzip
import hashlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "bpe_train.json"
PEERS = {"rustbpe": "rustbpe==0.1.0", "gigatoken": "gigatoken==0.10.0", "tokenizers": "tokenizers==0.23.3"}
NANOCHAT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
KINDS = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".pxd", ".pyx", ".html", ".ts", ".tex"}


# -- text ------------------------------------------------------------------------------------------------------------

def documents(folders: list[Path]) -> Iterator[str]:
    "The readable files of the folders, each content once."
    seen = set()
    for path in (p for folder in folders for p in sorted(folder.rglob("*"))):
        packed = path.name.endswith((".txt.gz", ".jsonl.gz"))
        if not (packed or path.suffix in KINDS) or not path.is_file(): continue
        raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        if (digest := hashlib.sha256(raw).digest()) in seen or (len(raw) > 2e6 and not packed): continue
        seen.add(digest)
        try: text = raw.decode().replace("\0", " ")
        except UnicodeDecodeError: continue
        if path.name.endswith(".jsonl.gz"):
            rows = (json.loads(line).values() for line in text.splitlines())
            text = "\n\n".join(value for row in rows for value in row if isinstance(value, str))
        yield text


def write_corpora(folder: Path, sizes: list[int]) -> dict[int, Path]:
    "Files of so many megabytes, records of up to 4,096 characters with NUL between them, all from one shuffle."
    folder.mkdir(parents=True, exist_ok=True)
    mix = "real" if os.environ.get("NANOCHAT_REAL_DATA") else "code"          # two mixes, not one name
    files = {size: folder / f"{mix}-{size}.txt" for size in sizes}
    if all(file.is_file() for file in files.values()): return files
    import site, sysconfig
    roots = [Path(site.getsitepackages()[0]), Path(sysconfig.get_paths()["stdlib"])]
    if real := os.environ.get("NANOCHAT_REAL_DATA"): roots += [Path(real) / "text", Path(real) / "chat"]
    records = dict.fromkeys(text[i:i + 4096] for text in documents(roots) for i in range(0, len(text), 4096))
    records = [record.encode() for record in records]
    random.Random(0).shuffle(records)
    for size in sizes:
        total, chosen = 0, []
        for record in records:
            if total >= size * 1e6: break
            chosen.append(record)
            total += len(record) + 1
        if total < size * 1e6: raise SystemExit(f"only {total / 1e6:.0f} MB of text here, not {size}")
        files[size].write_bytes(b"\0".join(chosen))
    return files


def write_microworld(folder: Path, megabytes: int = 10) -> Path:
    from nanochat.microworld import corpus
    path = folder / "microworld.txt"
    if path.is_file(): return path
    path.write_bytes(b"\0".join(doc.text.encode() for doc in corpus(megabytes * 1_000_000)))
    return path


def stream(path: str) -> Iterator[str]:
    "The records of a file, a megabyte of it in memory."
    with open(path, "rb") as file:
        rest = b""
        while block := file.read(1 << 20):
            *whole, rest = (rest + block).split(b"\0")
            for record in whole: yield record.decode()
        yield rest.decode()


# -- one run, in a process of its own ----------------------------------------------------------------------------------

def train_ours(path: str, size: int, pattern: str, threads: int) -> int:
    from rustbpe import Tokenizer
    made = Tokenizer()
    yield
    made.train_from_iterator(stream(path), size, pattern=pattern, threads=threads)
    yield made.vocab_size


def train_rustbpe(path: str, size: int, pattern: str, threads: int) -> int:
    import rustbpe
    made = rustbpe.Tokenizer()
    yield
    made.train_from_iterator(stream(path), size, pattern=pattern)
    yield made.vocab_size


def train_gigatoken(path: str, size: int, pattern: str, threads: int) -> int:
    import gigatoken
    source = gigatoken.TextFileSource([path], separator=b"\0")
    yield
    vocabulary, _ = gigatoken.train_bpe(source, size, [])
    yield len(vocabulary)


def train_tokenizers(path: str, size: int, pattern: str, threads: int) -> int:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    yield
    made.train_from_iterator(stream(path), trainer)
    yield made.get_vocab_size()


TRAINERS = {"ours": train_ours, "rustbpe": train_rustbpe, "gigatoken": train_gigatoken, "tokenizers": train_tokenizers}


def peak() -> float:
    "Most memory this process ever had, in MB. (On Linux not from getrusage, which starts with the parent's peak.)"
    try: return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20      # macOS counts bytes


def child(name: str, path: str, size: int, pattern: str, threads: int):
    "Train once, on as many cores as threads, and print what it took."
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    run = TRAINERS[name](path, size, pattern, threads)
    next(run)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    tokens = next(run)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak(), "before_mb": before, "tokens": tokens}))


def run_child(name: str, path: Path, size: int, pattern: str, threads: int, peers: Path) -> dict:
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": ""}
    if name != "ours": env["PYTHONPATH"] = str(peers / name)
    command = [sys.executable, __file__, "--child", name, str(path), str(size), pattern, str(threads)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, cwd=tempfile.gettempdir())
    if done.returncode: raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def install(peers: Path):
    "Each peer in a folder of its own; what is there stays."
    for name, what in PEERS.items():
        if (peers / name / name).is_dir(): continue
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "pip", "install", "-q", "--python", sys.executable, "--target", peers / name, what], check=True)


# -- encoding --------------------------------------------------------------------------------------------------------

def encoding(path: Path, threads: int, repeat: int) -> list[dict]:
    "MB/s of tiktoken and of ours on the same text and ranks, calls alternating; ids must be equal."
    import tiktoken
    from rustbpe import Tokenizer
    texts, rows = list(stream(str(path))), []
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for size in (4096, 32768):
        made = Tokenizer()
        made.train_from_iterator(texts, size)
        ranks = dict(made.get_mergeable_ranks())
        peer = tiktoken.Encoding("peer", pat_str=NANOCHAT, mergeable_ranks=ranks, special_tokens={})
        fresh = Tokenizer.from_mergeable_ranks(list(ranks.items()))         # with a cold cache
        calls = {"ours": lambda: fresh.batch_encode(texts, threads=threads),
                 "tiktoken": lambda: peer.encode_ordinary_batch(texts, num_threads=threads)}
        assert calls["ours"]() == calls["tiktoken"](), "ids differ"
        taken = {name: [] for name in calls}
        for _ in range(repeat):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
        for name, seconds in taken.items():
            rate = megabytes / statistics.median(seconds)
            rows.append({"what": "encode", "name": name, "vocabulary": size, "threads": threads, "mb_s": round(rate, 1)})
            print(f"encode {size:6,} {threads} threads {name:10s} {rate:7.1f} MB/s", flush=True)
    return rows


# -- the steps of the lesson -----------------------------------------------------------------------------------------

def ladder(folder: Path, repeat: int):
    "Medians of the crate's example `ladder` on 50 MB, kept in `results/bpe_ladder.json`."
    path = write_corpora(folder, [50])[50]
    command = ["cargo", "run", "-q", "--release", "--locked", "--example", "ladder", "--", str(path), "32768", "2"]
    runs = []
    for _ in range(repeat):
        said = subprocess.run(command, cwd=HERE.parent / "rustbpe" / "core", text=True, capture_output=True, check=True).stdout
        runs.append([json.loads(line) for line in said.splitlines()])
        print(said, flush=True)
    middle = lambda several, key: round(statistics.median(run[key] for run in several), 3)
    steps = [step[0] | {key: middle(step, key) for key in ("seconds", "cpu")} for step in zip(*runs)]
    kept = {"command": "python benchmarks/bpe_train.py --ladder", "text": "50 MB", "vocabulary": 32768, "repeat": repeat,
            "machine": machine(), "steps": steps}
    (RESULTS.parent / "bpe_ladder.json").write_text(json.dumps(kept, indent=1) + "\n")


# -- results ---------------------------------------------------------------------------------------------------------

def machine() -> dict:
    try: cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): cpu = platform.processor()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True, capture_output=True).stdout.strip()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "commit": commit,
            "peers": PEERS, "tiktoken": version("tiktoken")}


KEY = ("what", "name", "text", "split", "vocabulary", "threads")


def refuse_another_machine(path: Path):
    "Stop, before anything is measured, where the results are of another machine: the head of the file names one."
    if not path.is_file(): return
    here, there = machine(), json.loads(path.read_text())["machine"]
    if any(here[k] != there[k] for k in ("cpu", "cores")): raise SystemExit(f"{path} is of another machine; give --out another name")


def keep(rows: list[dict], path: Path):
    "Adds rows to the results; a row measured again replaces the old one."
    kept = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    table = {tuple(row.get(k) for k in KEY): row for row in kept["rows"] + rows}
    kept = {"command": "NANOCHAT_REAL_DATA=... python benchmarks/bpe_train.py", "machine": machine(),
            "rows": sorted(table.values(), key=lambda row: [str(row.get(k)).rjust(9) for k in KEY])}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    path.with_suffix(".md").write_text(table_of(kept))


def table_of(kept: dict) -> str:
    "The results as Markdown: seconds, memory and the ratio to ours."
    m = kept["machine"]
    lines = ["# Byte-pair encoding: ours and published trainers", "",
             f"`{kept['command']}` on {m['cpu']}, {m['cores']} cores, Python {m['python']}; "
             f"{', '.join(m['peers'].values())}, tiktoken {m['tiktoken']}. Medians of the runs (`repeat` in the JSON); memory is "
             "the peak of the whole process. On a machine that does other work, compare CPU seconds.", "",
             "| text | split | vocabulary | threads | trainer | seconds | times ours | CPU seconds | times ours | peak MB | tokens |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    trained = [row for row in kept["rows"] if row["what"] == "train"]
    same = ("text", "split", "vocabulary", "threads")
    ours = {tuple(row[k] for k in same): row for row in trained if row["name"] == "ours"}
    order = lambda row: ([str(row[k]).rjust(12) for k in same], row["seconds"])
    for row in sorted(trained, key=order):
        base = ours[tuple(row[k] for k in same)]
        lines.append(f"| {row['text']} | {row['split']} | {row['vocabulary']:,} | {row['threads']} | {row['name']} | {row['seconds']:.2f} "
                     f"| {row['seconds'] / base['seconds']:.1f} | {row['cpu']:.2f} | {row['cpu'] / base['cpu']:.1f} "
                     f"| {row['peak_mb']:.0f} | {row['tokens']:,} |")
    lines += ["", "| encoding, vocabulary | threads | encoder | MB/s |", "|---|---|---|---|"]
    lines += [f"| {row['vocabulary']:,} | {row['threads']} | {row['name']} | {row['mb_s']} |" for row in kept["rows"] if row["what"] == "encode"]
    return "\n".join(lines) + "\n"


def jobs(files: dict, world: Path | None, vocabularies: list[int]) -> list[tuple]:
    "(text, file, split, pattern, vocabulary, trainers) of every comparison."
    real = [(f"{size} MB", path, v) for size, path in files.items() for v in vocabularies]
    if world: real += [("microworld", world, v) for v in vocabularies]
    found = [(text, path, "nanochat", NANOCHAT, v, ("ours", "rustbpe", "tokenizers")) for text, path, v in real]
    return found + [(text, path, "GPT-2", GPT2, v, ("ours", "gigatoken")) for text, path, v in real]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 50, 200], help="megabytes of real text")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-microworld", action="store_true")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "nanochat-peers")
    parser.add_argument("--splits", nargs="+", default=["nanochat", "GPT-2"], choices=["nanochat", "GPT-2"])
    parser.add_argument("--text", type=Path, default=Path(tempfile.gettempdir()) / "nanochat-bpe-text", help="files made before are used again")
    parser.add_argument("--table", action="store_true", help="print the kept results and stop")
    parser.add_argument("--ladder", action="store_true", help="measure the steps of lesson 01a instead (32,768 entries, two threads)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results, kept by run")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, path, size, pattern, threads = args.child
        return child(name, path, int(size), pattern, int(threads))
    if args.table: return print(table_of(json.loads(args.out.read_text())))
    if args.ladder: return ladder(args.text, args.repeat)
    refuse_another_machine(args.out)
    install(args.peers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if max(args.threads) > cores: raise SystemExit(f"{max(args.threads)} threads asked for, {cores} cores here")
    files = write_corpora(args.text, args.sizes)
    world = None if args.no_microworld else write_microworld(args.text)
    for threads in args.threads:
        for text, path, split, pattern, size, names in jobs(files, world, args.vocabularies):
            if split not in args.splits: continue
            runs = {name: [] for name in names}
            for _ in range(args.repeat):
                for name in names: runs[name].append(run_child(name, path, size, pattern, threads, args.peers))
            rows = []
            for name, several in runs.items():
                middle = {k: round(statistics.median(run[k] for run in several), 3) for k in several[0]}
                rows.append({"what": "train", "name": name, "text": text, "split": split, "vocabulary": size,
                             "threads": threads, "repeat": args.repeat, "commit": machine()["commit"], **middle})
                print(f"{text:10s} {split:8s} {size:6,} {threads} threads {name:10s} {middle['seconds']:7.2f} s "
                      f"{middle['peak_mb']:6.0f} MB  {middle['tokens']:,} tokens", flush=True)
            keep(rows, args.out)
        if 10 in files: keep(encoding(files[10], threads, max(args.repeat, 5)), args.out)
    print(table_of(json.loads(args.out.read_text())))


if __name__ == "__main__": main()
