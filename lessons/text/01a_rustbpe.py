# %% [markdown]
# # 01a The same trainer in Rust
#
# Lesson 01 trained a tokenizer in Python. Here the same algorithm runs in Rust, gives the same merges, and you see where the time goes.
#
# After it you can
#
# * say which part of training grows with the text, and which hardly does;
# * prove that two trainers agree, and why ties decide whether they do;
# * read the crate in `rustbpe/`: an algorithm in pure Rust, and a thin layer that speaks Python.
#
# You need lesson 01. Reading: 12 minutes. Computing: a few seconds. The crate is optional: without it the course trains in Python, and
# the Rust cells below say one line and do nothing. To build it you need Rust 1.85 or newer; then `uv pip install ./rustbpe` takes about a minute.

# %%
import time

from nanochat.microworld import corpus
from nanochat.tokenizer import SPLIT_PATTERN, Tokenizer, _count_pieces, _PairTable, train_bpe
from nanochat.workshop import by_tier, figure

try:
    from rustbpe import Tokenizer as Rust     # not `import rustbpe`: from the repository that finds the folder
except ImportError:
    Rust = None
print("the Rust crate is", "built" if Rust else "not built: the Rust cells of this lesson are skipped")

# %% [markdown]
# ## Where does the time go?
#
# Training has two parts: cut the text and count the pieces, then merge. **Predict, then run:** which part is longer?

# %%
texts = [doc.text for doc in corpus(by_tier(300_000, 2_000_000))]
n_bytes = sum(len(text.encode()) for text in texts)

def timed(f, *args):
    "Result of a call, and its seconds."
    start = time.perf_counter()
    result = f(*args)
    return result, time.perf_counter() - start

pieces, t_count = timed(_count_pieces, texts, SPLIT_PATTERN)
table, t_table = timed(_PairTable, pieces)
ranks, t_all = timed(train_bpe, texts, 1024)
print(f"{n_bytes:,} bytes in {sum(pieces.values()):,} pieces, of which {len(pieces):,} are distinct")
print(f"cut and count {t_count:.2f} s, first pair counts {t_table:.3f} s, everything {t_all:.2f} s")
assert len(pieces) < sum(pieces.values()) / 5

# %% [markdown]
# The two are of the same order here. But they grow differently. Cutting sees all of the text. The merges see only the distinct pieces, and ten times the text
# does not bring ten times the pieces: a story told again uses the same words. On a large corpus, cutting is nearly everything.
#
# So the first rule of making it fast is not a language. **Count equal things once.** A trainer that keeps every occurrence, as a first version does, pays for each
# merge with a walk over the whole text. The next cell does that on a hundredth of it.

# %%
from collections import Counter
from itertools import pairwise

import regex

from nanochat.tokenizer import merge

def train_naive(texts: list[str], vocab_size: int) -> list[bytes]:
    "Byte-pair encoding that keeps every piece and counts afresh for each merge."
    words = [list(piece.encode()) for text in texts for piece in regex.findall(SPLIT_PATTERN, text)]
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size:
        counts = Counter(pair for word in words for pair in pairwise(word))
        pair = min(counts, key=lambda p: (-counts[p], p))
        words = [merge(word, pair, len(tokens)) for word in words]
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens

few = texts[:max(1, len(texts) // 100)]
naive, t_naive = timed(train_naive, few, 300)
quick, t_quick = timed(train_bpe, few, 300)
print(f"44 merges on {sum(map(len, few)):,} characters: naive {t_naive:.2f} s, counted {t_quick:.3f} s")
assert naive == list(quick)

# %% [markdown]
# The merges are equal, to the last byte. That is not luck: both break ties the same way.
#
# ## The Rust crate
#
# `rustbpe/core` holds the algorithm and knows nothing of Python. It does what `_PairTable` does, with three differences.
#
# * **Cutting runs on all cores.** Each thread counts the pieces of its own texts in its own table; the tables are added at the end. Addition does not care about order, so the result
#   is the same with any number of threads.
# * **A merge repairs only its surroundings.** Where `a b` becomes `Z`, four pairs change: the one to the left, the one to the right, before and after. Python recounts the whole
#   piece, because its loop is slow and the pieces are short.
# * **Nothing is a Python object.** A symbol is four bytes in an array, a pair is eight bytes in a hash map.
#
# `rustbpe/src/lib.rs` is the layer that speaks Python. It takes texts from the iterator, a few thousand at a time, *releases the interpreter lock* while they are counted, and asks now and then
# whether you pressed Ctrl-C. Errors become Python's: `ValueError` for a bad pattern, `TypeError` for something that is not text, and an error of your own iterator comes through as it is.

# %%
if Rust:
    rust = Rust()
    _, t_rust = timed(rust.train_from_iterator, iter(texts), 1024)
    assert dict(rust.get_mergeable_ranks()) == ranks                 # every merge, in the same order
    print(f"Rust {t_rust:.2f} s, Python {t_all:.2f} s, equal merges: {rust.vocab_size - 256}")
else: print("skipped: the Rust crate is not built")

# %%
if Rust:
    for bad in ({"pattern": "("}, {"vocab_size": 200}):
        try: Rust().train_from_iterator(texts[:1], **{"vocab_size": 300} | bad)
        except ValueError as e: print("ValueError:", e)
        else: raise AssertionError(f"{bad} must be refused")
else: print("skipped: the Rust crate is not built")

# %% [markdown]
# ## Does it grow with the text?
#
# Cutting is linear in the bytes; the merges add a part that grows slowly. The figure shows your machine, and the ratio depends on its number of cores.

# %%
import matplotlib.pyplot as plt

parts = [texts[:len(texts) * k // 4] for k in (1, 2, 3, 4)]
sizes = [sum(len(t.encode()) for t in part) / 1e6 for part in parts]
lines = {"Python": [timed(train_bpe, part, 1024)[1] for part in parts]}
if Rust: lines["Rust"] = [timed(Rust().train_from_iterator, part, 1024)[1] for part in parts]
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for (name, seconds), style in zip(lines.items(), ("s--", "o-")): ax.plot(sizes, seconds, style, label=name)
ax.set(xlabel="megabytes of text", ylabel="seconds", xlim=(0, None), ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="Time to train 768 merges against the size of the text, on this machine.",
       alt="Rising, nearly straight lines of seconds against megabytes: Python on top, and below it, where "
           "the crate is built, Rust.")
assert all(len(seconds) == 4 for seconds in lines.values())

# %% [markdown]
# ## Trap: a tie is a fork in the road
#
# Change one rule: on equal counts take the *larger* pair. Every count is still right, and the compression is as good. But from the first tie on the ids differ, and a model trained
# with one tokenizer reads noise from the other. No error is raised anywhere.

# %%
tied = ["ba bc yz"]                       # every pair occurs once
smaller = list(train_bpe(tied, 258))[256:]

words = [list(piece) for piece in _count_pieces(tied, SPLIT_PATTERN)]
larger = max(pair for word in words for pair in pairwise(word))
print("smaller pair first:", smaller, "  larger pair first:", bytes(larger))
assert smaller[0] == b" b" and bytes(larger) == b"yz"

# %% [markdown]
# A hash map that is walked in its own order does the same to you, and differently each time. That is why the rule is part of the algorithm, why it is tested against slow
# references, and why checkpoints store the tokenizer's fingerprint.
#
# ## In the course
#
# `Tokenizer.train` uses the crate where it is built and says so once where it is not. You never have to choose.

# %%
made = Tokenizer.train(texts, 1024)
assert made.ranks == dict(list(ranks.items())[:1024 - 9])            # nine ids go to the special tokens
print("vocabulary", made.vocab_size, "fingerprint", made.fingerprint()[:12])

# %% [markdown]
# ## Recap
#
# 1. Cutting grows with the text; merging grows with the distinct pieces, which are few.
# 2. Counting equal pieces once gives most of the speed, in any language.
# 3. Threads count their own texts; sums do not depend on order.
# 4. Ties must be broken by rule, or equal programs give unequal tokenizers.
# 5. A fast part has a slow twin that it must equal: that is what makes it safe to use.
