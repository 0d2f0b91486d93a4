"Spelling: the format, its tokens, what is held out, and a judge that reads the work."
from collections import Counter
from random import Random

import pytest

from nanochat import spelling
from nanochat.microworld import spelling_words
from nanochat.spelling import SpellingTask, judge_spelling, random_string, spelled, spelling_conversations, word_pieces
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError

LISTS = (["lamp", "merry", "strap", "drum", "apron", "window", "green"], ["strawberry", "cat", "garden"])


@pytest.fixture(scope="module", params=[300, 900])
def tokenizer(request):
    words = spelling_words()[0][:800]
    alphabet = " ".join(" abcdefghijklmnopqrstuvwxyz")
    return Tokenizer.train([" ".join(words), alphabet * 200, "How many r are in strawberry? The answer is 3."] * 3, request.param)


def completion(tokenizer, row):
    ids, _ = tokenizer.render(row)
    return tokenizer.decode(ids[len(tokenizer.render_prompt(row)) : -1])


def test_the_format_of_the_lesson():
    assert spelled([" str", "aw", "ber", "ry"], "r") == " r in strawberry\n str: s t r1\naw: a w\nber: b e r2\nry: r3 y=3"
    assert spelled([" lamp"], "z") == " z in lamp\n lamp: l a m p=0"


def test_counts_agree_with_python(tokenizer):
    random = Random(0)
    for word in spelling_words()[0][:400]:
        letter = random.choice(word + "abcdefghijklmnopqrstuvwxyz")
        text = spelled(word_pieces(tokenizer, word), letter)
        assert text.rpartition("=")[2] == str(word.count(letter))
        letters = "".join(c for line in text.rpartition("=")[0].split("\n") for c in line.partition(":")[2] if c.isalpha())
        assert letters == word


def test_pieces_of_the_answer_are_the_tokens_of_the_question(tokenizer):
    "Re-encoding the whole row as text gives, line by line, the very ids the word has in the question."
    for word in spelling_words()[0][:300]:
        ids = tokenizer.encode(" " + word)
        again = tokenizer.encode(spelled(word_pieces(tokenizer, word), "e"))
        newline, colon = tokenizer.encode("\n"), tokenizer.encode(":")
        assert len(newline) == len(colon) == 1
        lines, line = [], []
        for i in again:
            if i == newline[0]: lines, line = [*lines, line], []
            else: line.append(i)
        asked, *lines = [*lines, line]
        assert asked[-len(ids):] == ids
        assert sum((line[: line.index(colon[0])] for line in lines), []) == ids


def test_the_tool_call_repeats_the_words_tokens(tokenizer):
    for word in LISTS[0] + LISTS[1]:
        row = spelling.count_conversation(tokenizer, word, "r", "How many {c} are in {w}?")
        call = row["messages"][1]["content"][1]["text"]
        ids, word_ids = tokenizer.encode(call), tokenizer.encode(" " + word)
        assert any(ids[i : i + len(word_ids)] == word_ids for i in range(len(ids)))
        assert row["messages"][1]["content"][2]["text"] == row["answer"] == str(word.count("r"))


def test_reference_answers_pass_and_each_damage_fails(tokenizer):
    rows = spelling_conversations(LISTS, tokenizer, 120)
    for row in rows:
        text = completion(tokenizer, row)
        assert judge_spelling(row, text), text
        if row["kind"] == "spell":
            assert not judge_spelling(row, text[:-2]) and not judge_spelling(row, row["word"])
            continue
        work = text.split("<|python_start|>")[0]
        assert judge_spelling(row, work)
        total = work.rpartition("=")[2]
        damages = [work.replace(f"={total}", f"={int(total) + 1}"), work.rpartition("=")[0], work.replace(" ", "", 1) + " ", work + " 3",
                   work.replace(": ", ": x ", 1), work[: len(work) // 2], work.replace(":", ""), "=" + total, f" The answer is {total}."]
        if int(total): damages += [work.replace("1", "2", 1), work.replace("1", "", 1)]
        for bad in damages:
            bad_ok = judge_spelling(row, bad)
            if bad.strip() == work.strip(): continue
            assert not bad_ok, (work, bad)
        tool = text[len(work):]
        assert not judge_spelling(row, tool)                      # the tool's merit is not the model's


def test_lucky_numbers_do_not_count():
    row = {"kind": "count", "word": "strawberry", "letter": "r", "answer": "3"}
    lucky = " r in strawberry\n rrr: r1 r2 r3=3"
    assert spelling.spelling_work(row, lucky) == {"spelled": False, "counted": True, "number": True, "ok": False}
    miscount = " r in strawberry\n str: s t r1\naw: a w\nber: b e r2\nry: r2 y=3"
    assert spelling.spelling_work(row, miscount)["spelled"] and not judge_spelling(row, miscount)
    other = " r in strawberry\n straw: s t r1 a w\nberry: b e r2 r3 y=3"              # other pieces, every letter right
    assert judge_spelling(row, other)
    assert not judge_spelling(row, other.replace("berry:", "bery:"))
    assert not judge_spelling(row, other.replace("r in", "e in"))     # it says that it counts another letter


def test_held_out_words_occur_in_no_training_row(tokenizer):
    train, test = spelling_words()
    held_out = set(test)
    rows = spelling_conversations((train, test), tokenizer, 3000)
    words = {row["word"] for row in rows}
    assert not words & held_out
    strings = words - set(train)
    assert len(strings) > 800 and not any(w in s for s in list(strings)[:400] for w in held_out)
    asked = {row["word"] for row in spelling_conversations((train, test), tokenizer, 300, split="test")}
    assert asked <= held_out and len(asked) == 300


def test_wordings_are_held_out():
    plain = {split: {q.format(c="r", w="x").lower() for q in spelling.QUESTIONS[split]} for split in ("train", "new")}
    assert not plain["train"] & plain["new"] and len(plain["train"]) >= 8 and len(plain["new"]) >= 3


def test_a_split_asks_in_its_own_wordings_about_held_out_words(tokenizer):
    for split, other in (("test", "new"), ("new", "train")):
        for row in spelling_conversations(LISTS, tokenizer, 60, split=split):
            asked = row["messages"][0]["content"]
            assert row["word"] in LISTS[1]
            assert asked not in {q.format(c=row["letter"], w=row["word"]) for q in spelling.QUESTIONS[other]}


def test_half_are_random_strings_and_most_letters_are_in_the_word(tokenizer):
    rows = spelling_conversations(LISTS, tokenizer, 2000, seed=1)
    strings = [row for row in rows if row["word"] not in LISTS[0]]
    assert 0.47 < len(strings) / 2000 < 0.51
    counted = [row for row in rows if row["kind"] == "count"]
    hits = sum(row["letter"] in row["word"] for row in counted) / len(counted)
    assert 0.79 < hits < 0.88                                      # 80 % by design, and some of the rest by chance
    assert 0.10 < 1 - len(counted) / 2000 < 0.15
    words = Counter(row["word"] for row in rows[::2])
    assert max(words.values()) - min(words.values()) <= 1          # each word once before any comes again
    test = spelling_conversations(LISTS, tokenizer, 9, split="test")
    assert all(row["kind"] == "count" for row in test)


def test_random_strings(tokenizer):
    starts, inside = spelling.letter_tokens(tokenizer)
    random, held = Random(0), set(spelling_words()[1]) | {"the", "and"}
    strings = [random_string(starts, inside, held, random) for _ in range(500)]
    assert all(3 <= len(s) <= 12 and s.isalpha() and s.islower() for s in strings)
    assert not any(w in s for s in strings for w in held)
    assert len(set(strings)) > 400


def test_holds_any_is_substring_search():
    random = Random(1)
    words = {"".join(random.choice("ab") for _ in range(random.randrange(3, 6))) for _ in range(6)}
    for _ in range(500):
        text = "".join(random.choice("abc") for _ in range(random.randrange(1, 13)))
        assert spelling.holds_any(text, words) == any(w in text for w in words)


def test_seeds(tokenizer):
    make = lambda seed, split="train": spelling_conversations(LISTS, tokenizer, 40, seed, split)
    assert make(3) == make(3) and make(3) != make(4) and make(3) != make(-3)
    assert make(3, "test") != make(-3, "test")


def test_errors(tokenizer):
    with pytest.raises(UserError, match="valid"): spelling_conversations(LISTS, tokenizer, 1, split="valid")
    with pytest.raises(UserError, match="'lamp'"): spelling_conversations((["lamp"], ["lamp"]), tokenizer, 1)


def test_task(tokenizer):
    task = SpellingTask(LISTS, tokenizer, 5, split="test")
    assert (task.name, task.kind, len(task)) == ("spelling", "generative", 5)
    assert all(task.evaluate(row, completion(tokenizer, row)) for row in task)
