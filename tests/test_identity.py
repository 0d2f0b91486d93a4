"Identity: the persona file, disjoint wordings, a judge that accepts only the fact that was asked, leakage."
from collections import Counter

import pytest

from nanochat import identity
from nanochat.identity import (IdentityTask, LeakTask, default_persona, identity_conversations, judge_identity,
                               mentions_identity, parse_persona)
from nanochat.workshop import UserError

TINY = "= name : Pim\n> I am Pim.\n? Who?\n! How?\n"


def questions(rows): return [m["content"] for row in rows for m in row["messages"] if m["role"] == "user"]


def test_the_persona_is_wide_enough():
    facts = default_persona().facts
    assert len(facts) >= 12 and len({f.name for f in facts}) == len(facts)
    for f in facts: assert len(f.train) >= 8 and len(f.test) >= 3 and len(f.answers) >= 3, f.name
    train, test = ({q.lower() for f in facts for q in qs} for qs in ([x for f in facts for x in f.train], [x for f in facts for x in f.test]))
    assert not train & test


def test_no_question_is_asked_of_two_facts():
    counts = Counter(q.lower().rstrip("?.") for f in default_persona().facts for q in f.train + f.test)
    assert max(counts.values()) == 1, counts.most_common(2)


def test_every_answer_is_accepted_for_its_own_fact_only():
    facts = default_persona().facts
    for asked in facts:
        row = {"answer": asked.keys}
        for f in facts:
            for answer in f.answers: assert judge_identity(row, answer) is (f is asked), (asked.name, answer)


def test_splits_share_no_question_in_any_style():
    clean = lambda rows: {q.lower().rstrip("?.") for q in questions(rows)}
    assert not clean(identity_conversations(3000)) & clean(identity_conversations(1000, split="test"))


def test_held_out_wordings_hide_in_no_training_question():
    "Whole templates: no held-out question, without its frame, is part of a training question, or the reverse."
    facts = default_persona().facts
    train = {q.lower().rstrip("?.") for f in facts for q in f.train}
    test = {q.lower().rstrip("?.") for f in facts for q in f.test}
    assert not [(a, b) for a in train for b in test if a in b or b in a]
    bare = {"{}"}
    assert not (set(identity.FRAMES["train"]) - bare) & (set(identity.FRAMES["test"]) - bare)


def test_rows_are_balanced_deterministic_and_well_formed():
    rows = identity_conversations(320, seed=2)
    assert set(Counter(row["fact"] for row in rows).values()) == {320 // len(default_persona().facts)}
    assert rows == identity_conversations(320, seed=2) != identity_conversations(320, seed=3)
    for row in rows:
        assert [m["role"] for m in row["messages"]] in (["user", "assistant"], ["user", "assistant"] * 2)
        assert judge_identity(row, row["messages"][-1]["content"])
    assert 40 < sum(len(row["messages"]) == 4 for row in rows) < 120
    assert len(set(questions(identity_conversations(2000)))) > 600


def test_a_seed_and_its_negative_differ():
    assert identity_conversations(30, seed=7) != identity_conversations(30, seed=-7)


def test_wrong_answers_fail():
    row = identity_conversations(1)[0]
    assert row["fact"] == "name"
    for text in ("", "My name is Lily.", "nanochat", "Nanotechnology", "I am a small language model."): assert not judge_identity(row, text)
    assert judge_identity(row, "i am nano") and judge_identity(row, "Nano!")


def test_marks_catch_the_persona_and_spare_the_world():
    persona = default_persona()
    spared = {"skills", "language", "sums", "limits"}         # what these say may be said of others, too
    for f in persona.facts:
        if f.name not in spared: assert any(mentions_identity(key) for key in f.keys), f.name
    for text in ("Lily lost her red kite.", "The answer is 19.", "Nanette runs.", "I like English tea.", "She made me a cake."):
        assert not mentions_identity(text)


def test_tasks():
    task = IdentityTask(20, seed=1, split="test")
    assert task.name == "identity" and task.kind == "generative" and len(task) == 20
    assert all(task.evaluate(row, row["messages"][-1]["content"]) for row in task)
    leak = LeakTask(50)
    prompts = questions(leak)
    assert len(leak) == 50 and all(leak.evaluate(row, "The kite is red.") for row in leak)
    assert not any(leak.evaluate(row, "You made me.") for row in leak)
    asked = {q.lower() for q in questions(identity_conversations(2000)) + questions(identity_conversations(500, split="test"))}
    assert not asked & {p.lower() for p in prompts}


def test_own_persona():
    persona = parse_persona(TINY + "marks : Pim\n")
    rows = identity_conversations(4, persona=persona)
    assert {row["fact"] for row in rows} == {"name"} and judge_identity(rows[0], "Pim")
    assert mentions_identity("Pim", persona) and not mentions_identity("Nano", persona)


@pytest.mark.parametrize("text, message", [
    ("* hello", "line 1"), ("> early", "line 1"), (TINY + "- x", "line 5"), ("= name :\n> a\n? b\n! c", "name"),
    ("= name : a\n> a\n? b", "held-out")])
def test_broken_files_are_named(text, message):
    with pytest.raises(UserError, match=message): parse_persona(text)


def test_unknown_split():
    with pytest.raises(UserError, match="valid"): identity_conversations(1, split="valid")
