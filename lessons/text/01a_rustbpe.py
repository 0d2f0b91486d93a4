# %% [markdown]
# # 01a The fastest trainer
#
# The trainer of lesson 01 gives the right merges, slowly. Here the same algorithm becomes more than ten times faster than the published `rustbpe` and `tokenizers`, and two to four times faster than `gigatoken`, one thought at a time, and you measure what each thought is worth.
#
# After it you can
#
# * say which part of training grows with the text and which with the distinct pieces, and measure both;
# * replace a regular expression by a scanner, and prove that nothing changed;
# * lay out data so that a processor likes it: keys that are numbers, cells that know their neighbours;
# * leave work undone without changing the result, and say why that is allowed;
# * read the crate in `rustbpe/`: about 2,600 lines of Rust with comments and tests, of which you will have met every idea.
#
# You need lesson 01. Reading: 25 minutes. Doing: 20 minutes. Computing: half a minute. Nothing here needs Rust knowledge. The crate is optional: without it the course trains in Python, and
# the Rust cells say one line and do nothing. To build it you need Rust 1.85 or newer; then `uv pip install ./rustbpe` takes about a minute.

# %%
import gc
import random
import time
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import regex

from nanochat.microworld import corpus
from nanochat.tokenizer import SPLIT_PATTERN, Tokenizer, _count_pieces, _PairTable, merge, train_bpe
from nanochat.workshop import by_tier, figure, stored_result

try:
    from rustbpe import Tokenizer as Rust, split    # not `import rustbpe`: from the repository that finds the folder
except ImportError:
    Rust = split = None
print("the Rust crate is", "built" if Rust else "not built: the Rust cells of this lesson are skipped")

# %% [markdown]
# ## The same merges, forty times faster
#
# Run the next cell. It trains the same 768 merges on the same two megabytes, first with lesson 01's Python, then with the crate.

# %%
texts = [doc.text for doc in corpus(by_tier(300_000, 2_000_000))]

def timed(f, *args, **options):
    "Result of a call, and its seconds of processor time: other programs on the machine do not count."
    gc.collect()
    gc.disable()                                    # a collection hits whoever is running
    start = time.process_time()
    result = f(*args, **options)
    seconds = time.process_time() - start
    gc.enable()
    return result, seconds

ranks, t_python = timed(train_bpe, texts, 1024)
print(f"Python: {t_python:.2f} s for {len(ranks) - 256} merges")
if Rust:
    rust = Rust()
    _, t_rust = timed(rust.train_from_iterator, texts, 1024)
    print(f"Rust:   {t_rust:.3f} s, {t_python / t_rust:.0f} times faster, equal merges: {dict(rust.get_mergeable_ranks()) == ranks}")
assert len(ranks) == 1024 and (not Rust or dict(rust.get_mergeable_ranks()) == ranks)


# %% [markdown]
# "Rust is a fast language" is a small part of the answer. The published trainer of this kind, `rustbpe` 0.1.0, is written in Rust too, and the crate here is more than ten times
# faster than that (the section "Against the published ones" shows how that was measured). The rest is six ideas, and each works in any language.
#
# ## Where does the time go?
#
# Measure before you think. Training has two parts: cut the text and count the pieces, then merge. **Predict, then run:** which part is longer, and which grows when the text grows?

# %%
def parts(texts: list[str], vocab_size: int = 1024) -> tuple[float, float, int]:
    "Seconds of cutting and counting, seconds of merging, number of distinct pieces."
    pieces, t_count = timed(_count_pieces, texts, SPLIT_PATTERN)
    def merging():
        table = _PairTable(pieces)
        for new in range(256, vocab_size): table.apply(table.best(), new)
    return t_count, timed(merging)[1], len(pieces)

distinct = {}
for share in (4, 2, 1):
    t_count, t_merge, distinct[share] = parts(texts[:len(texts) // share])
    print(f"1/{share} of the text: cut and count {t_count:.2f} s, merge {t_merge:.2f} s, {distinct[share]:,} distinct pieces")
growth = distinct[1] / distinct[4]
print(f"four times the text holds {growth:.1f} times as many distinct pieces")
assert growth < by_tier(3, 2)


# %% [markdown]
# Cutting doubles when the text doubles. Merging does not: it sees only the *distinct* pieces, and most of what a new story says was said before. What is new in it is mostly names,
# and so the distinct pieces never stop growing, but they grow ever more slowly. On a large corpus cutting is therefore nearly everything, and that part we attack first.
#
# The first idea is already in lesson 01: **count equal things once**. A trainer that keeps every occurrence pays for each merge with a walk over the whole text. This one does, on a hundredth of it.

# %%
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
# ## Idea 1: cut without a regex engine
#
# A regex engine does not know which of the pattern's alternatives will fit. It tries the first, goes back, tries the second, and so on, for every piece of the text. But look at what the
# alternatives begin with. One character, or two, decides:
#
# | the piece begins with | then it is |
# |---|---|
# | a letter | all letters that follow |
# | a digit | this digit and perhaps one more |
# | anything else, then a letter | that character and all letters that follow |
# | a sign, perhaps after a space | all signs that follow, and line ends |
# | white space | see below |
#
# White space is the one hard case. A run of it ends behind its last line end if it has one; else it leaves its last character to the word behind it; at the end of the text it stays whole.
# Here is the whole scanner, for ASCII and without the apostrophe rule.

# %%
def kind(c: str) -> str:
    return "letter" if c.isalpha() else "digit" if c.isdigit() else "space" if c.isspace() else "sign"

def run_of(what: str, text: str, i: int, most: int = 10**9) -> int:
    "Where the run of one kind that starts at `i` ends."
    end = i
    while end < len(text) and end - i < most and kind(text[end]) == what: end += 1
    return end

def piece_end(text: str, i: int) -> int:
    "Where the piece that starts at `i` ends."
    first = kind(text[i])
    if first == "letter": return run_of("letter", text, i)
    if first == "digit": return run_of("digit", text, i, most=2)
    if text[i] not in "\r\n" and (end := run_of("letter", text, i + 1)) > i + 1: return end
    signs = run_of("sign", text, i + (text[i] == " "))
    if signs > i + (text[i] == " "):
        while signs < len(text) and text[signs] in "\r\n": signs += 1
        return signs
    end = run_of("space", text, i)
    line_end = max(text.rfind("\n", i, end), text.rfind("\r", i, end))
    if line_end >= 0: return line_end + 1
    return end - 1 if end < len(text) and end - 1 > i else end

def scan(text: str) -> list[str]:
    "The pieces of an ASCII text."
    pieces, i = [], 0
    while i < len(text): pieces, i = pieces + [text[i:(end := piece_end(text, i))]], end
    return pieces

print(scan("Tom pays 12345 dollars,\n   then runs."))
assert scan("a  b\n\n  c !! ") == regex.findall(SPLIT_PATTERN, "a  b\n\n  c !! ")

# %% [markdown]
# Is it *equal* to the pattern? Reading it again will not tell you. Thousands of random texts, made of just the characters that matter, will find a difference if there is one.

# %%
draw = random.Random(0)
for _ in range(by_tier(2_000, 20_000)):
    text = "".join(draw.choices("abZ019 \t\n\r!?-_", k=draw.randrange(16)))
    assert scan(text) == regex.findall(SPLIT_PATTERN, text), repr(text)
print("equal on every random text; the last was", repr(text))

# %% [markdown]
# Break it on purpose: change `most=2` to `most=3` and run both cells. The error message shows a text that tells the two apart. That is how the crate's scanner was
# made safe. Its test runs a million and a half random texts of all Unicode through four patterns, and every file of real data; `\p{L}` and its friends become one look-up in a table that is read out of the
# regex engine itself, so both mean the same Unicode. For a pattern it does not know the crate falls back to the engine.

# %%
if split:
    text = "".join(texts)
    engine = f"(?:{SPLIT_PATTERN})"                 # the same pattern, spelled so that the crate does not know it
    ours, t_scan = timed(split, text)
    theirs, t_regex = timed(split, text, engine)
    python, t_module = timed(regex.findall, SPLIT_PATTERN, text)
    assert ours == theirs == python
    for name, t in (("scanner", t_scan), ("Rust's regex engine", t_regex), ("Python's regex module", t_module)):
        print(f"{name:22s} {len(text) / t / 1e6:6.1f} MB/s")
else: print("skipped: the Rust crate is not built")


# %% [markdown]
# Nearly all of the scanner's time in that cell goes into making a list of Python strings. Inside the crate, where a piece is two numbers, start and end, it cuts 50 MB in a tenth of a second, twenty times
# faster than the engine (Figure 4).
#
# ## Idea 2: eight letters at a time
#
# The longest loop is the one over letters, and its end is a guess that the processor gets wrong once per word. A wrong guess costs about fifteen cycles, as much as the word. So take eight
# bytes as *one* number, and ask about all of them in a few instructions without a guess.
#
# The trick is an addition that carries into the top bit. ASCII stays below 128. Add $128 - 97$ to a byte: from `a` (97) on the sum has its top bit set. Add $127 - 122$: behind `z` (122) it has.
# A letter has the first bit and not the second. (Capitals become small by setting bit 5. Tricks of this kind are old; Knuth's volume 4A collects them as "broadword" techniques.)

# %%
def each(byte: int) -> int: return int.from_bytes(bytes([byte] * 8))

def leading_letters(eight: bytes) -> int:
    "How many of eight bytes are ASCII letters, counted from the first up to one that is none."
    number = int.from_bytes(eight, "little")                     # the first byte is the lowest
    small = number & each(0x7F) | each(0x20)                     # capitals to small letters
    from_a, behind_z = small + each(128 - ord("a")), small + each(127 - ord("z"))
    letter = from_a & ~behind_z & ~number & each(0x80)           # a top bit for each letter
    first_other = ~letter & each(0x80)
    return ((first_other & -first_other).bit_length() - 1) // 8 if first_other else 8

for eight in (b"tomorrow", b"Tom pays", b"12 years", b"caf\xc3\xa9 an"): print(eight, leading_letters(eight))
for byte in range(256):
    assert leading_letters(b"xyz" + bytes([byte]) + b"abcd") == (8 if chr(byte).isalpha() and byte < 128 else 3)

# %% [markdown]
# ## Idea 3: the piece is its own key
#
# Now count the pieces. A general hash map keeps each piece as a string somewhere in memory. Each look-up hashes the string byte by byte, finds an entry, and *follows a pointer* to compare: one
# more trip to memory, and memory is two hundred cycles away. How long are pieces?

# %%
pieces = _count_pieces(texts, SPLIT_PATTERN)
total = sum(pieces.values())
share = [sum(n for piece, n in pieces.items() if len(piece) <= size) / total for size in range(1, 21)]
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.bar(range(1, 21), share, color=["C0"] * 15 + ["C1"] * 5)
ax.axvline(15.5, color="k", lw=1, ls=":")
ax.set(xlabel="bytes", ylabel="share of pieces", xticks=[1, 5, 10, 15, 20], ylim=(0, 1.05))
figure(fig, caption="Share of all pieces that are at most so long, in the microworld. 15 bytes fit into a key.",
       alt="Bars that rise from a small share at 1 byte to more than nine tenths at 8 bytes and to practically 1 "
           "at 15 bytes, where a dotted line stands; the bars behind it add nothing visible.")
assert share[14] > 0.99


# %% [markdown]
# Nearly all fit into 15 bytes. So let two 64-bit numbers *be* the piece: up to 15 bytes, zeros behind them, the length in the last byte. Equal pieces have equal numbers. Comparing is two
# instructions, hashing is one multiplication whose halves are folded together (an idea of Wang Yi's `wyhash`), and the entry holds the key itself. The few longer pieces lie end to end in a buffer.

# %%
def key(piece: bytes) -> tuple[int, int]:
    "A piece of up to 15 bytes as two 64-bit numbers."
    assert len(piece) <= 15
    whole = piece.ljust(15, b"\0") + bytes([len(piece)])
    return int.from_bytes(whole[:8], "little"), int.from_bytes(whole[8:], "little")

def hashed(low: int, high: int) -> int:
    product = (low ^ 0x9E3779B97F4A7C15) * (high ^ 0xD6E8FEB86659FD93)
    return (product ^ product >> 64) % 2**64

short = [piece for piece in pieces if len(piece) <= 15]
print(key(b" the"), "->", f"{hashed(*key(b' the')):016x}", "   ", key(b" thd"), "->", f"{hashed(*key(b' thd')):016x}")
assert len({key(piece) for piece in short}) == len(short) and key(b"a") != key(b"a\0")

# %% [markdown]
# One bit of difference in the key, and about half the bits of the hash differ. **Predict, then run:** in a table of 4,096 places, how many of 1,000 pieces find their place taken already?
# A perfectly random hash gives about 113.

# %%
places = Counter(hashed(*key(piece)) % 4096 for piece in short[:1000])
taken = sum(n - 1 for n in places.values())
print(f"{len(short[:1000])} pieces, {taken} find their place taken")
assert taken < 180

# %% [markdown]
# ## Idea 4: cells that know their neighbours
#
# Now the merging. `_PairTable` rewrites a whole piece to join two symbols in it, and recounts all its pairs. The crate writes four numbers instead.
#
# All distinct pieces stand in one row of *cells*, a cell for each byte, and a wall between two pieces. A token of five bytes spans five cells for ever. Its number stands in its **first and in its last** cell.
# From the first cell, the length tells where the next token starts; and the cell just *before* is the last cell of the previous token, so it names it. No list to link, nothing to move.

# %%
WALL, INSIDE = "|", "."

def join(cells: list, lengths: dict, place: int, pair: tuple, new: int):
    "Make one token of the pair that starts at `place`: at most four cells are written."
    middle = place + lengths[pair[0]]
    end = middle + lengths[pair[1]]
    print(f"{pair} at {place}: before it {cells[place - 1]!r}, behind it {cells[end]!r}")
    cells[middle - 1] = cells[middle] = INSIDE
    cells[place] = cells[end - 1] = new

lengths = dict.fromkeys("hugs", 1) | {256: 2, 257: 3, 258: 4}
cells = [WALL, *"hug", WALL, *"hugs", WALL]
rows = [list(cells)]
for new, pair, where in ((256, ("u", "g"), (2, 6)), (257, ("h", 256), (1, 5)), (258, (257, "s"), (5,))):
    for place in where: join(cells, lengths, place, pair, new)
    rows.append(list(cells))
assert rows[-1] == [WALL, 257, INSIDE, 257, WALL, 258, INSIDE, INSIDE, 258, WALL]

# %%
colours = {256: "C0", 257: "C1", 258: "C2", INSIDE: "0.9", WALL: "0.3"}
fig, ax = plt.subplots(figsize=(5.4, 2.4), layout="constrained")
for y, row in enumerate(rows):
    for x, cell in enumerate(row):
        ax.add_patch(plt.Rectangle((x, -y), 0.94, 0.86, color=colours.get(cell, "0.8"), alpha=0.55))
        ax.text(x + 0.47, 0.42 - y, cell, ha="center", va="center", fontsize=9)
ax.set(xlim=(-0.1, len(cells)), ylim=(-len(rows) + 0.9, 1), xticks=[],
       yticks=[0.42 - y for y in range(4)], yticklabels=["bytes", "256 = u g", "257 = h 256", "258 = 257 s"])
for spine in ax.spines.values(): spine.set_visible(False)
figure(fig, caption="The pieces `hug` and `hugs` in a row of cells, and three merges. A token's number is in its first and last cell.",
       alt="Four rows of ten cells with walls at both ends and in the middle. First the letters of hug and hugs; then u and g "
           "have become 256 256 in both; then h 256 has become 257, dot, 257; last the second word is 258, dot, dot, 258.")

# %% [markdown]
# Each pair keeps a list of the places where it occurs. A place may be out of date, because another merge was faster; but whether it is takes two looks: is `a` still here, and `b` right
# behind it? All lists are sorted, by construction, so a merge walks through memory in one direction.
#
# One number is still missing: how often the piece counts that a place lies in. A table for that would be as large as the text. Instead the pieces stand in the row *sorted by count*, and since places come
# in ascending order, one finger on the list of groups is enough.
#
# And counts change in bulk. While a merge walks over its places, it only notes which tokens stand before and behind, and how often. Afterwards the big map of pairs is asked once per *neighbour*: a hundred
# questions instead of a million.
#
# ## Idea 5: leave the rare pairs alone
#
# How many of all pairs are ever merged? **Guess before you run:** the text has some number of different neighbours over the whole training. What share of them becomes a token?

# %%
table = _PairTable(pieces)
born = {pair: n for pair, n in table.counts.items()}                 # pairs, with their count when they appear
for new in range(256, 1024):
    pair = table.best()
    last = table.counts[pair]
    table.apply(pair, new)
    born |= {p: n for p, n in table.counts.items() if new in p}
nth = sorted(pieces.values(), reverse=True)[min(1024, len(pieces)) - 1]
never = sum(n < last for n in born.values())
print(f"{len(born):,} pairs appear, 768 are merged, the last one with {last:,} occurrences")
print(f"{never / len(born):.0%} of the pairs are rarer than that when they appear; the 1,024th piece occurs {nth:,} times")
assert never > len(born) / 2

# %%
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.loglog(range(1, len(born) + 1), sorted(born.values(), reverse=True), lw=2)
ax.axhline(last, color="C1", ls="--", label="the last merge")
ax.axhline(nth, color="C2", ls=":", label="the floor that the crate guesses")
ax.set(xlabel="pairs, by their count when they appear", ylabel="count")
ax.legend(frameon=False)
figure(fig, caption="Pairs by how often they occur when they first appear, and the count of the last merge.",
       alt="A falling curve on logarithmic axes. A dashed line, the count of the last merge, cuts it about three quarters along the axis; nearly nine tenths of the pairs "
           "lie to the right and below. A dotted line, the guessed floor, runs somewhat below the dashed one.")

# %% [markdown]
# Most pairs are born too rare to win, and **a pair can never grow**: it gains occurrences only in the step that makes the younger of its two symbols. After that every merge can only take some away. So a
# pair that starts below the last merge's count may be forgotten at birth: no list of places, no entry in the map, no place in the queue.
#
# But nobody knows the last merge's count at the start. The crate guesses: a vocabulary of 1,024 could at most hold the 1,024 most frequent pieces whole, so the count of the 1,024th piece is a good **floor**. If the
# guess was too high, the queue runs empty. Then the floor is lowered and the cells are read once more. The guess costs time when it is wrong, never a merge.
#
# Write down why the same trick fails for a trainer whose counts can *rise* later, for instance one that drops rare words on the way. (They cannot rise here because each merge only removes old pairs.)
#
# ## Idea 6: nobody waits
#
# With two cores, one thread must read texts from your Python iterator, and Python lets only one thread at a time touch its objects. So reading and counting are pipelined: the reading thread copies a megabyte
# of texts, drops the interpreter lock and puts it in a short queue. Other threads count from the queue, each in a table of its own; when it is full, the reader counts too. The tables are added at the end. Addition does
# not care about order, so the merges are the same with any number of threads, and memory holds a few batches however long the text is.

# %%
if Rust:
    told, made = [], [Rust(), Rust()]
    for threads, tokenizer in enumerate(made, start=1):
        stream = (text for text in texts)                            # any iterator: nothing asks for its length
        tokenizer.train_from_iterator(stream, 1024, threads=threads, progress=lambda *news: told.append(news))
    print(told[-1], "equal:", made[0].get_mergeable_ranks() == made[1].get_mergeable_ranks())
    assert made[0].get_mergeable_ranks() == made[1].get_mergeable_ranks() and told[-1] == ("merge", 768, 768)
else: print("skipped: the Rust crate is not built")


# %% [markdown]
# Between batches, and ten times a second while merging, the crate asks Python whether you pressed Ctrl-C. Errors become Python's, and an error of your own iterator comes through as it is.

# %%
def broken():
    yield "some text"
    raise LookupError("the shard is gone")

if Rust:
    for arguments in ((["a"], 200), (["a"], 300, 8192, "("), ([7], 300), (broken(), 300)):
        try: Rust().train_from_iterator(*arguments)
        except (ValueError, TypeError, LookupError) as e: print(f"{type(e).__name__}: {str(e).splitlines()[0]}")
        else: raise AssertionError(f"{arguments} must be refused")
else: print("skipped: the Rust crate is not built")

# %% [markdown]
# ## What each idea is worth
#
# The crate has an example program that does the work in the plain way and then adds one idea at a time, on 50 MB of real text with 32,768 entries, each step checked against the merges of the first.
# The next cell shows what it measured, in seconds of one core (the file says on which machine).

# %%
ladder = stored_result("bpe_ladder.json")
print(ladder["text"], "to", ladder["vocabulary"], "entries on", ladder["machine"]["cpu"])
for part in ("cut", "count", "merge"):
    steps = [step for step in ladder["steps"] if step["part"] == part and "threads" not in step["step"]]
    for before, step in zip([None, *steps], steps):
        gain = f"{before['cpu'] / step['cpu']:6.1f} times faster" if before else ""
        print(f"{part:6s} {step['step']:24s} {step['cpu']:8.2f} s {gain}")
assert all(step["cpu"] > 0 for step in ladder["steps"])

# %%
fig, axes = plt.subplots(3, 1, figsize=(6, 4.2), layout="constrained", height_ratios=(2, 3, 3))
for ax, part, colour in zip(axes, ("cut", "count", "merge"), ("C2", "C0", "C1")):
    steps = [step for step in ladder["steps"] if step["part"] == part and "threads" not in step["step"]]
    bars = ax.barh([step["step"] for step in steps], [step["cpu"] for step in steps], color=colour)
    ax.bar_label(bars, fmt=" %.2f s")
    ax.invert_yaxis()
    ax.set(ylabel=part, xlim=(0, 1.2 * steps[0]["cpu"]))
axes[-1].set(xlabel="seconds")
figure(fig, caption="Seconds of one core after each step, 50 MB of real text, 32,768 entries; each step keeps the ones above it. `count` includes cutting.",
       alt="Three bar charts. Cutting shrinks to a small part when the scanner takes the regex's place. Cutting and counting shrinks from the regex with a map of strings over the scanner to the keys; "
           "merging shrinks from maps and rewritten words to cells, and again when rare pairs are left out.")

# %% [markdown]
# The largest gains come from *not doing* things: not searching, not copying, not following pointers, not tracking pairs that cannot win. Threads, the first thing people reach for, can be worth
# two on two cores and no more, and only on counting, which by then takes hardly longer than the merges. They belong at the end of such a list, not at its beginning.
#
# An idea that did **not** work stays out of the figure: cutting 32 pieces first and then counting them, so that the processor can wait for several memory accesses at once. It gained nothing.
# The processor looks far enough ahead on its own.
#
# ## Against the published ones
#
# `benchmarks/bpe_train.py` runs our trainer and three published ones on the same text, each in a process of its own, in turn. `gigatoken` is the fastest one published; it insists on
# GPT-2's pattern and on reading a file, so ours does the same beside it.

# %%
bench = stored_result("bpe_train.json")
rows = [row for row in bench["rows"] if row["what"] == "train" and row["text"] == "200 MB" and row["threads"] == 2]
ours = {(row["split"], row["vocabulary"]): row["seconds"] for row in rows if row["name"] == "ours"}
print("200 MB, 2 threads, on", bench["machine"]["cpu"])
for row in sorted(rows, key=lambda row: (row["split"], row["vocabulary"], row["seconds"])):
    times = row["seconds"] / ours[row["split"], row["vocabulary"]]
    print(f"{row['split']:8s} {row['vocabulary']:6,} {row['name']:10s} {row['seconds']:6.2f} s ({row['cpu']:5.2f} s of CPU) "
          f"{times:5.1f} x {row['peak_mb']:5.0f} MB")
assert all(row["seconds"] >= ours[row["split"], row["vocabulary"]] for row in rows)

# %%
fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
for name, style in (("ours", "o-"), ("rustbpe", "s--"), ("tokenizers", "^:"), ("gigatoken", "D-.")):
    line = sorted((int(row["text"].split()[0]), row["seconds"]) for row in bench["rows"] if row["what"] == "train" and row["name"] == name
                  and row["text"].endswith("MB") and row["vocabulary"] == 32768 and row["threads"] == 2
                  and row["split"] == ("GPT-2" if name == "gigatoken" else "nanochat"))
    ax.loglog(*zip(*line), style, label=name)
ax.set(xlabel="megabytes of text", ylabel="seconds", xticks=[10, 50, 200], xticklabels=["10", "50", "200"])
ax.minorticks_off()
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Training 32,768 entries with two threads. gigatoken's line is for GPT-2's pattern, which is simpler.",
       alt="Seconds against megabytes on logarithmic axes. Our line lies lowest, rising from a tenth of a second to about one; "
           "the lines of rustbpe and tokenizers run parallel about ten and twenty times higher; gigatoken's is nearly flat, the highest at 10 MB and between ours and rustbpe's from 50 MB on.")

# %% [markdown]
# From 4,096 to 32,768 entries costs us a sixteenth more (a fifth with one thread), although eight times as many merges are made: the late ones are rare. gigatoken, which cuts by hand as we do, is the closest; it pays for its late merges even on
# little text (4 seconds at 10 MB). Memory follows the same law as time: what is not kept need not be paid for.
#
# **Trap, found with this benchmark.** Adding one thread's table to the other's took 0.17 of about one second at 200 MB. Its entries arrive in the order of their *hashes*; in a table that is too small they all crowd at its beginning, and each
# new one searches past all the others. Making room first brought it to 0.05 seconds: one line of code, and nothing but a measurement could have found it.
#
# ## Encoding with the same ideas
#
# The scanner and the keys also encode. A piece met before is answered from a small cache, whose entry is one line of the processor's cache: key, number of ids, up to eleven ids. A piece that hashes to a taken line
# simply overwrites it. Only a new piece is merged. The rule is tiktoken's (a piece that is a token is that token; else the lowest rank first), so the ids must be tiktoken's.

# %%
if Rust:
    import tiktoken
    made = Rust.from_mergeable_ranks(list(ranks.items()))
    peer = tiktoken.Encoding("peer", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    ids, t_ours = timed(made.batch_encode, texts, threads=1)
    same, t_peer = timed(peer.encode_ordinary_batch, texts, num_threads=1)
    print(f"ours {t_ours:.3f} s, tiktoken {t_peer:.3f} s: {t_peer / t_ours:.1f} times, equal ids: {ids == same}")
    assert ids == same
else: print("skipped: the Rust crate is not built")
for row in bench["rows"]:
    if row["what"] == "encode" and row["threads"] == 2:
        print(f"benchmark, 10 MB of real text, 2 threads: {row['name']:9s} {row['vocabulary']:6,} entries {row['mb_s']:5.1f} MB/s")

# %% [markdown]
# On real text with a larger vocabulary the ratio is smaller, eight to nine, presumably because more pieces are new to the cache.
#
# ## Trap: a tie is a fork in the road
#
# Change one rule: on equal counts take the *larger* pair. Every count is still right, and the compression is as good. But from the first tie on the ids differ, and a model trained
# with one tokenizer reads noise from the other. No error is raised anywhere. A hash map that is walked in its own order does the same to you, and differently each time.

# %%
tied = ["ba bc yz"]                       # every pair occurs once
smaller = list(train_bpe(tied, 258))[256:]
words = [list(piece) for piece in _count_pieces(tied, SPLIT_PATTERN)]
larger = max(pair for word in words for pair in pairwise(word))
print("smaller pair first:", smaller, "  larger pair first:", bytes(larger))
assert smaller[0] == b" b" and bytes(larger) == b"yz"

# %% [markdown]
# ## Trap: nearly all of the text
#
# This one happened while the crate was written. With one thread, the queue of idea 6 had room for one batch and nobody to take it: the last batch put there was never counted. Ten megabytes lost one. The program was fast, raised nothing, and
# its merges looked fine. The next cell does the same on purpose.

# %%
kept = texts[:-len(texts) // 10]
most, all_of_it = list(train_bpe(kept, 600)), list(train_bpe(texts, 600))
first = next(i for i, (a, b) in enumerate(zip(most, all_of_it)) if a != b)
print(f"with nine tenths of the text: {len(set(most) & set(all_of_it))} of 600 tokens are the same, the first other id is {first}")
assert most != all_of_it and len(set(most) & set(all_of_it)) > 500

# %% [markdown]
# Looking at the tokens would never have shown it: nearly all are the same, in another order. Comparing with a slow twin, merge by merge, showed it in the first minute. A fast program needs a slow one that it must equal; that is why lesson 01's trainer is not thrown away.
#
# ## Trap: whose Unicode?
#
# Unicode grows every year, and each regex engine knows the letters of its own year. Python's `regex` module may call a character a letter where the engine in Rust, which tiktoken uses too, does not. Then they cut differently.

# %%
if split:
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    letters = {"Python's regex": set(regex.findall(r"\p{L}", every)), "Rust's": set(split(every, r"\p{L}"))}
    for name, found in letters.items(): print(f"{name:15s} knows {len(found):,} letters")
    assert all("é" in found and "日" in found and "1" not in found for found in letters.values())
else: print("skipped: the Rust crate is not built")


# %% [markdown]
# The characters in question are so new, or so rare, that no ordinary text holds them. But if it matters to you that two machines give the same ids, pin the versions of both.
#
# ## At scale
#
# Published nanochat trains its tokenizer on 2 billion characters. The cell extrapolates from the benchmark: cutting is linear in the text; merging hardly grows.

# %%
def at_scale(name: str, gigabytes: float = 2.0) -> float:
    "Seconds for so much text, from the line through 50 and 200 MB."
    t = {row["text"]: row["seconds"] for row in bench["rows"] if row["what"] == "train" and row["name"] == name
         and row["threads"] == 2 and row["vocabulary"] == 32768 and row["split"] == "nanochat"}
    per_mb = (t["200 MB"] - t["50 MB"]) / 150
    return t["200 MB"] + per_mb * (gigabytes * 1000 - 200)

for name in ("ours", "rustbpe", "tokenizers"): print(f"{name:10s} about {at_scale(name):4.0f} s for 2 GB on two cores")
assert at_scale("ours") < at_scale("rustbpe") / 4

# %% [markdown]
# On the eight-GPU node that costs $24 an hour those seconds cost 7 cents, 85 cents and $1.66. What the speed buys is elsewhere: you can try ten vocabularies instead of one, on all of the text instead of a sample, and a
# laptop trains its tokenizer in the time that the progress bar needs to appear.
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
# 1. Cutting grows with the text, merging with the distinct pieces. Measure, then attack the larger part.
# 2. A scanner decides where a regex engine searches; random texts prove it equal.
# 3. Data that fits the processor (numbers as keys, four cells to write, lists in order) is worth more than threads.
# 4. A pair can only lose: what starts below the floor need not be followed.
# 5. A fast part has a slow twin that it must equal, merge by merge. That is what makes it safe to use.
#
# **Quiz.** *You train on four times the text. Which part takes four times as long?* Cutting and counting; merging grows with the distinct pieces, and of those the first table of this lesson found 1.7 times as many.
# *Why does the key hold the length?* Without it `a` and `a` with a zero byte behind would be one piece. *The guessed floor is too high. Are merges lost?* No: the queue runs empty, the floor is lowered, and the cells are read again.
# *Two threads count the same piece. Is there a race?* No: each has its own table; they are added when both are done.
#
# **Papers and sources.** Gage 1994 and Sennrich et al. 2016 (the algorithm); the published `rustbpe` (lazy queue, sets of places); `gigatoken` (splitting by hand, caching pieces);
# Wang Yi's `wyhash` (hashing by one folded product); Knuth 2009, *The Art of Computer Programming* 4A, section 7.1.3 (eight bytes at a time). Their ideas are used here; the code is our own.
