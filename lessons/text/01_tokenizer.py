# %% [markdown]
# # 01 The tokenizer

# %%
#| default_exp tokenizer

# %%
#| export
import base64
import binascii
import codecs
import hashlib
import heapq
import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken
import torch
from fastcore.basics import patch
from torch import Tensor

from nanochat.workshop import UserError, atomic_write, print0

# %%
#| export
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


# %%
#| export
def merge(
    ids: Sequence[int],     # symbols of one piece
    pair: tuple[int, int],  # the two neighbours to join
    new: int,               # the symbol that takes their place
) -> list[int]:             # a shorter or equally long list
    "Replace every occurrence of `pair` by `new`, from left to right and without overlaps."
    out, i = [], 0
    while i < len(ids):
        hit = i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]
        out.append(new if hit else ids[i])
        i += 2 if hit else 1
    return out


# %%
#| export
def _utf8(text: str) -> bytes:
    "UTF-8 of `text`; half a surrogate pair, which has no UTF-8, becomes U+FFFD as in tiktoken."
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _count_pieces(texts: Iterable[str], pattern: str) -> Counter:
    "How often each piece of the split (as UTF-8 bytes) occurs."
    if isinstance(texts, str): raise TypeError("texts must be many strings, not one string")
    split, counts = regex.compile(pattern), Counter()
    for text in texts:
        counts.update(match.group() for match in split.finditer(text))
    pieces = Counter()
    for piece, n in counts.items():
        pieces[_utf8(piece)] += n
    return pieces


# %%
#| export
class _PairTable:
    "Pair counts over counted pieces, kept right while pairs are merged."

    def __init__(self, pieces: dict[bytes, int]):
        self.words = [list(piece) for piece in pieces]      # symbols of each distinct piece
        self.times = list(pieces.values())                  # how often that piece occurs
        self.counts, self.where = Counter(), defaultdict(list)
        for i, word in enumerate(self.words): self._add(i, word)
        self.heap = [(-n, pair) for pair, n in self.counts.items()]
        heapq.heapify(self.heap)

    def _add(self, i: int, word: list[int]):
        for pair in pairwise(word):
            self.counts[pair] += self.times[i]
            self.where[pair].append(i)

    def best(self) -> tuple[int, int] | None:
        "The most frequent pair; on equal counts the smaller one. None when nothing is left."
        while self.heap:
            n, pair = heapq.heappop(self.heap)
            now = self.counts[pair]
            if now == -n and now > 0: return pair
            if now > 0: heapq.heappush(self.heap, (-now, pair))     # an old count: file it again
        return None

    def apply(self, pair: tuple[int, int], new: int):
        "Merge `pair` into `new` in every piece that holds it, and bring the counts up to date."
        fresh = set()
        for i in dict.fromkeys(self.where.pop(pair)):
            old = self.words[i]
            word = self.words[i] = merge(old, pair, new)
            if len(word) == len(old): continue              # an earlier merge took the pair away
            for gone in pairwise(old): self.counts[gone] -= self.times[i]
            self._add(i, word)
            fresh.update(p for p in pairwise(word) if new in p)
        for p in fresh: heapq.heappush(self.heap, (-self.counts[p], p))


# %%
#| export
def train_bpe(
    texts: Iterable[str],          # documents; any iterable, read once
    vocab_size: int,               # bytes + merges; at least 256
    pattern: str = SPLIT_PATTERN,  # the split; no merge crosses its borders
) -> dict[bytes, int]:             # token bytes -> rank; ranks 0..255 are the bytes
    """Byte-pair encoding learned from `texts` in pure Python (Sennrich et al. 2016).

    The most frequent pair is merged first; on equal counts the smaller pair (left id, then
    right id). Ends early when no pair is left. Raises ValueError when `vocab_size` < 256.
    """
    if vocab_size < 256: raise ValueError(f"vocab_size must be at least 256, got {vocab_size}")
    table, tokens = _PairTable(_count_pieces(texts, pattern)), [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size and (pair := table.best()):
        table.apply(pair, len(tokens))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return {token: rank for rank, token in enumerate(tokens)}


# %%
#| export
SPECIALS = (
    "<|bos|>",
    "<|user_start|>", "<|user_end|>",
    "<|assistant_start|>", "<|assistant_end|>",
    "<|python_start|>", "<|python_end|>",
    "<|output_start|>", "<|output_end|>",
)


# %%
#| export
def _check_ranks(ranks: dict[bytes, int]):
    "Raise UserError unless `ranks` holds every byte and numbers its tokens 0, 1, 2, ..."
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError("tokenizer ranks must be 0, 1, 2, ... without gaps; train it again")
    if not all(ranks.get(bytes([b])) == b for b in range(256)):
        raise UserError("tokenizer ranks must give the 256 bytes ids 0..255; train it again")


# %%
#| export
_LONG_TEXT = 200_000    # characters; above it the regex stack of tiktoken can run over


class Tokenizer:
    "Text to ids and back: byte-pair tokens first, the nine special tokens after them."

    def __init__(
        self,
        ranks: dict[bytes, int],       # token bytes -> id, bytes first
        pattern: str = SPLIT_PATTERN,  # the split the ranks were trained with
    ):
        _check_ranks(ranks)
        n = len(ranks)
        self.ranks, self.pattern, self.vocab_size = dict(ranks), pattern, n + len(SPECIALS)
        self._special_ids = {name: n + i for i, name in enumerate(SPECIALS)}
        (self.bos, self.user_start, self.user_end, self.assistant_start, self.assistant_end,
         self.python_start, self.python_end, self.output_start, self.output_end,
         ) = self._special_ids.values()
        self._split = regex.compile(pattern)
        self._encoding = tiktoken.Encoding(
            "nanochat", pat_str=pattern, mergeable_ranks=self.ranks,
            special_tokens=self._special_ids)

    def encode(self, text: str) -> list[int]:
        "Ids of `text`. A special token spelled in the text is ordinary text, never its id."
        if len(text) <= _LONG_TEXT: return self._encoding.encode_ordinary(text)
        return [i for match in self._split.finditer(text)
                for i in self._encoding._encode_single_piece(_utf8(match.group()))]

    def encode_batch(self, texts: list[str], threads: int = 2) -> list[list[int]]:
        "Ids of each text, encoded by several threads."
        if any(len(text) > _LONG_TEXT for text in texts): return [self.encode(t) for t in texts]
        return self._encoding.encode_ordinary_batch(texts, num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        "Text of `ids`: specials as they are spelled, bytes that are no UTF-8 as U+FFFD."
        return self._encoding.decode(list(ids), errors="replace")

    def special(self, name: str) -> int:
        "Id of a special token by its spelling, as in `special('<|bos|>')`."
        if name not in self._special_ids:
            raise UserError(f"no special token {name!r}; there are {', '.join(SPECIALS)}")
        return self._special_ids[name]


# %%
#| export
@cache
def _rust_trainer() -> type | None:
    "The trainer class of the Rust crate, or None (said once) where it is not built."
    try:
        from rustbpe import Tokenizer as RustTrainer
    except ImportError:
        print0("rustbpe is not built: training in Python, slower but with equal merges")
        return None
    return RustTrainer


@patch(cls_method=True)
def train(
    cls: Tokenizer,
    texts: Iterable[str],          # documents; any iterable, read once
    vocab_size: int,               # bytes + merges + the nine specials
    pattern: str = SPLIT_PATTERN,  # the split; no merge crosses its borders
) -> Tokenizer:                    # smaller than asked when the text has too few pairs
    "Train a tokenizer: with the Rust crate where it is built, else in Python; equal merges."
    n = vocab_size - len(SPECIALS)
    if n < 256: raise UserError(f"vocab_size must be at least 265, got {vocab_size}")
    trainer = _rust_trainer()
    if trainer is None: return cls(train_bpe(texts, n, pattern), pattern)
    rust = trainer()
    rust.train_from_iterator(iter(texts), n, pattern=pattern)
    return cls({bytes(token): rank for token, rank in rust.get_mergeable_ranks()}, pattern)


# %%
#| export
def _merge_system(messages: list[dict]) -> list[dict]:
    "Messages with a leading system message joined to the first user message."
    if not messages or messages[0].get("role") != "system": return messages
    if len(messages) < 2 or messages[1].get("role") != "user":
        raise UserError("a system message must be followed by a user message")
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _checked_messages(conversation: dict) -> list[dict]:
    "The messages of a conversation; UserError unless user and assistant alternate."
    messages = _merge_system(conversation["messages"])
    if not messages: raise UserError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        want = ("user", "assistant")[i % 2]
        if message.get("role") != want:
            raise UserError(f"message {i} must be from {want}, not {message.get('role')!r}: "
                            "roles alternate, user first")
    return messages


# %%
#| export
@patch
def _text(self: Tokenizer, text: object, supervised: int) -> Iterator[tuple[int, int]]:
    if not isinstance(text, str):
        raise UserError(f"a message holds text, not {type(text).__name__}")
    for i in self.encode(text): yield i, supervised


@patch
def _assistant(self: Tokenizer, content: str | list) -> Iterator[tuple[int, int]]:
    "(id, mask) of an assistant's content: what the tool wrote is not supervised."
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            yield from self._text(part["text"], 1)
        elif kind == "python":
            yield self.python_start, 1
            yield from self._text(part["text"], 1)
            yield self.python_end, 1
        elif kind == "python_output":
            yield self.output_start, 0
            yield from self._text(part["text"], 0)
            yield self.output_end, 0
        else:
            raise UserError(f"unknown part type {kind!r}; use text, python or python_output")


@patch
def _render(self: Tokenizer, messages: list[dict]) -> Iterator[tuple[int, int]]:
    "(id, mask) of every token of a conversation."
    yield self.bos, 0
    for message in messages:
        if message["role"] == "user":
            yield self.user_start, 0
            yield from self._text(message["content"], 0)
            yield self.user_end, 0
        else:
            yield self.assistant_start, 0
            yield from self._assistant(message["content"])
            yield self.assistant_end, 1


# %%
#| export
@patch
def render(
    self: Tokenizer,
    conversation: dict,              # {"messages": [{"role", "content"}, ...]}
    max_tokens: int | None = None,   # keep the first so many; None keeps all
) -> tuple[list[int], list[int]]:    # ids, and mask: 1 where the assistant is to learn
    """Ids and loss mask of a conversation, in nanochat's layout.

    User content is a string; assistant content a string or a list of parts of type text,
    python or python_output. Raises UserError when roles do not alternate, user first.
    """
    pairs = list(self._render(_checked_messages(conversation)))[:max_tokens]
    return [i for i, _ in pairs], [m for _, m in pairs]


@patch
def render_prompt(
    self: Tokenizer,
    conversation: dict,  # a final assistant message, if there is one, is left out
) -> list[int]:          # ids that end with <|assistant_start|>
    "Ids of a conversation up to the point where the assistant has to answer."
    messages = _checked_messages(conversation)
    if messages[-1]["role"] == "assistant": messages = messages[:-1]
    return [i for i, _ in self._render(messages)] + [self.assistant_start]


# %%
#| export
@patch
def token_bytes(self: Tokenizer) -> Tensor:  # (V,) int64
    "Bytes of each token, 0 for specials: the denominator of bits per byte."
    lengths = [len(token) for token, _ in sorted(self.ranks.items(), key=lambda item: item[1])]
    return torch.tensor(lengths + [0] * len(SPECIALS), dtype=torch.int64)


# %%
#| export
class StreamDecoder:
    "Ids to text one at a time; bytes wait until the character they belong to is whole."

    def __init__(self, tokenizer: Tokenizer):
        self._encoding = tokenizer._encoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        "The text that became certain with this id; it may be empty."
        return self._utf8.decode(self._encoding.decode_single_token_bytes(id))

    def flush(self) -> str:
        "What is left at the end: U+FFFD if a character was cut, else nothing."
        return self._utf8.decode(b"", final=True)


def stream_decoder(tokenizer: Tokenizer) -> StreamDecoder:
    "A fresh decoder for one reply: call `.push(id)` for each id and `.flush()` at the end."
    return StreamDecoder(tokenizer)


# %%
#| export
_FORMAT = "nanochat-tokenizer-1"


@patch
def _contents(self: Tokenizer) -> dict:
    "Everything that makes this tokenizer what it is, ready for JSON."
    tokens = sorted(self.ranks, key=self.ranks.get)
    return {"format": _FORMAT, "pattern": self.pattern, "specials": list(SPECIALS),
            "tokens": [base64.b64encode(token).decode() for token in tokens]}


@patch
def fingerprint(self: Tokenizer) -> str:  # 64 hex digits
    "SHA-256 of ranks, pattern and specials: equal exactly when two tokenizers agree."
    return hashlib.sha256(json.dumps(self._contents(), sort_keys=True).encode()).hexdigest()


@patch
def save(self: Tokenizer, folder: str | Path):
    "Write `folder/tokenizer.json`, atomically. Plain JSON: loading it can run no code."
    Path(folder).mkdir(parents=True, exist_ok=True)
    contents = self._contents() | {"fingerprint": self.fingerprint()}
    atomic_write(Path(folder) / "tokenizer.json", json.dumps(contents, indent=0) + "\n")


# %%
#| export
def _parse(raw: bytes) -> Tokenizer:
    "The tokenizer stored in `raw`; ValueError, KeyError or TypeError when it is not one."
    stored = json.loads(raw)
    if stored["format"] != _FORMAT: raise ValueError(f"format {stored['format']!r}")
    if stored["specials"] != list(SPECIALS): raise ValueError("other special tokens")
    tokens = [base64.b64decode(token, validate=True) for token in stored["tokens"]]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)}, stored["pattern"])
    if tokenizer.fingerprint() != stored["fingerprint"]: raise ValueError("wrong fingerprint")
    return tokenizer


@patch(cls_method=True)
def load(cls: Tokenizer, folder: str | Path) -> Tokenizer:
    "The tokenizer saved in `folder`. UserError when it is missing or broken."
    path = Path(folder) / "tokenizer.json"
    if not path.is_file(): raise UserError(f"no tokenizer at {path}: train one first")
    try:
        return _parse(path.read_bytes())
    except (ValueError, KeyError, TypeError, UserError, binascii.Error, regex.error) as e:
        raise UserError(f"{path} is broken ({e}): train the tokenizer again") from e


# %%
#| export
def visualize(
    tokenizer: Tokenizer,
    ids: Sequence[int],   # tokens
    mask: Sequence[int],  # 1 where the token is supervised; same length
) -> str:                 # HTML, safe to show: the text is escaped
    "Each token in its own box; supervised ones are bold on green, the rest plain on grey."
    boxes = []
    for i, m in zip(ids, mask, strict=True):
        text = html.escape(tokenizer.decode([i])).replace("\n", "\\n").replace(" ", "&nbsp;")
        style = "background:#bfe3c5;font-weight:bold" if m else "background:#e4e4e4"
        boxes.append(f'<span title="id {i}" style="{style};color:#111;margin:1px;padding:0 2px">'
                     f"{text}</span>")
    return '<div style="font-family:monospace;line-height:1.8">' + "".join(boxes) + "</div>"
