# %% [markdown]
# # 02b. Data
#
# A model learns from rows of numbers. This lesson makes the rows: from your files to batches, without losing a token
# that matters, without showing the model its exam, and so that a run which is killed goes on with the very next row.
#
# After it you can
#
# * read text in three formats and report a broken line so that its owner can mend it;
# * set validation data aside so that no copy of it is trained on;
# * pack documents and conversations into rows, and say which rule each needs and why;
# * write a loader whose whole state is one number, and a streaming one whose state is four;
# * spot the leak that comes from "the last file is validation".
#
# You have read 01 (tokens) and 02a (what the model takes in). Reading takes 25 minutes, doing 40, computing a few seconds.

# %%
#| default_exp data

# %% [markdown]
# ## A row that begins in the middle
#
# The simplest way to make rows is to glue all documents into one stream and cut it every T tokens. Run it and look at the
# rows. A 0 marks the beginning of a document; the other numbers count its tokens.

# %%
documents = [[0, *range(1, n)] for n in (5, 7, 3, 6, 8, 4, 7, 2)]
stream = [token for document in documents for token in document]
for row in range(0, len(stream) - 7, 8): print(*stream[row : row + 8])

# %% [markdown]
# Only the first row begins with a 0. In the others the model has to predict the middle of a story whose beginning it was never
# shown: "she gave it back to him", and nobody knows who. It learns to guess from nothing, and you pay for it in every
# step. We will do better. First, the imports of the module.

# %%
#| export
import gzip, hashlib, io, json, re, zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from fastcore.basics import patch
from torch import Tensor

from nanochat.workshop import UserError


# %% [markdown]
# ## From files to documents
#
# A document is what belongs together: a story, a page, an answer. Your data comes as files, in three formats that between
# them hold most of the text in the world: `.txt`, `.jsonl` (one JSON object a line) and `.parquet` (columns, for big data).
#
# A novel in one `.txt` is a trap of its own: as one document it would be longer than any row, and most of it would never be
# seen. An article in a `.jsonl` is the same in small. So long texts of every format are cut at blank lines, where a thought usually
# ends, and the limit should be what fits into a row: a token is 2 to 4 characters.

# %%
#| export
def cut_text(
    text: str,          # a text of any length
    limit: int = 2000,  # characters in a piece, at most
) -> list[str]:         # pieces in order; together they hold all but the white space at the cuts
    "Cut a long text into documents: at blank lines where it can, else at spaces, else anywhere."
    pieces, current = [], ""
    for paragraph in (p.strip("\n") for p in text.replace("\r\n", "\n").split("\n\n")):
        joined = f"{current}\n\n{paragraph}" if current else paragraph
        if len(joined) <= limit:
            current = joined
            continue
        if current: pieces.append(current)
        while len(paragraph) > limit:
            at = max(paragraph.rfind(" ", 1, limit + 1), paragraph.rfind("\n", 1, limit + 1))
            at = at if at > 0 else limit
            pieces.append(paragraph[:at])
            paragraph = paragraph[at:].lstrip()
        current = paragraph
    pieces.append(current)
    return [p for p in pieces if p.strip()]


# %%
print(cut_text("One.\n\nTwo is longer.\n\nThree.", limit=18))
assert cut_text("One.\n\nTwo is longer.\n\nThree.", limit=18) == ["One.", "Two is longer.", "Three."]
assert cut_text("a" * 45, limit=18) == ["a" * 18, "a" * 18, "a" * 9]

# %% [markdown]
# Next, which files there are. An empty folder gets a message that says what belongs into it.

# %%
#| export
KINDS = (".txt", ".jsonl", ".parquet")

def text_files(
    folder: Path | str,  # looked through with its subfolders; or one file
) -> list[Path]:         # sorted
    "The files of a folder that hold text we can read. `UserError` when there is none."
    folder = Path(folder)
    if not folder.exists(): raise UserError(f"no such folder: {folder}")
    found = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    hidden = lambda p: any(part.startswith(".") for part in (p.name, *p.relative_to(folder).parts))
    files = [p for p in found if _kind(p) in KINDS and not hidden(p)]    # .ipynb_checkpoints has copies
    if not files:
        raise UserError(f"no text in {folder}: put .txt, .jsonl or .parquet files there, "
                        "each may be zipped (.gz)")
    return files

def _kind(path: Path) -> str:
    "The suffix of a file, not counting .gz."
    return Path(path.name.lower().removesuffix(".gz")).suffix


# %% [markdown]
# Each format has a small reader of its own. Note what each does with a fault: it names the file, and the line where there
# is one. "Expecting value: line 1 column 9" would be true as well, and of no use in a folder of forty files.

# %%
#| export
def _open(path: Path):
    "The bytes of a file, unzipped when its name ends in .gz."
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")

def _of_txt(path: Path) -> Iterator[str]:
    "The whole file."
    with _open(path) as f: yield f.read().decode("utf-8-sig")

def _of_jsonl(path: Path) -> Iterator[str]:
    "One document a line: the string under the key `text`."
    with _open(path) as f:
        for n, line in enumerate(f, 1):
            if not line.strip(): continue
            try: row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as e:
                raise UserError(f"{path}, line {n}: not UTF-8 at byte {e.start} of the line; "
                                "save it as UTF-8") from e
            except json.JSONDecodeError as e:
                raise UserError(f"{path}, line {n}: not JSON ({e.msg}); mend or delete it") from e
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{path}, line {n}: no string under \"text\" (found: {keys})")
            if re.search("[\ud800-\udfff]", row["text"]):
                raise UserError(f"{path}, line {n}: half a character (a lone surrogate) in \"text\"; mend or delete it")
            yield row["text"]

def _strings(path: Path, column) -> list[str]:
    "The strings of a parquet column; empty places are passed over. `UserError` for other types."
    texts = [text for text in column.to_pylist() if text is not None]
    other = next((type(t).__name__ for t in texts if not isinstance(t, str)), None)
    if other: raise UserError(f"{path}: the column \"text\" holds {other}, not strings")
    return texts

def _of_parquet(path: Path) -> Iterator[str]:
    "The column `text`, a row group at a time."
    import pyarrow.parquet as pq
    with _open(path) as f:
        table = pq.ParquetFile(io.BytesIO(f.read()) if path.name.lower().endswith(".gz") else f)
        names = table.schema_arrow.names
        if "text" not in names:
            raise UserError(f"{path}: no column \"text\" (found: {', '.join(names)}); rename yours")
        for group in range(table.num_row_groups):
            yield from _strings(path, table.read_row_group(group, columns=["text"]).column("text"))


# %%
import tempfile

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "b.jsonl")
    path.write_text('{"text": "A line."}\n\n{"text": "Another."}\n', encoding="utf-8")
    assert list(_of_jsonl(path)) == ["A line.", "Another."]
    path.write_text('{"text": "fine"}\n{"content": "the key is wrong"}\n', encoding="utf-8")
    try: list(_of_jsonl(path))
    except UserError as e: print(str(e).replace(folder, "FOLDER"))
    else: raise AssertionError("a wrong key must be named")


# %% [markdown]
# One loop over all of them, with the faults that any format may have: a file that is not UTF-8, a zip that was cut off.

# %%
#| export
def read_texts(
    folder: Path | str,  # .txt, .jsonl, .parquet files, each may be a .gz; or one such file
    limit: int = 2000,   # a longer document is cut into pieces of at most so many characters
) -> Iterator[str]:      # documents that are not empty, in the order of the file names
    "The documents of a folder. `UserError` names the file, and the line, of what cannot be read."
    readers, count = {".txt": _of_txt, ".jsonl": _of_jsonl, ".parquet": _of_parquet}, 0
    for path in text_files(folder):
        try:
            for text in readers[_kind(path)](path):
                for piece in cut_text(text, limit) if len(text) > limit else [text]:
                    if piece.strip():
                        count += 1
                        yield piece
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: not UTF-8 at byte {e.start}; save it as UTF-8") from e
        except (OSError, EOFError, ValueError, zlib.error) as e:      # pyarrow's are ValueErrors
            raise UserError(f"{path}: cannot be read ({e}); mend or remove it") from e
    if not count: raise UserError(f"the files in {folder} hold no text")


# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "a.txt").write_text("Once upon a time.\n", encoding="utf-8")
    Path(folder, "b.jsonl").write_text('{"text": "A line."}\n{"text": "Another."}\n', encoding="utf-8")
    print(list(read_texts(folder)))
    assert len(list(read_texts(folder))) == 3
    Path(folder, "c.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n', encoding="utf-8")
    try: list(read_texts(folder))
    except UserError as e: print(str(e).replace(folder, "FOLDER"))
    else: raise AssertionError("a broken line must be named")


# %% [markdown]
# ## Training or validation?
#
# To know what a model learned you need text it has not seen. Drawing every tenth document at random has two flaws: the draw
# changes when you add a file, and copies of a document (the web is full of them) end up on both sides. The cure is to let
# the *content* decide: hash the text, and take those whose hash falls into a fixed tenth. Copies have the same hash.

# %%
#| export
def is_validation(text: str) -> bool:
    "Whether a document is in the validation tenth: its content decides, so copies stay together."
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] * 10 < 256

def split_by_hash(
    texts: Iterable[str],            # documents
) -> tuple[list[str], list[str]]:    # (train, validation), order kept
    "Put a fixed tenth of the documents aside for validation. `UserError` when a side stays empty."
    sides = [], []
    for text in texts: sides[is_validation(text)].append(text)
    if not all(sides):
        raise UserError(f"{sum(map(len, sides))} documents, of which {len({*sides[0], *sides[1]})} differ, are too few "
                        "to set a tenth aside; 100 or more are needed")
    return sides


# %%
train, val = split_by_hash(f"document {i % 900}" for i in range(1000))
print(len(train), len(val))
assert not set(train) & set(val) and 60 < len(val) < 140


# %% [markdown]
# 100 of the 1,000 documents were copies. Not one of them is on the other side of its twin.
#
# ## Packing documents
#
# Rows should have three properties: each begins with a document, each is full, and little text is lost. You cannot have
# all of them for nothing. The rule here is *best fit*, the one nanochat took up in 2026: put the longest document that still
# fits into the row; when none fits, crop the *shortest* one to fill the rest exactly. Why the shortest? What is cropped is
# lost, and the shortest has the least to lose.

# %%
#| export
class Batch(NamedTuple):
    "One step's input `x` and targets `y`, both (B, T) int64; a target of -1 is ignored."
    x: Tensor
    y: Tensor

@dataclass
class Rows:
    "Packed data: `x` (N, T) and `y` (N, T), int32, -1 in `y` is ignored; and what did not go in."
    x: Tensor
    y: Tensor
    cropped: int = 0   # tokens of documents that were cut off
    left_out: int = 0  # conversations longer than a row

    def __len__(self) -> int: return len(self.x)


# %% [markdown]
# **Trap: the longest first, in every row.** Best fit takes the long documents first, so without a further step *every* row begins with a
# long one, and a short document is only ever met after another. A model trained on such rows has never seen a short document
# at the start of a context, which is where every chat question stands. The loss does not show it, because the held-out rows are packed
# in the same way. We met it: a four-layer model of the laptop recipe, tested on documents by themselves, needed 0.77 bits per byte for
# the world's facts; trained on the same documents in shuffled order it needed 0.50 (people's facts: 0.82 and 0.44). So the
# documents of a row are shuffled before they are joined. (Only whole ones are: a cropped one stays last, or `<|bos|>` would tell the
# model that a text is over where it was cut. So where documents are nearly as long as a row, as in the picture below, little changes.)
#
# "The longest that fits" must be fast: a corpus has many thousand documents, and looking through all of them for each
# pick is quadratic. But there are few different *lengths*. We keep a queue for each length and the lengths in order, and find
# the right one by bisection.

# %%
#| export
class _Pool:
    "Items by length, to take the longest that fits. Of equal ones the earliest goes first."

    def __init__(self, lengths: Sequence[int]):
        self.queues: dict[int, deque[int]] = {}
        for i, n in enumerate(lengths): self.queues.setdefault(n, deque()).append(i)
        self.sizes = sorted(self.queues)

    def __bool__(self) -> bool: return bool(self.sizes)

    def _take(self, at: int) -> int:
        "Remove and return an item of the size at place `at`."
        queue = self.queues[self.sizes[at]]
        item = queue.popleft()
        if not queue: self.sizes.pop(at)
        return item

    def longest_fitting(self, room: int) -> int | None:
        "The longest item that is not longer than `room`."
        at = bisect_right(self.sizes, room) - 1
        return None if at < 0 else self._take(at)

    def shortest(self) -> int:
        "The shortest item there is."
        return self._take(0)


# %%
pool = _Pool([5, 3, 9, 3])
assert [pool.longest_fitting(4), pool.longest_fitting(4), pool.longest_fitting(4)] == [1, 3, None]
assert pool.shortest() == 0 and pool.longest_fitting(9) == 2 and not pool
print("5, 3, 9, 3 taken in the order we meant")


# %% [markdown]
# A row holds T + 1 tokens: the input is all but the last, the target all but the first. The target of the last token of a
# document is the `<|bos|>` of the next one. That is wanted: it is how the model learns that a text is over.

# %%
#| export
def pack_documents(
    token_lists: Sequence[Sequence[int]],  # documents, each begins with the token <|bos|>
    T: int,                                # row length
) -> Rows:                                 # every row begins with a document; no padding
    """Fill rows of T + 1 tokens with the longest document that fits, or else crop the shortest.

    Within a row the documents are shuffled (seed 0), or else all rows would begin with long ones.
    The last row, where the documents ran out, is dropped. `UserError` when no row is full."""
    pool, mix = _Pool([len(tokens) for tokens in token_lists]), Random(0)
    flat, row, room = [], [], T + 1
    while pool:
        i = pool.longest_fitting(room)
        if i is None:                       # a document that is cropped stays the last of its row
            mix.shuffle(row)
            flat.extend(row)
            row, i = [], pool.shortest()
        row.append(np.asarray(token_lists[i][:room], dtype=np.int32))
        room -= len(row[-1])
        if room == 0:
            mix.shuffle(row)
            flat.extend(row)
            row, room = [], T + 1
    flat.extend(row)
    total = sum(map(len, flat))
    N = total // (T + 1)
    if N == 0:
        raise UserError(f"{total} tokens of text do not fill one row of {T + 1}; add text")
    rows = torch.from_numpy(np.concatenate(flat)[: N * (T + 1)].reshape(N, T + 1))   # (N, T+1)
    return Rows(rows[:, :-1], rows[:, 1:], cropped=sum(map(len, token_lists)) - rows.numel())


# %%
rows = pack_documents(documents, T=7)
print(torch.cat([rows.x, rows.y[:, -1:]], dim=1))
assert (rows.x[:, 0] == 0).all() and rows.cropped == sum(map(len, documents)) - len(rows) * 8

# %% [markdown]
# The same eight documents, and every row begins with a 0. Now with more of them. The picture shows rows as lines and
# documents as strips of one shade, with the two ways of cutting side by side.
#
# **Predict, then run.** In a stream, what part of the rows begins in the middle of a document?

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure, seed_all

seed_all(0)
lengths = torch.randint(4, 60, (60,)).tolist()
documents = [[0, *[1 + k % 7] * (n - 1)] for k, n in enumerate(lengths)]
stream = torch.tensor([token for document in documents for token in document])
packed = pack_documents(documents, T=63)
cut = stream[: len(stream) // 64 * 64].view(-1, 64)                       # (N, T+1)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", sharey=True)
for ax, picture, title in zip(axes, (cut, torch.cat([packed.x, packed.y[:, -1:]], 1)), ("stream", "best fit")):
    middle = (picture[:, 0] != 0).float().mean().item()
    ax.imshow(picture, cmap="Blues", aspect="auto", interpolation="none")
    ax.set(title=f"{title}: {middle:.0%} begin in the middle", xlabel="position in the row")
axes[0].set_ylabel("row")
figure(fig, caption="60 documents in rows of 64 tokens; white marks the beginning of a document.",
       alt="Two pictures of rows cut into strips. Left, the stream: nearly all rows begin inside a strip. "
           "Right, best fit: every row begins with the white mark of a new document.")
assert (packed.x[:, 0] == 0).all()
print(f"lost to cropping: {packed.cropped / len(stream):.1%} of the tokens")

# %% [markdown]
# The price is the cropped part. It depends on how long the documents are beside the row. Here is the same mix of documents,
# packed into rows of several lengths.

# %%
seed_all(1)
lengths = (20 * torch.randn(5000).exp()).clamp(4, 2000).int().tolist()
documents = [[0] * n for n in lengths]
for T in (31, 63, 127, 255, 511):
    lost = pack_documents(documents, T).cropped / sum(lengths)
    too_long = sum(max(0, n - T - 1) for n in lengths) / sum(lengths)
    print(f"T = {T:3d}   lost {lost:6.1%}   of which in documents longer than a row: {too_long:6.1%}")
    assert too_long <= lost < too_long + 0.02

# %% [markdown]
# Nearly all that is lost is the tail of documents longer than a row, which no packing could save; best fit itself adds
# less than a hundredth. For real web pages and T = 2048 nanochat's measurements give a loss of 35%: pages are long. It did
# not hurt, because there are always more pages. With little text of your own it would, and that is why long documents are cut
# into pieces that fit.
#
# ## Packing conversations
#
# A conversation must never be cropped: the model would learn to break off in the middle of an answer, or to answer a
# question it did not see. So here the row is *padded* where nothing fits, and a conversation longer than a row is left out
# and counted. Three kinds of targets are ignored, marked by -1:
#
# * padding;
# * tokens that the user wrote (the mask of lesson 01 says which), since we train the one who answers;
# * the first token of a conversation, when it follows another one in the row: nothing in the first announces the second.

# %%
#| export
Conversation = tuple[Sequence[int], Sequence[int]]   # ids and mask, as the tokenizer renders it

def _fill(lengths: Sequence[int], T: int) -> list[list[int]]:
    "Which items share a row of T + 1 tokens; none is cut."
    pool, rows, mix = _Pool(lengths), [], Random(0)
    while pool:
        row, room = [], T + 1
        while (i := pool.longest_fitting(room)) is not None:
            row.append(i)
            room -= lengths[i]
        mix.shuffle(row)          # a short question must be met at the start of a row, too
        rows.append(row)
    return rows

def pack_conversations(
    conversations: Iterable[Conversation],  # (ids, mask) of each
    T: int,                                 # row length
    pad: int,                               # token that fills the end of a row
) -> Rows:                                  # `left_out` counts those that did not fit
    """Pack whole conversations; a target counts where its mask is 1. Longer ones are left out.

    The first token of a conversation is nobody's target. `UserError` when none fits."""
    everything = list(conversations)
    kept = [c for c in everything if 2 <= len(c[0]) <= T + 1]
    if not kept: raise UserError(f"no conversation fits into {T + 1} tokens; raise the row length")
    plan = _fill([len(ids) for ids, _ in kept], T)
    x = np.full((len(plan), T + 1), pad, dtype=np.int32)
    y = np.full((len(plan), T + 1), -1, dtype=np.int32)
    for r, items in enumerate(plan):
        at = 0
        for ids, mask in (kept[i] for i in items):
            n = len(ids)
            x[r, at : at + n] = ids
            y[r, at + 1 : at + n] = np.where(np.asarray(mask[1:], dtype=bool), ids[1:], -1)
            at += n
    x, y = torch.from_numpy(x), torch.from_numpy(y)                                  # (N, T+1)
    return Rows(x[:, :-1], y[:, 1:], left_out=len(everything) - len(kept))


# %% [markdown]
# The second form differs in one thing, so it is one line: a mask of ones.

# %%
#| export
def pack_conversations_all(
    conversations: Iterable[Conversation],  # (ids, mask) of each; the masks are not looked at
    T: int,                                 # row length
    pad: int,                               # token that fills the end of a row
) -> Rows:                                  # `left_out` counts those that did not fit
    "`pack_conversations` with every token a target, for midtraining."
    return pack_conversations([(ids, [1] * len(ids)) for ids, _ in conversations], T, pad)


# %%
bos = 0
talks = [([bos, 11, 12, 13], [0, 0, 1, 1]), ([bos, 21, 22], [0, 0, 1]), ([bos, *range(20)], [1] * 21)]
rows = pack_conversations(talks, T=7, pad=99)
print(rows.x, rows.y, f"left out: {rows.left_out}", sep="\n")
assert rows.left_out == 1 and rows.y.tolist() == [[-1, 12, 13, -1, -1, 22, -1]]
assert pack_conversations_all(talks, T=7, pad=99).y.tolist() == [[11, 12, 13, -1, 21, 22, -1]]


# %% [markdown]
# `-1` under the user's tokens, under the padding and at the seam: only 12, 13 and 22 are learned from. The second packing
# function learns from all but padding and seam, which is what midtraining wants: it still teaches the language of chat.
#
# **Trap.** A packer that keeps a conversation that never fits "for later" stalls: the buffer fills with such conversations,
# rows become pure padding, and a loss over no targets at all is 0/0. nanochat shipped this with short rows. Leave them out,
# count them, and say so. The last cell counted one.
#
# ## A loader that knows where it is
#
# Training goes through the rows in random order, several times. A run that was killed after 3,000 steps must go on with the
# very rows that step 3,001 would have got. Storing a list of what was used is one way. A better one: make the order a
# *function* of (seed, epoch). Then the place is a single number, how many rows were taken, and the rest is computed again.
#
# With several ranks the places are dealt out like cards: rank r takes every world-th row. All ranks have the same state,
# and it stays right when you resume with another batch size or another number of ranks.

# %%
#| export
def share(
    rows: int,   # of an update
    world: int,  # ranks that work on it
) -> int:        # rows for each
    "A rank's part of the rows: another number of ranks trains the same. `UserError` if it is no whole number."
    if rows % world: raise UserError(f"{rows} rows or prompts cannot be shared by {world} processes; use a multiple, or fewer processes")
    return rows // world


class Loader:
    """Endless batches of packed rows: each row once an epoch, in an order that `seed` fixes.

    Each of `world` ranks gets its own rows. The place is one number, so resuming is exact."""

    def __init__(self,
        rows: Rows,       # the data, the same on every rank
        batch_size: int,  # rows a rank gets at a time (B)
        *,
        seed: int,        # of the order
        rank: int = 0, world: int = 1,
    ):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world = rank, world
        self.taken, self._order = 0, (-1, None)      # rows that all ranks took so far

    @property
    def epoch(self) -> float:
        "How often the data has been gone through, with fraction."
        return self.taken / len(self.rows)

    def _row(self, place: int) -> int:
        "Which row stands at a place of the endless sequence of shuffled epochs."
        epoch, i = divmod(place, len(self.rows))
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed % 2**63, epoch])
            self._order = epoch, rng.permutation(len(self.rows))
        return int(self._order[1][i])

    def __iter__(self) -> Iterator[Batch]: return self

    def __next__(self) -> Batch:
        end = self.taken + self.batch_size * self.world
        at = [self._row(place) for place in range(self.taken + self.rank, end, self.world)]
        self.taken = end
        return Batch(self.rows.x[at].long(), self.rows.y[at].long())       # (B, T) each


# %% [markdown]
# Its whole state is the number of rows taken. The seed and the number of rows are stored beside it, so that a place in one
# data set is not taken for a place in another.

# %%
#| export
@patch
def state_dict(self: Loader) -> dict:
    "The place in the data; the same on every rank, and right for another batch size too."
    return {"taken": self.taken, "seed": self.seed, "rows": len(self.rows)}

@patch
def load_state_dict(self: Loader, state: dict) -> None:
    "Go on at a stored place. `ValueError` when it belongs to other data or another order."
    if (state["seed"], state["rows"]) != (self.seed, len(self.rows)):
        raise ValueError(f"this place is of seed {state['seed']} and {state['rows']} rows, "
                         f"the loader has seed {self.seed} and {len(self.rows)} rows")
    self.taken = state["taken"]


# %%
rows = pack_documents([[bos, *range(1, 50)] for _ in range(40)], T=24)
loader = Loader(rows, batch_size=4, seed=1)
for _ in range(3): batch = next(loader)
state, expected = loader.state_dict(), next(loader)
again = Loader(rows, batch_size=4, seed=1)
again.load_state_dict(state)
assert torch.equal(next(again).x, expected.x)
print(state, tuple(batch.x.shape), batch.x.dtype)

# %% [markdown]
# Is it true that four ranks share the rows and lose none? Each row below holds its own number, and we collect one epoch.

# %%
numbers = torch.arange(40, dtype=torch.int32)[:, None].expand(40, 24)
seen = []
for rank in range(4):
    loader = Loader(Rows(numbers, numbers), batch_size=5, seed=1, rank=rank, world=4)
    for _ in range(2): seen += next(loader).x[:, 0].tolist()
print("first ten rows that were handed out:", seen[:10])
assert sorted(seen) == list(range(40)) and loader.epoch == 1


# %% [markdown]
# Before packing come tokens. Every document gets a `<|bos|>` in front: it is the one sign by which the model knows that what
# went before does not belong to it.

# %%
#| export
def encode_documents(
    tokenizer,             # has `encode_batch` and `bos`
    texts: Iterable[str],  # documents
) -> list[list[int]]:      # <|bos|> and the tokens of each
    "Turn documents into token lists, each after the token that says where a document begins."
    return [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(list(texts))]


# %%
class Letters:                     # the smallest tokenizer that will do
    bos = 0
    def encode_batch(self, texts): return [[1 + ord(c) for c in text] for text in texts]

print(encode_documents(Letters(), ["ab"]))
assert encode_documents(Letters(), ["ab", ""]) == [[0, 98, 99], [0]]


# %% [markdown]
# ## More data than memory
#
# The corpus of a real run does not fit into memory. It comes as hundreds of *shards*, parquet files of about 100 MB, each in
# row groups of 1,024 documents, and a row group can be read without the rest of its file. So a second loader reads a row
# group, tokenises it, packs it, hands out its rows, and goes to the next.
#
# The published loader keeps a buffer of documents that crosses row groups. Its place cannot be told in a few numbers, and
# after a resume it drops the buffer. We pack each row group by itself. That costs at most one unfilled row in a group, less
# than half a percent, and buys an exact resume: epoch, file, row group, row.

# %%
#| export
class ShardLoader:
    """Endless batches from parquet shards, read, tokenised and packed one row group at a time.

    Rank r reads row groups r, r + world, ... of each file, and packs each group by itself, so
    its place is four numbers and resuming is exact. Each rank has its own: store all."""

    def __init__(self,
        files: Sequence[Path | str],  # parquet files with a column `text`, in order
        tokenizer,                    # has `encode_batch` and `bos`
        batch_size: int,              # rows a rank gets at a time (B)
        T: int,                       # row length
        *,
        seed: int = 0,                # of the order of the rows within a group
        rank: int = 0, world: int = 1,
    ):
        if not files: raise UserError("no shards to read; download some first")
        self.files, self.tokenizer = [Path(f) for f in files], tokenizer
        self.batch_size, self.T, self.seed, self.rank, self.world = batch_size, T, seed, rank, world
        self.place = {"epoch": 0, "file": 0, "group": rank, "row": 0}
        self._loaded, self._counts = None, {}           # which group `_rows` is; groups by file

    def __iter__(self) -> Iterator[Batch]: return self

    @property
    def epoch(self) -> int:
        "How often all files have been gone through."
        return self.place["epoch"]

    def state_dict(self) -> dict:
        "This rank's place: epoch, file, row group, row; and what it is a place in."
        return {**self.place, "seed": self.seed, "rank": self.rank, "world": self.world, "T": self.T,
                "files": [f.name for f in self.files]}

    def load_state_dict(self, state: dict) -> None:
        "Go on at a stored place. `ValueError` when files, order, row length, rank or ranks differ."
        mine = self.state_dict()
        for key in ("seed", "world", "rank", "T", "files"):
            if state.get(key) != mine[key]: raise ValueError(f"{key}: {state.get(key)}, now {mine[key]}")
        self.place = {key: state[key] for key in self.place}


# %% [markdown]
# Two steps carry it: load the group we stand in, and go to the next one that is ours.

# %%
#| export
def _shard(path: Path):
    "An open parquet shard. `UserError` when it is damaged."
    import pyarrow.parquet as pq
    try: return pq.ParquetFile(path)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({e}); delete it and download it again") from e

@patch
def _load(self: ShardLoader) -> None:
    "Read, tokenise, pack and shuffle the row group at the present place."
    where = tuple(self.place[k] for k in ("epoch", "file", "group"))
    if where == self._loaded: return
    path = self.files[where[1]]
    try: column = _shard(path).read_row_group(where[2], columns=["text"]).column("text")
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{path}: row group {where[2]} cannot be read ({e}); download it again") from e
    documents = encode_documents(self.tokenizer, _strings(path, column))
    enough = sum(map(len, documents)) > self.T            # a file may end in a tiny row group
    none = torch.empty(0, self.T, dtype=torch.int32)
    rows = pack_documents(documents, self.T) if enough else Rows(none, none)
    order = np.random.default_rng([self.seed % 2**63, *where]).permutation(len(rows))
    self._rows, self._loaded = Rows(rows.x[order], rows.y[order]), where

@patch
def _groups(self: ShardLoader, file: int) -> int:
    "The number of row groups in a file."
    if file not in self._counts: self._counts[file] = _shard(self.files[file]).num_row_groups
    return self._counts[file]


# %% [markdown]
# The next group may be in the next file, or in the next epoch. A batch may need rows of two groups.

# %%
#| export
@patch
def _settle(self: ShardLoader) -> None:
    "Where the present file has no such row group, go on to the next file, and the next epoch."
    at = self.place
    for _ in range(len(self.files) + 1):
        if at["group"] < self._groups(at["file"]): return
        at["file"], at["group"] = at["file"] + 1, self.rank
        if at["file"] == len(self.files): at["epoch"], at["file"] = at["epoch"] + 1, 0
    raise UserError(f"no row group for rank {self.rank} of {self.world} in {len(self.files)} files;"
                    " use more shards")

@patch
def __next__(self: ShardLoader) -> Batch:
    parts, need, first = [], self.batch_size, self.epoch
    while need:
        self._settle()
        self._load()
        if not parts and self.epoch > first + 1:
            raise UserError(f"no row group fills a row of {self.T + 1} tokens; use other shards")
        start = self.place["row"]
        if start > len(self._rows):
            raise UserError(f"row {start} of a group of {len(self._rows)}: the place is one in other data")
        part = Rows(self._rows.x[start : start + need], self._rows.y[start : start + need])
        if len(part): parts.append(part)
        need -= len(part)
        self.place["row"] += len(part)
        if self.place["row"] == len(self._rows):
            self.place["group"], self.place["row"] = self.place["group"] + self.world, 0
    x, y = (torch.cat([getattr(p, name) for p in parts]).long() for name in "xy")    # (B, T)
    return Batch(x, y)


# %%
import pyarrow as pa, pyarrow.parquet as pq

with tempfile.TemporaryDirectory() as folder:
    files = [Path(folder, f"shard_{i}.parquet") for i in range(2)]
    for i, file in enumerate(files):
        texts = [f"shard {i}, document {j}: " + "la " * (j % 17) for j in range(64)]
        pq.write_table(pa.table({"text": texts}), file, row_group_size=16)
    loader = ShardLoader(files, Letters(), batch_size=4, T=64, rank=1, world=2)
    for _ in range(12): next(loader)
    state, expected = loader.state_dict(), next(loader)
    again = ShardLoader(files, Letters(), batch_size=4, T=64, rank=1, world=2)
    again.load_state_dict(state)
    assert torch.equal(next(again).x, expected.x)
print(state)


# %% [markdown]
# ## Fetching shards
#
# Nothing in this course needs the network, but a real run needs a real corpus. The cells below define the download and do
# not start it. The client of the hub continues what was interrupted and renames a file when it is whole; we add the
# check of the sum, since a damaged shard would only show as a strange loss days later.
#
# **Trap: the exam that moves.** The first nanochat called the last file *on disk* its validation file. See what that does:

# %%
def last_on_disk(n): return f"shard_{n - 1:05d}"

small, large = last_on_disk(8), {f"shard_{i:05d}" for i in range(240 - 1)}
print(f"with 8 shards {small} is validation; with 240 it is {'trained on' if small in large else 'free'}")
assert small in large


# %% [markdown]
# Eight shards to train the tokenizer, 240 for the model, and the exam has become an exercise. Also, two runs with
# different numbers of shards cannot be compared. The cure is to *pin* it: the last shard of the corpus, whether or not the
# ones before it are there.

# %%
#| export
class Corpus(NamedTuple):
    "A corpus in parquet shards on the Hugging Face hub. Its last shard is validation, always."
    repo: str
    shards: int

    def name(self, i: int) -> str:
        "The file name of shard `i`; negative numbers count from the end."
        return f"shard_{i % self.shards:05d}.parquet"

FINEWEB_EDU = Corpus("karpathy/fineweb-edu-100b-shuffle", 1823)
CLIMBMIX = Corpus("karpathy/climbmix-400b-shuffle", 6543)

# %%
print(FINEWEB_EDU.name(0), FINEWEB_EDU.name(-1))
assert FINEWEB_EDU.name(-1) == "shard_01822.parquet" and CLIMBMIX.name(-1) == "shard_06542.parquet"


# %% [markdown]
# The download takes any hub by its address, so the tests run it against a little server of their own, one that breaks off
# in the middle of a file.

# %%
#| export
def _check_download(path: Path, url: str) -> None:
    "`UserError`, and the file is gone, when a file differs from the sum that the hub has for it."
    from huggingface_hub import get_hf_file_metadata
    etag = get_hf_file_metadata(url).etag or ""
    if len(etag) != 64: return                        # small files have another kind of sum
    with open(path, "rb") as f: found = hashlib.file_digest(f, "sha256").hexdigest()
    if found == etag: return
    path.unlink()
    raise UserError(f"{path.name} arrived damaged and was removed; run the download again")

def download_shards(
    repo: str,                    # a data set on the hub
    filenames: Iterable[str],     # files of it
    folder: Path | str,           # where they go
    endpoint: str | None = None,  # another hub than the public one
    workers: int = 4,             # downloads at a time
) -> list[Path]:                  # the files, in order
    """Download files of a data set; what is there already is kept, what broke off is continued.

    A file appears under its name when it is whole and its sum is right. `UserError` when the hub
    cannot be reached, or a file arrived damaged."""
    from huggingface_hub import hf_hub_download, hf_hub_url
    def fetch(name: str) -> Path:
        path, raw = Path(folder, name), Path(folder, ".unchecked")
        where = {"repo_type": "dataset", "endpoint": endpoint}
        if path.exists(): return path
        try:
            hf_hub_download(repo, name, local_dir=raw, **where)
            _check_download(raw / name, hf_hub_url(repo, name, **where))
            path.parent.mkdir(parents=True, exist_ok=True)
            (raw / name).replace(path)
        except UserError: raise
        except Exception as e:     # the client has errors of many kinds; each is a failed download
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise UserError(f"cannot download {name} of {repo} ({reason}); "
                            "check the network, then run it again") from e
        return path
    with ThreadPoolExecutor(workers) as pool: return list(pool.map(fetch, filenames))


# %% [markdown]
# Fetching a corpus means: the training shards you ask for, and the pinned one, always.

# %%
#| export
def download_corpus(
    corpus: Corpus,               # which
    n_train: int,                 # training shards wanted, from the first
    folder: Path | str,           # where they go
    endpoint: str | None = None,  # another hub than the public one
) -> tuple[list[Path], Path]:     # (training files, validation file)
    "Fetch `n_train` shards and the corpus's last, for validation. `UserError` for a bad number."
    if not 1 <= n_train < corpus.shards:
        raise UserError(f"{corpus.repo} has {corpus.shards - 1} training shards, not {n_train}")
    names = [corpus.name(i) for i in (-1, *range(n_train))]
    val, *train = download_shards(corpus.repo, names, folder, endpoint)
    return train, val


# %%
try: download_corpus(FINEWEB_EDU, 1823, "nowhere")
except UserError as e: print(e)
else: raise AssertionError("the validation shard must not be trained on")

# %% [markdown]
# ## At scale
#
# How many shards does the 20-layer model need? It has 561 million parameters and sees 20 tokens for each. A token is about
# 4.8 characters, a shard 250 million.

# %%
tokens = 20 * 561e6
shards = tokens * 4.8 / 250e6
print(f"{tokens / 1e9:.1f} billion tokens, {shards:.0f} shards, about {shards * 0.1:.0f} GB to download")
assert 200 < shards < 240 and shards < FINEWEB_EDU.shards

# %% [markdown]
# That is one epoch of an eighth of the corpus. With best fit about a third of the text is cropped away, so plan for half as
# many again. Your laptop's corpus is a few megabytes, and goes through the same functions.
#
# ## Recap
#
# * A document is what belongs together; a broken line is reported by file and number.
# * The content's hash decides what is validation, so copies stay on one side; for shards, the corpus's last one is pinned.
# * Documents: best fit, every row begins with one, the shortest is cropped. Conversations: never cropped, padded instead.
# * The order is a function of seed and epoch, so the place in the data is one number and a resume is exact.
# * Big data streams by row groups, each packed by itself: four numbers, still exact.
