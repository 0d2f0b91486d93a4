"""The tokenizer against slow references, Hugging Face tokenizers and tiktoken; rendering, files and hostile input."""
import base64
import gzip
import json
import os
import pickle
import random
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tiktoken
import torch

from nanochat import tokenizer as module
from nanochat.tokenizer import (SPECIALS, SPLIT_PATTERN, Tokenizer, merge, stream_decoder, train_bpe,
                                visualize)
from nanochat.workshop import UserError

PROSE = ["The cat sat on the mat. The dog didn't; it's 12345 o'clock!\n\n  Then they'll go,  won't they?",
         "naïve café: 東京は日本の首都です。 서울 Привет мир 🙂👍🏽 👨‍👩‍👧",
         "def f(x):\n\treturn x**2 + 1\r\n\r\n    # 2024-01-02   \n", "<|bos|> typed <|assistant_end|> by hand"]
ALPHABET = ["a", "b", "ab", "the", " the", " ", "   ", "\n", "\r\n", "\t", "1", "22", "333", "!", "...", "'s", "'LL", "'ſ",
            "é", "ß", "日本", "語", "🙂", "👨‍👩‍👧", "\u200b", "\u00a0", "\x1c", "\x85", "\u2028", "́", "İ", "ǅ", "½", "٣"]


def random_texts(seed: int, n: int = 6, length: int = 60) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(ALPHABET, k=length)) for _ in range(n)]


def slow_train(texts, vocab_size, byte_order=range(256), pattern=SPLIT_PATTERN) -> list[bytes]:
    "Tokens by id. Counts everything afresh for each merge; ties go to the pair with the smaller ids."
    first = {byte: i for i, byte in enumerate(byte_order)}
    tokens = [bytes([byte]) for byte in byte_order]
    words = [[first[b] for b in piece.encode()] for text in texts for piece in regex.findall(pattern, text)]
    while len(tokens) < vocab_size:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts: break
        a, b = min(counts, key=lambda pair: (-counts[pair], pair))
        for word in words:
            i = 0
            while i < len(word) - 1:
                if word[i] == a and word[i + 1] == b: word[i:i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[a] + tokens[b])
    return tokens


def slow_encode(tokens: list[bytes], text: str) -> list[int]:
    "In each piece, join the neighbours whose union has the lowest id, until none has one."
    ids = {token: i for i, token in enumerate(tokens)}
    out = []
    for piece in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([b]) for b in piece.encode()]
        while True:
            joins = [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
            if not joins: break
            _, i = min(joins)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ids[part] for part in parts]
    return out


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer(train_bpe(PROSE * 3, 400))


# -- training ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(12))
def test_merges_equal_the_slow_reference(seed):
    texts = random_texts(seed)
    assert list(train_bpe(texts, 340)) == slow_train(texts, 340)


SHOWN = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xAD)]
LETTERS_ORDER = SHOWN + [b for b in range(256) if b not in SHOWN]      # GPT-2 and tokenizers number the bytes so


def hugging_face(texts, vocab_size, pattern=SPLIT_PATTERN) -> list[bytes]:
    "Tokens by id, learned by the tokenizers package. It writes a byte that does not print as chr(256), chr(257), ..."
    from tokenizers import Regex, Tokenizer as HF, models, pre_tokenizers, trainers
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf = HF(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=0, show_progress=False,
                                                      initial_alphabet=level.alphabet()))
    byte = dict(zip(sorted(level.alphabet()), LETTERS_ORDER))
    return [bytes(byte[c] for c in token) for token in sorted(hf.get_vocab(), key=hf.get_vocab().get)]


LANGUAGES = ["Alle Menschen sind frei und gleich an Würde und Rechten geboren.", "Все люди рождаются свободными и равными.",
             "すべての人間は、生まれながらにして自由である。", "모든 인간은 태어날 때부터 자유롭다.", "सभी मनुष्य स्वतंत्र हैं।",
             "يولد جميع الناس أحرارا متساوين.", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι.", "כל בני אדם נולדו בני חורין."]


def corpora() -> dict[str, list[str]]:
    "Six kinds of text, made here or found in every Python."
    import inspect

    from pydoc_data.topics import topics
    draw = random.Random(6)
    emoji = [chr(c) for c in (*range(0x1F600, 0x1F640), 0x200D, 0x1F3FD, 0xFE0F, 0x20)]
    return {
        "english": [topics[name] for name in sorted(topics)[:12]],
        "code": [inspect.getsource(json), inspect.getsource(random)],
        "languages": [line for line in LANGUAGES for _ in range(draw.randrange(1, 4))],
        "emoji": ["".join(draw.choices(emoji, k=300)) for _ in range(10)],
        "digits": [" ".join(str(draw.randrange(10**6)) for _ in range(300)) for _ in range(5)],
        "noise": [draw.randbytes(600).decode(errors="replace") for _ in range(10)],
    }


@pytest.mark.parametrize("kind", corpora())
def test_merges_equal_hugging_face(kind):
    "tokenizers numbers the bytes in another order, and ties follow it: given that order, every token is equal."
    texts = corpora()[kind]
    theirs = train_bpe(texts, 800, byte_order=LETTERS_ORDER)
    assert hugging_face(texts, 800) == list(theirs)
    assert list(theirs.values()) == list(range(len(theirs)))


@pytest.mark.parametrize("kind", corpora())
def test_both_orders_of_bytes_equal_the_slow_reference(kind):
    texts = [text[:2000] for text in corpora()[kind][:8]]
    assert list(train_bpe(texts, 340)) == slow_train(texts, 340)
    assert list(train_bpe(texts, 340, byte_order=LETTERS_ORDER)) == slow_train(texts, 340, LETTERS_ORDER)


def test_any_order_of_bytes_decides_ties():
    draw = random.Random(2)
    for seed in range(4):
        order = draw.sample(range(256), 256)
        assert list(train_bpe(random_texts(seed), 320, byte_order=order)) == slow_train(random_texts(seed), 320, order)
    for bad in (range(255), [0] * 256, range(1, 257)):
        with pytest.raises(ValueError, match="each byte once"): train_bpe(["a"], 300, byte_order=bad)


def test_the_textbook_example():
    "aaabdaaabac of Gage (1994): first aa, then ab, then their union."
    assert list(train_bpe(["aaabdaaabac"], 259))[256:] == [b"aa", b"ab", b"aaab"]


def test_ties_go_to_the_smaller_pair():
    assert list(train_bpe(["zz yy xx zz yy xx"], 257))[256] == b" x"
    assert list(train_bpe(["ba", "bc", "yz"], 259))[256:] == [b"ba", b"bc", b"yz"]


def test_training_ends_early_and_never_repeats_a_token():
    assert len(train_bpe(["ab"], 1000)) == 257
    assert len(train_bpe([], 300)) == 256
    for seed in range(5):
        tokens = slow_train(random_texts(seed), 500)
        assert len(set(tokens)) == len(tokens) == len(train_bpe(random_texts(seed), 500))


def test_order_of_texts_and_chunks_do_not_matter():
    texts = random_texts(1)
    assert train_bpe(texts, 330) == train_bpe(reversed(texts), 330) == train_bpe(iter(texts), 330)


def test_bad_requests():
    with pytest.raises(ValueError, match="256"): train_bpe(["a"], 255)
    with pytest.raises(TypeError, match="one string"): train_bpe("one string", 300)
    with pytest.raises(TypeError, match="one string"): Tokenizer.train("one string", 300)
    with pytest.raises(UserError, match="265"): Tokenizer.train(["a"], 264)
    with pytest.raises(regex.error): train_bpe(["a"], 300, "(")
    with pytest.raises(UserError): Tokenizer({b"a": 0})
    with pytest.raises(UserError): Tokenizer({bytes([b]): b for b in range(256)} | {b"ab": 300})


@pytest.mark.parametrize("seed", range(8))
def test_merge_is_undone_by_expanding(seed):
    draw = random.Random(seed)
    ids, pair = draw.choices(range(3), k=30), (draw.randrange(3), draw.randrange(3))
    merged = merge(ids, pair, 9)
    assert [i for m in merged for i in (pair if m == 9 else (m,))] == ids
    assert pair not in pairwise(merged)


def test_python_training_serves_where_rust_is_missing(monkeypatch, capsys):
    "From the repository's root `import rustbpe` finds the folder; the fallback must still work, and speak once."
    monkeypatch.setitem(__import__("sys").modules, "rustbpe", type(os)("rustbpe"))
    module._rust_trainer.cache_clear()
    try:
        for _ in range(2): made = Tokenizer.train(PROSE, 300)
    finally:
        module._rust_trainer.cache_clear()
    assert capsys.readouterr().out.count("not built") == 1
    assert made.ranks == train_bpe(PROSE, 291) and made.vocab_size == 300


def test_a_batch_has_the_same_ids_with_and_without_the_crate(monkeypatch):
    texts = [*random_texts(3), *PROSE, "", " " * 250_000, "a\ud800b", "日本 🙂 12345\r\n\t  x"]
    made = Tokenizer.train(PROSE, 400)
    want = [made.encode(text) for text in texts]
    assert made.encode_batch(texts) == want
    monkeypatch.setattr(made, "_rust", None)          # as where it is not built
    assert made.encode_batch(texts) == want


# -- encoding ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(6))
def test_ids_equal_a_slow_encoder_and_round_trip(seed):
    texts, fresh = random_texts(seed), random_texts(seed + 100)
    tok = Tokenizer(train_bpe(texts, 340))
    for text in fresh:
        assert tok.encode(text) == slow_encode(list(tok.ranks), text)
        assert tok.decode(tok.encode(text)) == text


def test_both_split_engines_agree_on_every_character():
    """Training splits with `regex`, encoding with tiktoken's engine: they must cut alike around any character that
    this Python's Unicode knows (the engines' own tables are of different years)."""
    split = regex.compile(SPLIT_PATTERN)
    known = [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(known), 512):
        text = "".join(f"a{c}b '{c} 1{c}2 {c}{c}\n" for c in known[start:start + 512])
        pieces = [piece.encode() for piece in split.findall(text)]
        ranks = {bytes([b]): b for b in range(256)}
        for piece in pieces: ranks.setdefault(piece, len(ranks))
        whole = tiktoken.Encoding("pieces", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
        ids = whole.encode_ordinary(text)
        assert [whole.decode_single_token_bytes(i) for i in ids] == pieces, f"near U+{ord(known[start]):04X}"


def test_typed_specials_never_become_special_ids(tok):
    for name in SPECIALS:
        for text in (name, f"a{name}b", f" {name}\n", name * 3):
            ids = tok.encode(text)
            assert max(ids) < tok.bos and tok.decode(ids) == text
            assert tok.encode_batch([text])[0] == ids
            rendered, _ = tok.render({"messages": [{"role": "user", "content": text}]})
            assert [i for i in rendered if i >= tok.bos] == [tok.bos, tok.user_start, tok.user_end]


def test_specials_have_the_last_ids_in_order(tok):
    assert [tok.special(name) for name in SPECIALS] == list(range(tok.vocab_size - 9, tok.vocab_size))
    assert (tok.bos, tok.user_start, tok.user_end, tok.assistant_start, tok.assistant_end, tok.python_start, tok.python_end,
            tok.output_start, tok.output_end) == tuple(tok.special(name) for name in SPECIALS)
    assert tok.decode([tok.bos, *tok.encode("hi"), tok.output_end]) == "<|bos|>hi<|output_end|>"
    with pytest.raises(UserError, match="no special token"): tok.special("<|end|>")


def test_batches_equal_single_texts(tok):
    texts = PROSE + random_texts(3) + [""]
    assert tok.encode_batch(texts) == [tok.encode(t) for t in texts] == tok.encode_batch(texts, threads=1)


def test_half_a_surrogate_pair_is_replaced_as_tiktoken_does(tok):
    broken = "a\ud83d b\udc00\ud83d\ude42"
    fixed = broken.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tok.encode(broken) == tok.encode(fixed)
    assert train_bpe([broken] * 2, 260) == train_bpe([fixed] * 2, 260)


def test_a_million_spaces_do_not_panic(tok):
    "tiktoken's own call ends in a panic here, which is no Exception and would kill a server."
    text = "x" + " " * 1_200_000 + "y"
    ids, hi = tok.encode_batch([text, "hi"])
    assert tok.decode(ids) == text and hi == tok.encode("hi")


def test_long_and_short_way_of_encoding_agree(tok, monkeypatch):
    texts = PROSE + random_texts(7)
    short = [tok.encode(t) for t in texts]
    monkeypatch.setattr(module, "_LONG_TEXT", 0)
    assert [tok.encode(t) for t in texts] == short == tok.encode_batch(texts)


# -- conversations -------------------------------------------------------------------------------------------------

def words(tok, text, value): return [(i, value) for i in tok.encode(text)]


TOOL = {"messages": [
    {"role": "user", "content": "What is 12+7?"},
    {"role": "assistant", "content": [
        {"type": "text", "text": "Let me see. "}, {"type": "python", "text": "12+7"},
        {"type": "python_output", "text": "19"}, {"type": "text", "text": " The answer is 19."}]},
    {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Any time."}]}


def test_render_and_mask_follow_the_table(tok):
    want = [(tok.bos, 0), (tok.user_start, 0), *words(tok, "What is 12+7?", 0), (tok.user_end, 0), (tok.assistant_start, 0),
            *words(tok, "Let me see. ", 1), (tok.python_start, 1), *words(tok, "12+7", 1), (tok.python_end, 1),
            (tok.output_start, 0), *words(tok, "19", 0), (tok.output_end, 0), *words(tok, " The answer is 19.", 1),
            (tok.assistant_end, 1), (tok.user_start, 0), *words(tok, "Thanks", 0), (tok.user_end, 0), (tok.assistant_start, 0),
            *words(tok, "Any time.", 1), (tok.assistant_end, 1)]
    ids, mask = tok.render(TOOL)
    assert list(zip(ids, mask, strict=True)) == want
    assert tok.render(TOOL, max_tokens=11) == (ids[:11], mask[:11])


def test_prompt_is_the_rendering_up_to_the_last_answer(tok):
    ids, _ = tok.render(TOOL)
    prompt = tok.render_prompt(TOOL)
    assert ids[:len(prompt)] == prompt and prompt[-1] == tok.assistant_start
    assert ids[len(prompt):] == [*tok.encode("Any time."), tok.assistant_end]
    assert tok.render_prompt({"messages": TOOL["messages"][:3]}) == prompt


def test_system_message_joins_the_first_user_message(tok):
    system = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    plain = {"messages": [{"role": "user", "content": "Be brief.\n\nHi"}]}
    assert tok.render(system) == tok.render(plain)
    assert len(system["messages"]) == 2, "the conversation itself stays as it was"


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "assistant", "assistant"], [],
                                   ["user", "system"], ["system"], ["system", "assistant"], ["tool"]])
def test_roles_that_do_not_alternate_are_refused(tok, roles):
    with pytest.raises(UserError) as caught:
        tok.render({"messages": [{"role": r, "content": "x"} for r in roles]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, 5, [{"type": "text", "text": 5}], [{"type": "image", "text": "x"}], ["x"],
                                     [{"type": "text"}]])
def test_content_that_is_no_text_is_refused(tok, content):
    with pytest.raises(UserError):
        tok.render({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]})


def test_user_content_must_be_a_string(tok):
    with pytest.raises(UserError): tok.render({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]})
    with pytest.raises(UserError): tok.render({"no": "messages"})


# -- bytes, streams, files -----------------------------------------------------------------------------------------

def test_token_bytes_are_raw_bytes_and_the_string_way_is_wrong(tok):
    lengths = tok.token_bytes()
    assert lengths.shape == (tok.vocab_size,) and lengths.dtype == torch.int64
    assert lengths[-9:].sum() == 0 and lengths[:256].eq(1).all()
    for text in PROSE + random_texts(5):
        assert int(lengths[torch.tensor(tok.encode(text))].sum()) == len(text.encode())
    through_strings = [len(tok.decode([i]).encode()) for i in range(256)]
    assert through_strings[0x80] == 3 and lengths[0x80] == 1, "U+FFFD takes three bytes: the bug of issue 693"


def test_stream_never_shows_half_a_character(tok):
    for text in PROSE + random_texts(9):
        stream, whole = stream_decoder(tok), ""
        for i in tok.encode(text):
            piece = stream.push(i)
            assert "�" not in piece
            whole += piece
        assert whole + stream.flush() == text
    stream = stream_decoder(tok)
    assert [stream.push(b) for b in "🙂".encode()[:3]] == ["", "", ""] and stream.flush() == "�"
    assert stream_decoder(tok).push(tok.bos) == "<|bos|>"


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "new" / "folder")
    back = Tokenizer.load(tmp_path / "new" / "folder")
    assert back.ranks == tok.ranks and back.pattern == tok.pattern and back.fingerprint() == tok.fingerprint()
    assert back.encode(PROSE[1]) == tok.encode(PROSE[1])
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["tokenizer.json"]
    first = (tmp_path / "new" / "folder" / "tokenizer.json").read_bytes()
    back.save(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "tokenizer.json").read_bytes() == first


def test_fingerprint_tells_tokenizers_apart(tok):
    fewer = Tokenizer(dict(list(tok.ranks.items())[:-1]))
    other = Tokenizer(tok.ranks, SPLIT_PATTERN.replace("{1,2}", "{1,3}"))
    assert len({tok.fingerprint(), fewer.fingerprint(), other.fingerprint()}) == 3
    assert len(tok.fingerprint()) == 64


def broken_files(tok, folder):
    tok.save(folder)
    good = json.loads((folder / "tokenizer.json").read_text())
    swapped = good | {"tokens": [*good["tokens"][:256], *reversed(good["tokens"][256:])]}
    yield from (b"", b"{", b"[]", b"null", b"\xff\xfe", json.dumps(good).encode()[:-40], pickle.dumps(good))
    yield from (json.dumps(good | change).encode() for change in (
        {"format": "other"}, {"pattern": "("}, {"pattern": 5}, {"specials": []}, {"tokens": []}, {"tokens": None},
        {"tokens": good["tokens"][1:]}, {"tokens": ["!!"] * 300}, {"tokens": [*good["tokens"], good["tokens"][-1]]},
        {"fingerprint": "0" * 64}, {"tokens": swapped["tokens"]}))


def test_broken_files_are_refused_in_one_line(tok, tmp_path):
    for n, raw in enumerate(broken_files(tok, tmp_path)):
        (tmp_path / "tokenizer.json").write_bytes(raw)
        with pytest.raises(UserError, match="broken") as caught: Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value), n
    with pytest.raises(UserError, match="no tokenizer"): Tokenizer.load(tmp_path / "nowhere")


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self): return (Path.touch, (tmp_path / "owned",))
    (tmp_path / "tokenizer.json").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError): Tokenizer.load(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_file_is_plain_json(tok, tmp_path):
    tok.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert [base64.b64decode(t) for t in stored["tokens"]] == list(tok.ranks)
    assert stored["pattern"] == SPLIT_PATTERN and stored["specials"] == list(SPECIALS)


def test_visualize_escapes_and_marks(tok):
    chat = {"messages": [{"role": "user", "content": "<script>alert(1)</script>"}, {"role": "assistant", "content": "no"}]}
    ids, mask = tok.render(chat)
    shown = visualize(tok, ids, mask)
    assert "<script" not in shown and shown.count("<span") == len(ids) and shown.count("font-weight:bold") == sum(mask)
    with pytest.raises(ValueError): visualize(tok, ids, mask[:-1])
    assert r">\xf0<" in visualize(tok, [240], [0]), "half a character shows its bytes"


# -- real text -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    folder = os.environ.get("NANOCHAT_REAL_DATA")
    if not folder: pytest.skip("NANOCHAT_REAL_DATA is not set")
    files = sorted(Path(folder).glob("text/*.txt.gz")) + sorted(Path(folder).glob("text/*.jsonl.gz"))
    if not files: pytest.skip(f"no text/*.gz in {folder}")
    texts = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            if file.name.endswith(".txt.gz"): texts.append(lines.read(200_000))
            else: texts += [json.loads(line)["text"][:5000] for line in lines][:60]
    return texts


def test_real_text_round_trips_and_counts_bytes(real_texts):
    tok = Tokenizer.train(real_texts, 2048)
    lengths = tok.token_bytes()
    for text in real_texts:
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert int(lengths[torch.tensor(ids)].sum()) == len(text.encode())


def test_real_text_merges_equal_hugging_face(real_texts):
    assert hugging_face(real_texts, 2000) == list(train_bpe(real_texts, 2000, byte_order=LETTERS_ORDER))


def test_real_text_shows_that_ties_matter():
    "On tinyshakespeare the two orders of bytes part at merge 191: a tie between space-quote and E T."
    file = Path(os.environ.get("NANOCHAT_REAL_DATA", "")) / "text" / "tinyshakespeare.txt.gz"
    if not file.is_file(): pytest.skip("NANOCHAT_REAL_DATA has no tinyshakespeare")
    text = gzip.decompress(file.read_bytes()).decode()
    ours, theirs = (list(train_bpe([text], 1000, byte_order=order))[256:] for order in (range(256), LETTERS_ORDER))
    assert next(i for i, (a, b) in enumerate(zip(ours, theirs), 1) if a != b) == 191
    assert ours[190:192] == theirs[191:189:-1] == [b" '", b"ET"]


def test_real_text_merges_equal_the_slow_reference(real_texts):
    texts = [text[:2000] for text in real_texts[:40]]
    assert list(train_bpe(texts, 300)) == slow_train(texts, 300)
    tok = Tokenizer(train_bpe(texts, 400))
    for text in texts[:10]: assert tok.encode(text[:500]) == slow_encode(list(tok.ranks), text[:500])
