"""Data: reading files and their faults, the split, packing against slow oracles, exact resume, downloads."""
import gzip
import hashlib
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat import data as d
from nanochat.workshop import UserError


# ---------------------------------------------------------------- reading

def write(folder, name, content: bytes):
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def parquet_bytes(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_every_format_plain_and_zipped(tmp_path, zipped):
    write(tmp_path, "a.txt" + zipped, "\ufeffnaïve\r\ntext".encode())
    write(tmp_path, "b.jsonl" + zipped, b'\xef\xbb\xbf{"text": "one", "id": 1}\n\n{"text": "two"}\r\n{"text": "  "}\n')
    write(tmp_path, "c.parquet" + zipped, parquet_bytes(text=["three", None, "four"], n=[1, 2, 3]))
    write(tmp_path, "ignored.csv", b"no")
    write(tmp_path, ".hidden.txt", b"no")
    assert [t.replace("\r", "") for t in d.read_texts(tmp_path)] == ["naïve\ntext", "one", "two", "three", "four"]


def test_one_file_and_subfolders(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    write(tmp_path / "x" / "y", "a.txt", b"deep")
    assert list(d.read_texts(tmp_path)) == ["deep"] == list(d.read_texts(tmp_path / "x" / "y" / "a.txt"))


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", b'{"text": "x"}\n{"text": oops}\n', ["a.jsonl", "line 2"]),
    ("a.jsonl", b'{"text": "x"}\n\n{"content": "y"}\n', ["line 3", "content"]),
    ("a.jsonl", b'["text"]\n', ["line 1", "list"]),
    ("a.jsonl", b'{"text": 5}\n', ["line 1", "text"]),
    ("a.txt", b"fine \xff\xfe", ["a.txt", "UTF-8", "byte 5"]),
    ("a.jsonl", b'{"text": "\xff"}\n', ["a.jsonl", "UTF-8"]),
    ("a.parquet", b"PAR1 nonsense", ["a.parquet", "cannot be read"]),
    ("a.parquet", parquet_bytes(body=["x"]), ["a.parquet", "body"]),
    ("a.txt", b"  \n ", ["hold no text"]),
    ("a.csv", b"x", [".txt", ".jsonl", ".parquet"]),
])
def test_faults_name_the_file_and_the_way_out(tmp_path, name, content, words):
    write(tmp_path, name, content)
    with pytest.raises(UserError) as e: list(d.read_texts(tmp_path))
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_zip_that_was_cut_off_or_is_none(tmp_path, name):
    content = gzip.compress(json.dumps({"text": "".join(map(str, range(5000)))}).encode())
    for broken in (content[: len(content) // 2], b"not zipped at all", content[:50] + b"\0" * 50 + content[100:]):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UserError, match=name): list(d.read_texts(tmp_path))


def test_no_folder_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"): list(d.read_texts(tmp_path / "absent"))
    with pytest.raises(UserError, match="jsonl"): list(d.read_texts(tmp_path))


def test_a_novel_becomes_many_documents_and_loses_no_word(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(20_000)]
    text = "".join(w + rng.choices([" ", "\n", "\n\n", "\r\n\r\n"], [20, 3, 1, 1])[0] for w in words)
    write(tmp_path, "novel.txt", text.encode())
    pieces = list(d.read_texts(tmp_path))
    assert " ".join(pieces).split() == words and max(map(len, pieces)) <= 2000
    assert sum(map(len, pieces)) / len(pieces) > 1000
    assert max(map(len, d.read_texts(tmp_path, limit=300))) <= 300
    write(tmp_path, "novel.txt", b"short\n\nand whole")
    assert list(d.read_texts(tmp_path)) == ["short\n\nand whole"]


def test_long_documents_of_every_format_are_cut(tmp_path):
    "Articles of 9,000 characters went into rows of 256 tokens whole, and nine tenths of them were cropped away."
    text = "word " * 1800
    write(tmp_path, "a.txt", text.encode())
    write(tmp_path, "b.jsonl", (json.dumps({"text": text}) + "\n").encode())
    pq.write_table(pa.table({"text": [text]}), tmp_path / "c.parquet")
    pieces = list(d.read_texts(tmp_path, limit=500))
    assert max(map(len, pieces)) <= 500 and " ".join(pieces).split() == ["word"] * 5400


def test_names_in_capitals_are_read(tmp_path):
    write(tmp_path, "BOOK.TXT", b"one")
    write(tmp_path, "C.JSONL.GZ", gzip.compress(b'{"text": "two"}\n'))
    assert list(d.read_texts(tmp_path)) == ["one", "two"]


def test_the_whole_documents_of_a_row_are_shuffled():
    "Best fit takes the longest first; without the shuffle every row began with it."
    p = d.pack_documents([[0] + [1] * 4, [0] + [1] * 2] * 40, 7)
    assert 0.2 < (p.x[:, 3] == 0).float().mean() < 0.8


@pytest.mark.parametrize("text", ["x" * 5000, " " * 5000 + "x", "a b " * 2000, "\n\n\n\n", "", "é" * 2001])
def test_cutting_odd_texts(text):
    pieces = d.cut_text(text, 2000)
    assert all(0 < len(p) <= 2000 and p.strip() for p in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


# ---------------------------------------------------------------- split

def test_split_is_by_content_and_about_a_tenth():
    texts = [f"text {i}" for i in range(5000)] + [f"text {i}" for i in range(0, 5000, 3)]
    train, val = d.split_by_hash(texts)
    assert not set(train) & set(val) and sorted(train + val) == sorted(texts)
    assert 0.08 < len(val) / len(texts) < 0.13
    more_train, more_val = d.split_by_hash(texts + ["another"] * 5)
    assert set(val) <= set(more_val) and set(train) <= set(more_train)      # new text moves no old one
    with pytest.raises(UserError, match="too few"): d.split_by_hash(["one"])


# ---------------------------------------------------------------- packing

def slow_best_fit(documents, T):
    "The published rule, written as a search through all that is left."
    left, rows, row = list(enumerate(documents)), [], []
    while left:
        room = T + 1 - len(row)
        fits = [(-len(tokens), i) for i, tokens in left if len(tokens) <= room]
        i = min(fits)[1] if fits else min((len(tokens), i) for i, tokens in left)[1]
        row += documents[i][:room]
        left = [(j, t) for j, t in left if j != i]
        if len(row) == T + 1:
            rows.append(row)
            row = []
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_packing_equals_the_slow_search(seed):
    rng = random.Random(seed)
    T = rng.choice([7, 16, 31])
    documents = [[0] + [rng.randrange(1, 500) for _ in range(rng.randrange(0, 50))] for _ in range(120)]
    rows = d.pack_documents(documents, T)
    expected = torch.tensor(slow_best_fit(documents, T), dtype=torch.int32)
    found = torch.cat([rows.x, rows.y[:, -1:]], dim=1)
    assert torch.equal(found.sort().values, expected.sort().values)             # the same documents in each row
    assert torch.equal(rows.x[:, 1:], rows.y[:, :-1])
    assert rows.cropped == sum(map(len, documents)) - expected.numel()
    assert (rows.x[:, 0] == 0).all() and (rows.y >= 0).all()


def test_short_documents_also_begin_rows():
    "Best fit alone would put the long ones first in every row."
    documents = [[0] + [n] * n for n in (20, 8) for _ in range(300)]
    starts = d.pack_documents(documents, 29).x[:, 1].tolist()
    assert 0.3 < sum(n == 8 for n in starts) / len(starts) < 0.7
    talks = [(ids, [1] * len(ids)) for ids in documents]
    starts = d.pack_conversations(talks, 29, 99).x[:, 1].tolist()
    assert 0.3 < sum(n == 8 for n in starts) / len(starts) < 0.7


def test_packing_a_corpus_loses_little_and_keeps_every_row_full():
    rng = random.Random(1)
    documents = [[0] + [1] * rng.randrange(20, 220) for _ in range(20_000)]
    rows = d.pack_documents(documents, 256)
    assert rows.cropped / sum(map(len, documents)) < 0.01 and rows.x.shape == (len(rows), 256)


def test_too_little_text():
    with pytest.raises(UserError, match="5 tokens"): d.pack_documents([[0, 1], [0, 1, 2]], T=8)
    with pytest.raises(UserError): d.pack_documents([], T=8)


def random_talks(seed, longest=40):
    rng = random.Random(seed)
    talks = []
    for k in range(150):
        n = rng.randrange(2, longest)
        talks.append(([0] + [1000 * (k + 1) + j for j in range(1, n)], [rng.random() < 0.5 for _ in range(n)]))
    return talks


@pytest.mark.parametrize("seed", range(4))
def test_conversations_stay_whole(seed):
    T, pad, talks = 31, 7, random_talks(seed)
    rows = d.pack_conversations(talks, T, pad)
    fit = [t for t in talks if len(t[0]) <= T + 1]
    assert rows.left_out == len(talks) - len(fit) > 0
    # targets that count, as pairs (input before, target), compared with those of each conversation alone
    found = sorted((x, y) for x, y in zip(rows.x.flatten().tolist(), rows.y.flatten().tolist()) if y >= 0)
    expected = sorted((ids[i], ids[i + 1]) for ids, mask in fit for i in range(len(ids) - 1) if mask[i + 1])
    assert found == expected
    everything = d.pack_conversations_all(talks, T, pad)
    found = sorted(y for y in everything.y.flatten().tolist() if y >= 0)
    assert found == sorted(token for ids, _ in fit for token in ids[1:]) and torch.equal(everything.x, rows.x)


def test_targets_line_up_with_inputs_and_seams_are_ignored():
    talks = random_talks(5, longest=12)
    rows = d.pack_conversations_all(talks, 31, 7)
    for x, y in zip(rows.x.tolist(), rows.y.tolist()):
        for i, target in enumerate(y):
            following = x[i + 1] if i + 1 < len(x) else None
            if following == 0: assert target == -1                              # a new conversation
            elif target == -1: assert following in (7, None)                    # padding, or the row's end
            elif following is not None: assert target == following


def test_a_conversation_as_long_as_a_row_fits_and_one_more_does_not():
    assert len(d.pack_conversations([([0] * 9, [1] * 9)], T=8, pad=0)) == 1
    with pytest.raises(UserError, match="9 tokens"): d.pack_conversations([([0] * 10, [1] * 10)], T=8, pad=0)
    rows = d.pack_conversations([([0] * 10, [1] * 10), ([0, 1], [0, 1])], T=8, pad=0)
    assert len(rows) == 1 and rows.left_out == 1 and (rows.y >= 0).sum() == 1


# ---------------------------------------------------------------- loader

def numbered(n, T=4):
    x = torch.arange(n, dtype=torch.int32)[:, None].expand(n, T)
    return d.Rows(x, x)


@pytest.mark.parametrize("n, batch, world", [(24, 4, 1), (24, 4, 2), (25, 3, 4), (7, 8, 2), (1, 4, 1)])
def test_every_row_once_an_epoch_whatever_the_sizes(n, batch, world):
    loaders = [d.Loader(numbered(n), batch, seed=3, rank=r, world=world) for r in range(world)]
    epochs, sequence = 6, []
    while len(sequence) < epochs * n:
        parts = [next(loader).x[:, 0].tolist() for loader in loaders]
        sequence += [row for at in zip(*parts) for row in at]                   # rank by rank, as dealt
    order = [sequence[e * n : (e + 1) * n] for e in range(epochs)]
    assert all(sorted(o) == list(range(n)) for o in order)
    if n > 10: assert len({tuple(o) for o in order}) == epochs
    assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 23])
def test_resume_is_exact_across_epochs(stop):
    rows, make = numbered(25), lambda: d.Loader(numbered(25), 4, seed=1, rank=1, world=2)
    whole = make()
    expected = [next(whole).x for _ in range(stop + 10)][stop:]
    first = make()
    for _ in range(stop): next(first)
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(torch.equal(next(second).x, x) for x in expected)


def test_resume_with_other_ranks_goes_on_where_it_was():
    one = d.Loader(numbered(40), 8, seed=2)
    expected = [next(one).x[:, 0].tolist() for _ in range(4)]
    half = d.Loader(numbered(40), 8, seed=2)
    next(half), next(half)
    two = [d.Loader(numbered(40), 4, seed=2, rank=r, world=2) for r in range(2)]
    for loader in two: loader.load_state_dict(half.state_dict())
    for step in (2, 3):
        assert sorted(sum((next(loader).x[:, 0].tolist() for loader in two), [])) == sorted(expected[step])


def test_a_place_in_other_data_is_refused():
    state = d.Loader(numbered(10), 2, seed=1).state_dict()
    for other in (d.Loader(numbered(11), 2, seed=1), d.Loader(numbered(10), 2, seed=2)):
        with pytest.raises(ValueError): other.load_state_dict(state)


def test_batches_are_int64_and_own_their_memory():
    rows = d.pack_conversations([([0, 1, 2], [0, 0, 1])] * 4, T=4, pad=9)
    loader = d.Loader(rows, 2, seed=0)
    batch = next(loader)
    assert batch.x.dtype == batch.y.dtype == torch.int64 and batch.x.is_contiguous()
    batch.x.fill_(5)
    assert rows.x.max() == 9 and d.Loader(rows, 2, seed=-4).epoch == 0 and next(d.Loader(rows, 2, seed=-4))


# ---------------------------------------------------------------- shards

class Letters:
    bos = 0
    def encode_batch(self, texts): return [[ord(c) for c in text] for text in texts]


@pytest.fixture
def shards(tmp_path):
    rng, files = random.Random(0), []
    for f, count in enumerate((70, 33, 64)):
        texts = [chr(300 + f * 100 + k) * rng.randrange(1, 60) for k in range(count)]
        files.append(tmp_path / f"shard_{f}.parquet")
        pq.write_table(pa.table({"text": texts}), files[-1], row_group_size=16)
    return files


def test_shards_give_each_rank_its_own_row_groups(shards):
    seen = []
    for rank in range(2):
        loader, mine = d.ShardLoader(shards, Letters(), 1, 31, rank=rank, world=2), set()
        while loader.epoch == 0: mine |= set(next(loader).x.flatten().tolist()) - {0}
        seen.append(mine)
    first = {300 + f * 100 + k for f, count in enumerate((70, 33, 64)) for k in range(count) if k // 16 % 2 == 0}
    assert seen[0] <= first and not seen[1] & first
    assert len(seen[0]) > 0.9 * len(first) and len(seen[1]) > 0.9 * (70 + 33 + 64 - len(first))


@pytest.mark.parametrize("stop", [0, 1, 9, 30, 61])
def test_shards_resume_exactly(shards, stop):
    make = lambda: d.ShardLoader(shards, Letters(), 3, 31, seed=5, rank=1, world=2)
    whole, first, second = make(), make(), make()
    batches = [next(whole) for _ in range(stop + 25)]
    for _ in range(stop): next(first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[stop:]:
        again = next(second)
        assert torch.equal(again.x, batch.x) and torch.equal(again.y, batch.y)
    assert whole.epoch >= 1 and batches[0].x.shape == (3, 31)


def test_shards_rows_begin_with_a_document(shards):
    loader = d.ShardLoader(shards, Letters(), 4, 31)
    for _ in range(20): assert (next(loader).x[:, 0] == 0).all()


def test_shards_errors(tmp_path, shards):
    with pytest.raises(UserError, match="use more shards"): next(d.ShardLoader(shards[1:2], Letters(), 1, 31, rank=5, world=8))
    with pytest.raises(UserError): next(d.ShardLoader([], Letters(), 1, 31))
    with pytest.raises(UserError, match="fills a row"): next(d.ShardLoader(shards, Letters(), 1, 5000))
    (tmp_path / "bad.parquet").write_bytes(shards[0].read_bytes()[:-20])
    with pytest.raises(UserError, match="bad.parquet"): next(d.ShardLoader([tmp_path / "bad.parquet"], Letters(), 1, 31))
    state = d.ShardLoader(shards, Letters(), 1, 31).state_dict()
    for other in (d.ShardLoader(shards[:2], Letters(), 1, 31), d.ShardLoader(shards, Letters(), 1, 31, world=2),
                  d.ShardLoader(shards, Letters(), 1, 63), d.ShardLoader(shards, Letters(), 1, 31, rank=1, world=1)):
        with pytest.raises(ValueError): other.load_state_dict(state)
    lost = d.ShardLoader(shards, Letters(), 1, 31)
    lost.place["row"] = 10**6                                               # of a tokenizer that made more rows
    with pytest.raises(UserError, match="other data"): next(lost)


def test_parquet_of_other_types_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    for column, match in (([1, 2], "holds int"), ([b"x", None], "holds bytes"), ([["x"]], "holds list")):
        pq.write_table(pa.table({"text": column}), path)
        with pytest.raises(UserError, match=match): list(d.read_texts(tmp_path))
        with pytest.raises(UserError, match=match): next(d.ShardLoader([path], Letters(), 1, 31))
    pq.write_table(pa.table({"text": [None, "x" * 40, None]}), path)
    assert set(next(d.ShardLoader([path], Letters(), 1, 31)).x.flatten().tolist()) == {0, ord("x")}
    pq.write_table(pa.table({"content": ["x"]}), path)
    with pytest.raises(UserError, match="a.parquet"): next(d.ShardLoader([path], Letters(), 1, 31))


def test_copies_in_hidden_folders_are_no_text(tmp_path):
    folder = tmp_path / ".mine"                                             # one that was asked for may be hidden itself
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name, text in (("a.txt", "new"), (".ipynb_checkpoints/a-checkpoint.txt", "old"), (".b.txt", "swap")):
        (folder / name).write_text(text)
    assert list(d.read_texts(folder)) == ["new"]


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' * 8 + b'{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match="a.jsonl, line 9: not UTF-8 at byte 13"): list(d.read_texts(tmp_path))


def test_a_tiny_last_row_group_is_passed_over(tmp_path):
    pq.write_table(pa.table({"text": ["x" * 40] * 4 + ["y"]}), tmp_path / "a.parquet", row_group_size=4)
    loader = d.ShardLoader([tmp_path / "a.parquet"], Letters(), 5, 31)
    assert set(next(loader).x.flatten().tolist()) == {0, ord("x")}


# ---------------------------------------------------------------- downloads

class Hub(BaseHTTPRequestHandler):
    "A data set on a hub, small enough for a test: HEAD and GET with ranges; breaks off when told to."
    files, breaks, damage, requests = {}, 0, False, []

    def log_message(self, *args): pass

    def do_HEAD(self): self.answer(send=False)

    def do_GET(self): self.answer(send=True)

    def answer(self, send):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        Hub.requests.append((self.command, name, self.headers.get("Range")))
        if name not in Hub.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, start = Hub.files[name], 0
        if self.headers.get("Range"): start = int(self.headers["Range"].split("=")[1].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"' + hashlib.sha256(content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content) - start))
        if start: self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not send: return
        body = content[start:]
        if Hub.damage: body = bytes(len(body))
        if Hub.breaks:
            Hub.breaks -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)             # no waiting between attempts
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rng = np.random.default_rng(0)
    Hub.files = {f"shard_{i:05d}.parquet": rng.bytes(50_000) for i in (0, 1, 9)}
    Hub.breaks, Hub.damage, Hub.requests = 0, False, []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download_the_wanted_shards_and_always_the_last(hub, tmp_path):
    corpus = d.Corpus("someone/corpus", 10)
    train, val = d.download_corpus(corpus, 2, tmp_path, endpoint=hub)
    assert [p.name for p in train] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert val.name == "shard_00009.parquet"
    for path in (*train, val): assert path.read_bytes() == Hub.files[path.name]
    Hub.requests.clear()
    d.download_corpus(corpus, 2, tmp_path, endpoint=hub)
    assert Hub.requests == []                                            # what is there is not asked for
    for wrong in (0, 10, -1):
        with pytest.raises(UserError, match="9 training shards"): d.download_corpus(corpus, wrong, tmp_path, endpoint=hub)


def test_a_transfer_that_breaks_off_is_continued(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)      # it is 10 MB
    Hub.breaks = 1
    path, = d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert path.read_bytes() == Hub.files[path.name]
    assert any(command == "GET" and ranged for command, _, ranged in Hub.requests)   # from the middle on


def test_a_transfer_that_never_ends_well_leaves_no_file(hub, tmp_path):
    Hub.breaks = 10**6
    with pytest.raises(UserError, match="cannot download shard_00000"):
        d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert not (tmp_path / "shard_00000.parquet").exists()
    Hub.breaks = 0
    path, = d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert path.read_bytes() == Hub.files[path.name]


def test_damaged_bytes_of_the_right_number_are_noticed(hub, tmp_path):
    Hub.damage = True
    with pytest.raises(UserError, match="damaged"):
        d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert not (tmp_path / "shard_00000.parquet").exists()


def test_a_file_whose_sum_was_never_asked_for_is_checked_later(hub, tmp_path, monkeypatch):
    "The look-up of the sum fails after the transfer; the next run must not take the file on trust."
    import huggingface_hub
    def refused(url, **options): raise OSError("429 too many requests")
    Hub.damage = True
    with monkeypatch.context() as m:
        m.setattr(huggingface_hub, "get_hf_file_metadata", refused)
        with pytest.raises(UserError, match="429"): d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert not (tmp_path / "shard_00000.parquet").exists()
    with pytest.raises(UserError, match="damaged"): d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    Hub.damage = False
    path, = d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint=hub)
    assert path.read_bytes() == Hub.files[path.name]


def test_no_such_file_and_no_network(hub, tmp_path):
    with pytest.raises(UserError, match="shard_00005"):
        d.download_shards("someone/corpus", ["shard_00005.parquet"], tmp_path, endpoint=hub)
    with pytest.raises(UserError, match="check the network"):
        d.download_shards("someone/corpus", ["shard_00000.parquet"], tmp_path, endpoint="http://127.0.0.1:9")
