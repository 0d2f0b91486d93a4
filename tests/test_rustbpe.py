"""The Rust trainer: equal merges, Python's errors, and good manners (GIL, signals, iterators)."""
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat.tokenizer import SPLIT_PATTERN, Tokenizer, train_bpe

try:
    from rustbpe import Tokenizer as Rust
except ImportError:
    pytest.skip("the Rust crate is not built: uv pip install ./rustbpe", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["the", " cat", " sat", "\n\n", "   ", " 123", "4", "!?", " it's", "é", "日本", "🙂", "aaa", "ba", "ab", " \t"]


def random_texts(seed: int, n: int = 30) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(WORDS, k=draw.randrange(50))) for _ in range(n)]


def trained(texts, vocab_size=320, **options) -> Rust:
    rust = Rust()
    rust.train_from_iterator(texts, vocab_size, **options)
    return rust


@pytest.mark.parametrize("seed", range(20))
def test_merges_equal_pure_python(seed):
    texts = random_texts(seed)
    ranks = trained(texts).get_mergeable_ranks()
    assert dict(ranks) == train_bpe(texts, 320)
    assert [rank for _, rank in ranks] == list(range(len(ranks)))


@pytest.mark.parametrize("buffer_size", [1, 2, 7, 10_000])
def test_buffers_do_not_matter(buffer_size):
    texts = random_texts(5)
    assert trained(iter(texts), buffer_size=buffer_size).get_mergeable_ranks() == trained(texts).get_mergeable_ranks()


def test_another_pattern():
    pattern = r"\p{N}{1,3}|\p{L}+|\s+|[^\s\p{L}\p{N}]+"
    rust = trained(random_texts(6), pattern=pattern)
    assert rust.get_pattern() == pattern and dict(rust.get_mergeable_ranks()) == train_bpe(random_texts(6), 320, pattern)


@pytest.mark.parametrize("seed", range(5))
def test_encode_equals_tiktoken(seed):
    rust = trained(random_texts(seed))
    tok = Tokenizer(dict(rust.get_mergeable_ranks()))
    fresh = random_texts(seed + 100) + ["a" * 5000, "", "ab" * 3000]
    assert rust.batch_encode(fresh) == [rust.encode(t) for t in fresh] == [tok.encode(t) for t in fresh]
    assert [rust.decode(rust.encode(t)) for t in fresh] == fresh


def test_a_new_one_knows_the_bytes_and_our_pattern():
    rust = Rust()
    assert rust.vocab_size == 256 and rust.get_pattern() == SPLIT_PATTERN
    assert rust.get_mergeable_ranks() == [(bytes([b]), b) for b in range(256)]
    assert rust.decode([0xF0, 0x9F]) == b"\xf0\x9f".decode(errors="replace")


def test_training_ends_early():
    assert trained(["ab"], 1000).vocab_size == 257
    assert trained([], 1000).vocab_size == 256


def test_half_a_surrogate_pair():
    broken = ["a\ud83d\ud83d b"] * 3
    assert dict(trained(broken, 262).get_mergeable_ranks()) == train_bpe(broken, 262)


def exploding():
    yield "some text"
    raise LookupError("the iterator's own")


@pytest.mark.parametrize("texts,size,options,error,message", [
    (["a"], 255, {}, ValueError, "vocab_size"), (["a"], -1, {}, ValueError, "vocab_size"),
    (["a"], 300, {"pattern": "("}, ValueError, "pattern"), (["a"], 300, {"threads": 0}, ValueError, "threads"), (["a"], 300, {"buffer_size": 0}, ValueError, "buffer_size"),
    ([5], 300, {}, TypeError, "int"), (["a", b"b"], 300, {}, TypeError, "bytes"), (["a", None], 300, {}, TypeError, "None"),
    ("one string", 300, {}, TypeError, "one string"), (5, 300, {}, TypeError, "iterable"),
    (None, 300, {}, TypeError, "iterable")])
def test_errors_and_the_old_model_stays(texts, size, options, error, message):
    rust = trained(random_texts(1))
    before = rust.get_mergeable_ranks()
    with pytest.raises(error, match=message): rust.train_from_iterator(texts, size, **options)
    assert rust.get_mergeable_ranks() == before


def test_the_iterators_exception_comes_through():
    with pytest.raises(LookupError, match="own"): trained(exploding())
    with pytest.raises(LookupError, match="own"): trained(exploding(), buffer_size=1)


def test_a_run_too_long_for_the_regex_is_an_error_and_no_panic():
    "A pattern of one's own goes to the regex engine, whose patience ends; the scanners have no such limit."
    own, long = SPLIT_PATTERN + "|x", "x" + " " * 3_000_000
    with pytest.raises(ValueError, match="split pattern"): trained([long], pattern=own)
    with pytest.raises(ValueError, match="split pattern"): trained(["ab"], pattern=own).encode(long)
    with pytest.raises(ValueError, match="split pattern"): trained([long] * 9, pattern=own, threads=2, buffer_size=1)
    assert trained([long], 270).encode(long)[0] == ord("x")


def test_unknown_ids_are_an_error():
    with pytest.raises(ValueError, match="256"): Rust().decode([65, 256])


def test_other_threads_run_while_it_counts():
    "With the GIL held, the other thread could not count up during the call."
    texts, ticks, done = ["the cat sat on the mat " * 2000] * 4000, [], threading.Event()
    def tick():
        while not done.is_set(): ticks.append(None); done.wait(0.001)
    thread = threading.Thread(target=tick)
    thread.start()
    before = len(ticks)
    trained(texts, buffer_size=1000)
    after = len(ticks)
    done.set(); thread.join()
    assert after - before > 5


def test_a_signal_ends_the_training():
    "SIGINT during endless input becomes KeyboardInterrupt, not a dead process."
    code = ("import signal\nfrom itertools import chain, repeat\nfrom rustbpe import Tokenizer\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"        # a background job ignores it
            "def first():\n    print('ready', flush=True)\n    yield 'the cat sat '\n"
            "try: Tokenizer().train_from_iterator(chain(first(), repeat('the cat sat ')), 300)\n"
            "except KeyboardInterrupt: print('interrupted')")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=300)       # a hang fails; a busy machine does not
    finally: child.kill()       # its input is endless
    assert said == "interrupted\n" and child.returncode == 0


@pytest.mark.slow
def test_a_signal_ends_the_merging():
    "The timer goes off when all texts are read; the merges that would follow take seconds."
    draw = random.Random(0)
    text = " ".join("".join(draw.choices("abcdefghij", k=12)) for _ in range(400_000))
    def then_a_signal():
        yield text
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    def interrupt(*_): raise KeyboardInterrupt("now")
    before, rust = signal.signal(signal.SIGALRM, interrupt), Rust()
    try:
        with pytest.raises(KeyboardInterrupt, match="now"): rust.train_from_iterator(then_a_signal(), 1_000_000)
    finally: signal.signal(signal.SIGALRM, before)
    assert rust.vocab_size == 256


def test_progress_is_told():
    told, texts = [], random_texts(7)
    trained(texts, 300, progress=lambda *news: told.append(news))
    n_bytes = sum(len(text.encode()) for text in texts)
    assert told[-1] == ("merge", 44, 44) and ("read", n_bytes, None) in told


def test_an_error_of_the_progress_function_comes_through():
    def progress(stage, done, total): raise LookupError("its own")
    with pytest.raises(LookupError, match="its own"): trained(random_texts(7), progress=progress)


def test_threads_do_not_matter():
    texts, sizes = random_texts(8, n=300), (1, 2, 3, 8)
    first, *others = [trained(iter(texts), 400, threads=n, buffer_size=3).get_mergeable_ranks() for n in sizes]
    assert all(other == first for other in others)


@pytest.mark.slow
def test_memory_stays_bounded_while_it_streams():
    "160 MB of text through an iterator; what is held are a few batches and the distinct pieces."
    code = ("import random, resource\nfrom rustbpe import Tokenizer\ndraw = random.Random(0)\n"
            "words = [''.join(draw.choices('etaoinshrdlu', k=draw.randrange(2, 11))) for _ in range(20_000)]\n"
            "texts = [' '.join(draw.choices(words, k=700)) for _ in range(400)]\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "before = peak()\n"
            "Tokenizer().train_from_iterator((texts[i % 400] + str(i) for i in range(35_000)), 4096)\n"
            "print(peak() - before)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert float(said) < 60


def test_tokenizer_trains_with_it(capsys):
    texts = random_texts(2)
    made = Tokenizer.train(iter(texts), 300)
    assert made.ranks == train_bpe(texts, 291) and "not built" not in capsys.readouterr().out


def test_stub_file_names_what_there_is():
    stub = (ROOT / "rustbpe" / "rustbpe.pyi").read_text(encoding="utf-8")
    for name in (n for n in dir(Rust) if not n.startswith("_")): assert f"def {name}(" in stub


def test_the_built_package_ships_its_types():
    "The stub lies beside the binary, with the marker that tells type checkers to read it."
    import rustbpe
    folder = Path(rustbpe.__file__).parent
    assert (folder / "__init__.pyi").read_text(encoding="utf-8") == (ROOT / "rustbpe" / "rustbpe.pyi").read_text(encoding="utf-8")
    assert (folder / "py.typed").is_file()
