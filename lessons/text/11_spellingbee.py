# %%
#| default_exp spelling

# %% [markdown]
# # 11 · Spelling bee: a new ability from data
#
# **Promise.** You will teach a model that sees tokens, not letters, to spell words it never saw spelled and to count letters in them.
#
# After this lesson you can
#
# * say why "How many r are in strawberry?" is hard for a language model;
# * design an answer format that turns a hard question into easy steps;
# * widen some 3,000 words to all tokens with random token strings, without leaking the test;
# * grade the work and not only the number, and show why the number alone flatters;
# * check an answer with the tool of lesson 09.
#
# **Before:** 01 (tokens), 06 (SFT), 09 (tools). **Time:** 20 minutes to read, 20 to do, seconds to compute.

# %%
#| export
import re
from collections.abc import Sequence
from random import Random
from string import ascii_lowercase

from nanochat.tasks import Task
from nanochat.tools import calculate
from nanochat.workshop import UserError

# %% [markdown]
# ## What the model sees

# %%
from nanochat.tokenizer import Tokenizer

story = ("The straw berry was ripe. A raw berry, a very merry strap, a strong drum. " * 40
         + " ".join("abcdefghijklmnopqrstuvwxyz") + " ") * 3
tokenizer = Tokenizer.train([story, " ".join("zyxwvutsrqponmlkjihgfedcba")] * 20, 420)
ids = tokenizer.encode("How many r are in strawberry?")
print([tokenizer.decode([i]) for i in ids])
assert len(tokenizer.encode(" strawberry")) < len("strawberry")


# %% [markdown]
# Ten letters went in, a few tokens came out, and no token carries a label with its letters. The model has to *know* that one piece is
# s, t, r and the next is a, w. It can know that only if it has seen pieces spelled.
#
# ## An answer in pieces
#
# A format is a chain of small steps, each easy given the last. Ours first says what was asked: the letter and the word. Then it walks along the word's own
# tokens. On each line stands one token, a colon, then its letters, each with a space in front. After a letter that is asked for stands the running count.
# The last line ends with the total:
#
# ```
#  r in strawberry
#  str: s t r1
# aw: a w
# ber: b e r2
# ry: r3 y=3
# ```
#
# Why repeat the question? People ask in many ways, and the letter stands now before the word, now behind it. Whoever counts has to look the letter up at every
# step. The first line moves that search to one place: from there on letter and word stand where they always stand, whatever the question looked like.
# Without that line, our laptop model counted the wrong letter in a fifth of its answers, mostly where the wording was new.
#
# The rest needs two skills. *Copy the next piece*: that is what attention is for. *Look up the letters of a piece*: a table with one entry for each token.
# Neither needs to hold a position inside several tokens in mind.

# %%
#| export
def word_pieces(
    tokenizer,      # our Tokenizer
    word: str,      # lower-case letters
) -> list[str]:     # the first one begins with a space; together they are " " + word
    "The tokens of a word as it stands in a sentence, as text."
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(" " + word)]
    if pieces[0] == " ": pieces[:2] = [" " + pieces[1]]     # a vocabulary without this first piece
    return pieces


def spelled(
    pieces: Sequence[str],  # as word_pieces returns them
    letter: str,            # the letter that is counted
) -> str:
    "The worked answer: what is asked, each piece, its letters, a count at each hit, the total."
    lines, count = [f" {letter} in{''.join(pieces)}"], 0
    for piece in pieces:
        line = piece + ":"
        for c in piece.strip():
            count += c == letter
            line += f" {c}{count}" if c == letter else f" {c}"
        lines.append(line)
    return "\n".join(lines) + f"={count}"


# %%
print(spelled([" str", "aw", "ber", "ry"], "r"))
assert (spelled([" str", "aw", "ber", "ry"], "r")
        == " r in strawberry\n str: s t r1\naw: a w\nber: b e r2\nry: r3 y=3")
print(word_pieces(tokenizer, "strawberry"))
assert "".join(word_pieces(tokenizer, "strawberry")) == " strawberry"

# %% [markdown]
# **Trap.** Is a piece in the answer the same token as in the question? Written after a hyphen or a quote, it need not be: the split pattern
# glues one such character to the letters that follow, and `'s` is even a piece of its own (as in "it's"). A line break is never glued. So each piece
# stands at the start of a line, and re-encoding the answer gives the very ids of the question. The next cell proves it for every piece.

# %%
for word in ("strawberry", "drum", "merry", "zebra", "quartz"):
    pieces = word_pieces(tokenizer, word)
    again = tokenizer.encode(spelled(pieces, "r"))
    for piece in pieces:
        one = tokenizer.encode(piece) + tokenizer.encode(":")             # only a spelled line has the colon
        assert any(again[i : i + len(one)] == one for i in range(len(again))), (word, piece)
quoted = [tokenizer.decode([i]) for i in tokenizer.encode("'strawberry'")]
spaced = [tokenizer.decode([i]) for i in tokenizer.encode("' strawberry'")]
print(quoted, "\n", spaced)
assert tokenizer.encode(" strawberry")[0] in tokenizer.encode("' strawberry'")

# %% [markdown]
# The same trap waits in the tool call. `'strawberry'.count('r')` breaks the word into other tokens than the question did. With one space inside the quotes the
# tokens are the old ones, the count is the same, and the model can copy. So our calls are written `' strawberry'.count('r')`.
#
# ## Conversations

# %%
#| export
QUESTIONS = {
    "train": [
        "How many {c} are in {w}?",
        "How many times is {c} in {w}?",
        "Count the letter {c} in {w}.",
        "How often does {c} stand in {w}?",
        "What number of {c} does {w} have?",
        "Tell me how many {c} {w} has.",
        "In the word {w}, how many {c} are there?",
        "Please count {c} in {w}.",
        "The word is {w}. How many {c} has it?",
        "how many {c} are in {w}",
        "How many letters {c} do you see in {w}?",
        "Could you count the {c} in the word {w}?",
        "Look for {c} in {w}. How many are there?",
        "See the word {w}. How often do you see {c}?",
        "I want to know the number of {c} in {w}.",
    ],
    "new": [
        "Can you count how many {c} the word {w} has?",
        "I need the number of {c} in {w}.",
        "Look at {w}. How often do you find {c}?",
    ],
}
SPELL = {
    "train": ["Spell {w}.", "How do you spell {w}?", "Spell the word {w}.", "Please spell {w}."],
    "new": ["Can you spell {w}?", "What are the letters of {w}?"],
}

# %%
print(QUESTIONS["train"][0].format(c="r", w="strawberry"), "|", SPELL["new"][0].format(w="lamp"))
assert all(" {w}" in q for split in QUESTIONS.values() for q in split)   # as in a sentence
assert not set(QUESTIONS["train"]) & set(QUESTIONS["new"])


# %% [markdown]
# Each question puts a space before the word, so that the word has the tokens it has in any sentence.

# %%
#| export
def count_conversation(tokenizer, word: str, letter: str, question: str) -> dict:
    "How often a letter stands in a word: the worked answer, then the tool as a check."
    call = f"' {word}'.count('{letter}')"
    count = calculate(call)
    parts = [{"type": "text", "text": spelled(word_pieces(tokenizer, word), letter)},
             {"type": "python", "text": call}, {"type": "python_output", "text": count},
             {"type": "text", "text": f" The answer is {count}."}]
    messages = [{"role": "user", "content": question.format(c=letter, w=word)},
                {"role": "assistant", "content": parts}]
    return {"messages": messages, "kind": "count", "word": word, "letter": letter, "answer": count}


def spell_conversation(word: str, question: str) -> dict:
    "Spell a word: its letters with a space before each."
    messages = [{"role": "user", "content": question.format(w=word)},
                {"role": "assistant", "content": "".join(f" {c}" for c in word)}]
    return {"messages": messages, "kind": "spell", "word": word, "answer": " ".join(word)}


# %%
example = count_conversation(tokenizer, "strawberry", "r", QUESTIONS["train"][0])
ids, mask = tokenizer.render(example)
print(tokenizer.decode(ids))
assert (
    example["answer"] == "3"
    and spell_conversation("lamp", "Spell {w}.")["messages"][1]["content"] == " l a m p"
)


# %% [markdown]
# ## Words that are no words
#
# Some three thousand words spell the tokens that occur in them. A token that occurs in none is never spelled, and short frequent words often *are* such a token. The
# cure: strings of one to seven random lower-case tokens. They are no words, and that is the point: every piece gets its turn, in many
# neighbourhoods. Half of the training rows are such strings.
#
# A random string can be a held-out word, or contain one. That would leak the test, so such strings are thrown away. (Words of the world that contain a held-out
# one, as `amiable` contains `able`, stay: 235 of 3,351, which touch 74 of the 441.)

# %%
#| export
def letter_tokens(tokenizer) -> tuple[list[str], list[str]]:
    "Tokens of lower-case letters: those that begin a word (space stripped), those inside."
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    plain = set(ascii_lowercase)
    starts = [t[1:] for t in texts if len(t) > 1 and t[0] == " " and set(t[1:]) <= plain]
    return starts, [t for t in texts if t and set(t) <= plain]


def holds_any(
    text: str,
    words: frozenset[str] | set[str],   # of 3 to 12 letters
) -> bool:
    "Is one of the words a part of the text?"
    return any(
        text[i:j] in words
        for i in range(len(text))
        for j in range(i + 3, min(i + 12, len(text)) + 1)
    )


def random_string(
    starts: Sequence[str],
    inside: Sequence[str],
    held_out: frozenset[str] | set[str],
    random: Random,
) -> str:   # 3 to 12 letters, no held-out word in it
    "A string of one to seven random tokens."
    while True:
        n = random.randint(1, 7)
        text = random.choice(starts) + "".join(random.choice(inside) for _ in range(n - 1))
        if 3 <= len(text) <= 12 and not holds_any(text, held_out): return text


# %%
starts, inside = letter_tokens(tokenizer)
random = Random(0)
print([random_string(starts, inside, {"raw"}, random) for _ in range(8)])
assert holds_any("strawy", {"raw"}) and not holds_any("strap", {"raw"})
assert not any("raw" in random_string(starts, inside, {"raw"}, random) for _ in range(300))


# %%
#| export
def pick_letter(word: str, random: Random) -> str:
    "The letter to ask for: in four of five questions one that is in the word."
    return random.choice(word) if random.random() < 0.8 else random.choice(ascii_lowercase)


def _checked(words: tuple[Sequence[str], Sequence[str]], split: str) -> frozenset[str]:
    "The held-out words; UserError when the split is unknown or the two lists share a word."
    if split not in ("train", "test", "new"):
        raise UserError(f"no split {split!r}; choose train, test or new")
    held_out = frozenset(words[1])
    both = held_out & set(words[0])
    if both: raise UserError(f"word {min(both)!r} is in the training list and in the held-out list")
    return held_out


def spelling_conversations(
    words: tuple[Sequence[str], Sequence[str]],  # (train, held out), as microworld.spelling_words()
    tokenizer,
    n: int,
    seed: int = 0,
    split: str = "train",   # or "test": held-out words; or "new": the same in wordings held out
) -> list[dict]:  # held-out words: all counting; train: 1/2 random strings, 1/8 spelling only
    "Spelling rows; the words of a split in shuffled order, each used once before any comes again."
    held_out = _checked(words, split)
    order = sorted(words[split != "train"])
    wordings = QUESTIONS["new" if split == "new" else "train"]
    Random(f"spelling {split} {seed}").shuffle(order)
    starts, inside = letter_tokens(tokenizer)
    rows = []
    for i in range(n):
        random = Random(f"spelling {split} {seed} {i}")
        word = order[i // 2 % len(order)] if split == "train" else order[i % len(order)]
        if split == "train" and i % 2: word = random_string(starts, inside, held_out, random)
        if split == "train" and random.random() < 0.125:
            rows.append(spell_conversation(word, random.choice(SPELL["train"])))
            continue
        letter = pick_letter(word, random)
        rows.append(count_conversation(tokenizer, word, letter, random.choice(wordings)))
    return rows


# %% [markdown]
# Each split has a generator of its own, seeded by text. Test questions are about held-out words only. They come in the wordings of training, so that the score
# is about spelling; the split `new` asks about the same words in wordings never trained on, which shows how far the *question* is understood.

# %%
lists = (["lamp", "merry", "strap", "drum", "apron"], ["strawberry", "berry"])
rows = spelling_conversations(lists, tokenizer, 200)
print([row["messages"][0]["content"] for row in rows[:6]])
hits = [row["letter"] in row["word"] for row in rows if row["kind"] == "count"]
print(
    f"letter in the word: {sum(hits) / len(hits):.2f}; "
    f"spelling only: {1 - len(hits) / len(rows):.2f}"
)
assert (
    not any(holds_any(row["word"], set(lists[1])) for row in rows)
    and 0.7 < sum(hits) / len(hits) < 0.95
)
assert {row["word"] for row in spelling_conversations(lists, tokenizer, 2, split="test")} == set(
    lists[1]
)


# %% [markdown]
# ## A judge that looks at the work
#
# Most words hold a given letter zero times or once, so a model that cannot spell at all guesses the *number* right surprisingly often. In the prototype a
# model gave the right number for 83% of unseen words and spelled only half of them correctly. The judge therefore reads the work: every letter, every
# running count, the total. And it reads only what was written *before* the tool's result, since the tool would have got it right for anyone.

# %%
#| export
def spelling_work(
    conversation: dict,     # with word and letter
    completion: str,        # decoded, tool call included
) -> dict:  # spelled, counted, number: three verdicts; ok: all of them
    "Verdicts on a worked answer, from the text before the tool call."
    text = completion.split("<|python_start|>")[0].split("<|output_start|>")[0]
    body, _, total = text.rpartition("=")
    asked, *lines = body.split("\n")
    lines = [line.partition(":") for line in lines]
    steps = [re.findall(r" ([a-z])(\d*)", letters) for _, _, letters in lines]
    exact = asked == f" {conversation['letter']} in {conversation['word']}" and all(
        "".join(f" {c}{k}" for c, k in step) == letters
        and piece.strip() == "".join(c for c, _ in step)
        for step, (piece, _, letters) in zip(steps, lines)
    )
    found, count, counted = [pair for step in steps for pair in step], 0, True
    for c, k in found:
        count += c == conversation["letter"]
        counted &= k == (str(count) if c == conversation["letter"] else "")
    spelled_right = exact and "".join(c for c, _ in found) == conversation["word"]
    number = total.strip() == conversation["answer"]
    return {"spelled": spelled_right, "counted": counted, "number": number,
            "ok": spelled_right and counted and number}


def judge_spelling(conversation: dict, completion: str) -> bool:
    "Strictly right: all letters in order, every running count and the total (or just the letters)."
    if conversation["kind"] == "spell": return completion.strip() == conversation["answer"]
    return spelling_work(conversation, completion)["ok"]


# %%
right = " r in strawberry\n str: s t r1\naw: a w\nber: b e r2\nry: r3 y=3"
tries = {
    "right": right,
    "a letter missing": right.replace(" aw", "").replace("aw: a w\n", ""),
    "count slips": right.replace("r2", "r1"),
    "lucky": " r in strawberry\n sta: s t a\nrr: r1 r2\ny: y r3=3",
    "total wrong": right[:-1] + "2",
    "only the tool knows": "<|python_start|>' strawberry'.count('r')<|python_end|>"
    "<|output_start|>3<|output_end|> The answer is 3.",
}
for name, text in tries.items():
    print(f"{name:20s} {judge_spelling(example, text)!s:5}  {spelling_work(example, text)}")
assert [judge_spelling(example, text) for text in tries.values()] == [True] + [False] * 5


# %%
#| export
class SpellingTask(Task):
    "Counting letters (in training also spelling), judged strictly; `words`: (train, held out)."

    def __init__(self, words: tuple[Sequence[str], Sequence[str]], tokenizer, n: int, seed: int = 0,
                 split: str = "train"):
        rows = spelling_conversations(words, tokenizer, n, seed, split)
        super().__init__("spelling", rows, judge_spelling)


# %% [markdown]
# The world's own word lists, and a first test of judge and format together: the reference answers must pass, all of them.

# %%
from nanochat.microworld import spelling_words

words = spelling_words()
task = SpellingTask(words, tokenizer, 100, split="test")
print(
    f"{len(words[0]):,} training words, {len(words[1])} held out; "
    f"{task.name}: {task[0]['messages'][0]['content']}"
)
reference = [
    tokenizer.decode(tokenizer.render(row)[0]).split("<|assistant_start|>")[1] for row in task
]
assert all(task.evaluate(row, text) for row, text in zip(task, reference))

# %% [markdown]
# **Predict, then run.** A "model" that cannot spell at all answers every question with the most frequent count. How many of the *numbers* does it get right?

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

answers = [row["answer"] for row in SpellingTask(words, tokenizer, 300, split="test")]
share = {k: answers.count(k) / len(answers) for k in sorted(set(answers))}
fig, ax = plt.subplots(figsize=(4.2, 2.4), layout="constrained")
ax.bar(list(share), list(share.values()))
ax.set(xlabel="right count", ylabel="share of questions", ylim=(0, 1))
figure(
    fig,
    caption="How often each count is the right one, over 300 test questions.",
    alt="A bar chart in which the count 1 is right for about half of the questions or more, 0 and "
    "2 for most of the others, and 3 seldom.",
)
print(
    f"always the most frequent count: {max(share.values()):.0%} of the numbers right, "
    "0% of the work"
)
assert max(share.values()) > 0.4 and not judge_spelling(example, " r in strawberry\n=1")

# %% [markdown]
# ## A short finetuning
#
# A few steps show the shape of learning. This two-layer model starts from nothing and never sees a story; at the smoke tier it only learns how an answer
# *looks*. That is the first thing any model learns of a format. The letters come later.

# %%
from nanochat.chat_eval import generation_accuracy
from nanochat.data import Loader, pack_conversations
from nanochat.engine import make_engine
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.optim import schedule
from nanochat.tools import make_tool
from nanochat.train import train
from nanochat.workshop import by_tier

rows = spelling_conversations(words, tokenizer, by_tier(300, 6000))
packed = pack_conversations([tokenizer.render(row) for row in rows], 128, tokenizer.bos)
model = GPT(config_for(2, tokenizer.vocab_size, 128, head_dim=64))
model.init_weights(seed=0)
steps = by_tier(25, 500)
run = train(model, make_optimizer(model, batch_tokens=8 * 128), iter(Loader(packed, 8, seed=0)),
            steps=steps, schedule=lambda t: schedule(t, steps))
losses = [step.loss for step in run]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {steps} steps")
assert losses[-1] < 0.7 * losses[0]

# %%
sampler = make_engine(model, [tokenizer.assistant_end, tokenizer.bos])
found = generation_accuracy(sampler, tokenizer, SpellingTask(words, tokenizer, 16, split="test"),
                            max_new_tokens=60, tool=make_tool(tokenizer))
print(f"strictly right: {found['value']:.2f} of {found['items']} unseen words")
for failure in found["failures"][:1]: print(failure["question"], "->", failure["completion"])
assert found["value"] > by_tier(-1, 0)

# %% [markdown]
# ## What it takes
#
# Prototype figures, for a 4-layer model with 1,024 tokens, graded strictly on 500 unseen words: 200 words with plain letters 49%; 8,500 words 92%; pieces, with 1,500
# words and random token strings, **96% after 33 seconds and 99% after 66**, on two cores. (The prototype put hyphens where we put line breaks.) Random *letters* instead of random tokens helped not at all: they are mostly
# one-letter tokens, which nobody asks for. Misspelling is nearly the only error that is left; once a word is spelled, the count follows.
#
# ## At scale
#
# Published nanochat mixes 80,000 counting rows and 200,000 spelling rows into midtraining, over 370,000 words, and reaches about 99%. Its first test set was seeded
# with negative numbers and so repeated training items (lesson 10's trap). Ours are seeded by text, and the words are disjoint.
#
# ## Recap
#
# * A tokenizer hides letters; only spelled data gives them back.
# * A format is a chain of easy steps; ours copies a piece, then looks up its letters.
# * Random token strings cover the vocabulary; held-out words are kept out of them.
# * Judge the work, before the tool helps.
