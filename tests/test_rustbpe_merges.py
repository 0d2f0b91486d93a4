"""Merges, ids and cuts of the Rust crate against slow references, `tokenizers`, tiktoken and the regex module."""
import gzip
import inspect
import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tiktoken

import nanochat.microworld
from nanochat.tokenizer import SPLIT_PATTERN, merge, train_bpe

try:
    from rustbpe import Tokenizer as Rust, split
except ImportError:
    pytest.skip("the Rust crate is not built: uv pip install ./rustbpe", allow_module_level=True)

DATA = os.environ.get("NANOCHAT_REAL_DATA")
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
THREE = SPLIT_PATTERN.replace("{1,2}", "{1,3}")
LANGUAGES = """All human beings are born free and equal in dignity and rights.
Alle Menschen sind frei und gleich an Würde und Rechten geboren.
Tous les êtres humains naissent libres et égaux en dignité et en droits.
Todos los seres humanos nacen libres e iguales en dignidad y derechos.
Все люди рождаются свободными и равными в своем достоинстве и правах.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
人人生而自由，在尊严和权利上一律平等。
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"""


def corpora() -> dict[str, list[str]]:
    "Six small corpora that differ in what they ask of a tokenizer; no file and no download."
    draw = random.Random(0)
    world = [doc.text for doc in nanochat.microworld.corpus(30_000)]
    code = inspect.getsource(nanochat.microworld)[:40_000]
    emoji = ["".join(draw.choices("🙂🙃👩‍👩‍👧🏽🇩🇪🇫🇷❤️🔥💯 !a", k=60)) for _ in range(150)]
    digits = [" ".join(str(draw.randrange(10 ** draw.randrange(1, 9))) for _ in range(40)) for _ in range(100)]
    noise = [draw.randbytes(200).decode(errors="replace") for _ in range(60)]
    return {"english": world, "code": code.split("\n\n"), "languages": LANGUAGES.split("\n") * 2, "emoji": emoji,
            "digits": digits, "bytes": noise}


CORPORA = corpora()


def slow_bpe(texts: list[str], vocab_size: int, pattern: str = SPLIT_PATTERN, order: list[int] | None = None) -> list[bytes]:
    """Byte-pair encoding that counts every pair afresh for every merge.

    On equal counts the smaller pair wins. `order` says which byte is the smallest, the next, and so on (None:
    0, 1, 2, ...): another order breaks ties another way.
    """
    order = order or list(range(256))
    place = {byte: i for i, byte in enumerate(order)}
    words = Counter(piece.encode() for text in texts for piece in regex.findall(pattern, text))
    words = [([place[byte] for byte in word], n) for word, n in words.items()]
    tokens = [bytes([byte]) for byte in order]
    while len(tokens) < vocab_size:
        counts = Counter()
        for word, n in words:
            for pair in pairwise(word): counts[pair] += n
        if not counts: break
        a, b = min(counts, key=lambda p: (-counts[p], p))
        words = [(merge(word, (a, b), len(tokens)) if a in word else word, n) for word, n in words]
        tokens.append(tokens[a] + tokens[b])
    return tokens


@cache
def reference(name: str, pattern: str) -> list[bytes]:
    return slow_bpe(CORPORA[name], 400, pattern)


def trained(texts, vocab_size, **options) -> Rust:
    rust = Rust()
    rust.train_from_iterator(texts, vocab_size, **options)
    return rust


def tokens_of(rust: Rust) -> list[bytes]:
    return [token for token, _ in rust.get_mergeable_ranks()]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pattern", [SPLIT_PATTERN, THREE, GPT2, r"\S+|\s+"], ids=["nanochat", "three", "gpt2", "own"])
@pytest.mark.parametrize("name", CORPORA)
def test_merges_equal_a_slow_reference(name, pattern, threads):
    rust = trained(CORPORA[name], 400, pattern=pattern, threads=threads, buffer_size=7)
    assert tokens_of(rust) == reference(name, pattern)


@pytest.mark.parametrize("name", CORPORA)
def test_all_merges_there_are(name):
    "Until no pair is left, where every count is 1 and ties are all that decides."
    texts = CORPORA[name][:20]
    assert dict(trained(texts, 100_000).get_mergeable_ranks()) == train_bpe(texts, 100_000)


def alphabet() -> list[int]:
    "The bytes in the order in which `tokenizers` numbers them: by the printable characters that stand for them."
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return plain + others                                               # others are shown as 256, 257, ...


@pytest.mark.parametrize("name", CORPORA)
def test_the_reference_with_their_order_of_bytes_equals_tokenizers(name):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    order = alphabet()
    shown = {byte: chr(byte if byte < 256 and i < 188 else 256 + i - 188) for i, byte in enumerate(order)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([cut, level])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=level.alphabet(), show_progress=False)
    made.train_from_iterator(CORPORA[name], trainer)
    theirs = sorted(made.get_vocab().items(), key=lambda entry: entry[1])
    back = {character: byte for byte, character in shown.items()}
    theirs = [bytes(back[character] for character in token) for token, _ in theirs]
    ours = slow_bpe(CORPORA[name], 400, order=order)
    assert ours == theirs
    if name in ("english", "code"): assert ours[256:] != reference(name, SPLIT_PATTERN)[256:]      # ties do decide


def peer():
    "The published package of the same name, from the folder where benchmarks/bpe_train.py puts it."
    folder = os.environ.get("NANOCHAT_PEERS")
    if not folder or not (Path(folder) / "rustbpe").is_dir():
        pytest.skip("NANOCHAT_PEERS names no folder with the published rustbpe (benchmarks/bpe_train.py makes one)")
    return Path(folder) / "rustbpe"


@pytest.mark.parametrize("name", CORPORA)
def test_merges_equal_the_published_rustbpe(name):
    "In a process of its own: it has our import name."
    code = ("import json, sys; sys.path.insert(0, sys.argv[1]); import rustbpe; t = rustbpe.Tokenizer()\n"
            "t.train_from_iterator(iter(json.load(sys.stdin)), 2000, pattern=sys.argv[2])\n"
            "print(json.dumps([bytes(token).hex() for token, _ in t.get_mergeable_ranks()]))")
    said = subprocess.run([sys.executable, "-c", code, str(peer()), SPLIT_PATTERN], text=True, capture_output=True,
                          input=json.dumps(CORPORA[name]), check=True).stdout
    assert [bytes.fromhex(token) for token in json.loads(said)] == tokens_of(trained(CORPORA[name], 2000))


# -- ids -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("learned", CORPORA)
def test_ids_equal_tiktoken_on_every_corpus(learned):
    ranks = trained(CORPORA[learned], 1500).get_mergeable_ranks()
    ours = Rust.from_mergeable_ranks(ranks)
    theirs = tiktoken.Encoding("peer", pat_str=SPLIT_PATTERN, mergeable_ranks=dict(ranks), special_tokens={})
    texts = [text for corpus in CORPORA.values() for text in corpus] + ["", "a" * 999, "日本" * 999, "ab " * 99, "'" * 70]
    want = theirs.encode_ordinary_batch(texts, num_threads=1)
    for threads in (1, 2, 5): assert ours.batch_encode(texts, threads=threads) == want
    assert [ours.encode(text) for text in texts] == want
    assert [ours.decode(ids) for ids in want] == texts


def test_ids_equal_tiktoken_where_a_token_is_reached_by_other_merges():
    "Ranks that no training gives: `abc` can be had from `a` + `bc` alone, and `xyz` from no pair at all."
    tokens = [bytes([b]) for b in range(256)] + [b"bc", b"abc", b"ab", b"xyz", b"  ", b"    ", b"aaa", b"aa"]
    ranks = [(token, i) for i, token in enumerate(tokens)]
    ours = Rust.from_mergeable_ranks(ranks)
    theirs = tiktoken.Encoding("peer", pat_str=SPLIT_PATTERN, mergeable_ranks=dict(ranks), special_tokens={})
    draw = random.Random(3)
    texts = ["".join(draw.choices("abcxyz ", k=draw.randrange(200))) for _ in range(3000)]
    assert ours.batch_encode(texts) == theirs.encode_ordinary_batch(texts)


@pytest.mark.parametrize("ranks", [[], [(b"a", 0)], [(bytes([b]), b) for b in range(256)] + [(b"ab", 300)],
                                   [(bytes([b]), 255 - b) for b in range(256)], [(b"a", -1)] * 256])
def test_ranks_must_be_whole(ranks):
    with pytest.raises(ValueError, match="rank"): Rust.from_mergeable_ranks(ranks)


# -- cuts ------------------------------------------------------------------------------------------------------------

def random_text(draw: random.Random) -> str:
    "Characters from all of Unicode, mixed with what the patterns look for."
    parts = ["'s", "'S", "'ſ", "'ll", "'vE", "'", "  ", " ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "12", "345", "½", "Ⅷ",
             "word", "Ünï", "日本", "!?", "--", "_", "🙂", "\u0301", "\u200d", "\u180e", "\u0085", "\x1c", "\x1f"]
    draw_one = lambda: draw.choice(parts) if draw.random() < 0.8 else chr(draw.choice((draw.randrange(0xD800),
                                                                                      draw.randrange(0xE000, 0x110000))))
    return "".join(draw_one() for _ in range(draw.randrange(30)))


def only_one_knows() -> set[str]:
    "Characters that Python's regex module and Rust's engine class differently: they know different years of Unicode."
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    return set().union(*(set(split(every, p)) ^ set(regex.findall(p, every)) for p in (r"\p{L}", r"\p{N}", r"\s")))


@pytest.mark.parametrize("pattern", [SPLIT_PATTERN, THREE, GPT2], ids=["nanochat", "three", "gpt2"])
def test_cuts_equal_the_regex_module(pattern):
    "Python's regex is another engine, by another hand. The crate's own tests compare with Rust's, on any character."
    draw, cut, new = random.Random(4), regex.compile(pattern), only_one_knows()
    texts = ["".join(c for c in random_text(draw) if c not in new) for _ in range(5000)]
    for text in texts: assert split(text, pattern) == cut.findall(text), repr(text)


def test_ids_equal_tiktoken_on_random_unicode():
    "tiktoken's engine is Rust's too, so here any character will do."
    draw = random.Random(5)
    ranks = trained([random_text(draw) for _ in range(3000)], 3000).get_mergeable_ranks()
    theirs = tiktoken.Encoding("peer", pat_str=SPLIT_PATTERN, mergeable_ranks=dict(ranks), special_tokens={})
    texts = [random_text(draw) for _ in range(5000)]
    assert Rust.from_mergeable_ranks(ranks).batch_encode(texts) == theirs.encode_ordinary_batch(texts)


def real_texts():
    if not DATA: pytest.skip("NANOCHAT_REAL_DATA is not set to a folder of real data")
    files = sorted(p for p in Path(DATA).rglob("*") if p.is_file())
    if not files: pytest.skip("no files in NANOCHAT_REAL_DATA")
    for file in files:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        yield file.name, raw.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [SPLIT_PATTERN, THREE, GPT2], ids=["nanochat", "three", "gpt2"])
def test_cuts_equal_the_regex_module_on_every_file_of_real_data(pattern):
    cut = regex.compile(pattern)
    for name, text in real_texts(): assert split(text, pattern) == cut.findall(text), name
