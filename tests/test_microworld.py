"""The microworld against itself: what it holds out, what it counts, what its judge sees."""
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice
from math import comb, log2

import pytest

from nanochat import microworld as world
from nanochat.workshop import UserError

GROUPS = ("heroes", "friends", "people", "readers", "strangers")


@pytest.fixture(scope="module")
def docs(): return world.corpus(3_000_000)


@pytest.fixture(scope="module")
def text(docs): return "\n".join(d.text for d in docs)


@pytest.fixture(scope="module")
def train_talks(): return {k: world.conversations(k, 3000, 0) for k in world.TALKS}


def said(rows):
    "All text of conversations, tool calls included."
    for row in rows:
        for message in row["messages"]:
            content = message["content"]
            yield content if isinstance(content, str) else " | ".join(part["text"] for part in content)


# ---- the lexicon and its inflections

@pytest.mark.parametrize("rule, pairs", [
    (world.plural, "fox foxes, berry berries, day days, wolf wolves, child children, policeman policemen, box boxes, "
                   "town_hall town_halls, piano pianos, potato potatoes"),
    (world.past, "hop hopped, wave waved, carry carried, play played, sing sang, panic panicked, visit visited, "
                 "prefer preferred, curl_up curled_up, shut shut, mix mixed, row rowed"),
    (world.ing, "tie tying, make making, see seeing, swim swimming, open opening, mimic mimicking, weigh weighing, "
                "dye dyeing"),
    (world.third, "wash washes, fly flies, play plays, go goes, curl_up curls_up, moo moos"),
    (world.comparative, "big bigger, nice nicer, happy happier, careful more_careful, good better, tired more_tired"),
    (world.superlative, "big biggest, wise wisest, shiny shiniest, patient most_patient, bad worst"),
    (world.adverb, "brave bravely, happy happily, gentle gently, comic comically, full fully, shy shyly"),
    (world.with_article, "owl an_owl, unicycle a_unicycle, umbrella an_umbrella, hourglass an_hourglass, "
                         "honest_boy an_honest_boy, unlucky_cat an_unlucky_cat, ewe a_ewe, university a_university")])
def test_inflections(rule, pairs):
    for pair in pairs.split(", "):
        base, want = (w.replace("_", " ") for w in pair.split())
        assert rule(base) == want


def test_names_are_few_and_in_one_group_only():
    names = [name for g in GROUPS for name, _ in world.people(g)]
    assert len(names) == len(set(names)) <= 1500
    assert len(world.people("heroes")) == len(world.people("friends")) == 120
    first = [g for g in GROUPS for _ in world.people(g)]
    assert Counter(first)["people"] == 100


def test_sizes_of_the_world():
    assert 140 <= len(world.objects()) <= 160 and 20 <= len(world.lexicon("colours")) <= 24
    assert len(world.objects()) == sum(len(world.lexicon(f"objects_{c}"))
                                       for c in ("toy", "tool", "wear", "paper", "music", "holder", "treasure"))
    plots = [s for s in world.grammar("stories") if s.startswith("plot")]
    assert len(plots) >= 12
    assert all(len(world._plots(kind)) >= 8 for kind in set(world.objects().values()))


def test_unknown_lists_and_kinds_name_themselves():
    with pytest.raises(UserError, match="no word list 'dragons'"): world.lexicon("dragons")
    with pytest.raises(UserError, match="'riddles'.*profile"): world.conversations("riddles", 1, 0)
    with pytest.raises(UserError, match="'validation'"): world.conversations("choice", 1, 0, split="validation")


def test_enough_word_forms():
    "8,000 forms and more, each in at least 20 documents of 20 MB. Pairs do not count: they make words up."
    names = {n for g in GROUPS for n, _ in world.people(g)}
    count = Counter()
    for d in world.corpus(20_000_000):
        if d.kind != "pairs": count.update({w.lower() for w in re.findall("[A-Za-z]+", d.text) if w not in names})
    assert len(count) >= 8500
    assert sum(n >= 20 for n in count.values()) >= 8000


# ---- documents

def test_the_same_seed_gives_the_same_text_in_another_process():
    code = ("from nanochat import microworld as w; import hashlib, json; "
            "t = [d for d in w.corpus(20_000)] + [w.conversations(k, 20, 3, split='test') for k in w.TALKS] "
            "+ [w.core_tasks(5), w.story_openings(5), w.spelling_words(), w.held_people(), w.held_numbers()]; "
            "print(hashlib.sha256(json.dumps(t).encode()).hexdigest())")
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed,
                                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}).stdout
            for seed in ("1", "77")}
    assert len(runs) == 1


def test_seeds_differ_and_a_negative_seed_is_another_seed():
    first = [next(world.documents(s)).text for s in (1, -1, 2, -2)]
    assert len(set(first)) == 4
    talks = [str(world.conversations("word1", 3, s)) for s in (1, -1)]
    assert talks[0] != talks[1]


def test_a_corpus_is_a_prefix_of_a_longer_one():
    short, long = world.corpus(20_000), world.corpus(40_000)
    assert long[:len(short)] == short
    assert 20_000 <= sum(len(d.text.encode()) for d in short) < 22_000


def test_validation_is_never_training_text(docs):
    val = world.validation(200_000, 0)
    assert not {d.text for d in val} & {d.text for d in docs}
    assert all(world._in_validation(d.text) for d in val) and not any(world._in_validation(d.text) for d in docs)
    assert not {val[0].text} & {d.text for d in world.validation(200_000, 0, exclude={val[0].text})}


def test_kinds_and_shares(docs):
    size = Counter()
    for d in docs: size[d.kind] += len(d.text.encode())
    share = {k: n / sum(size.values()) for k, n in size.items()}
    assert set(share) == set(world.WRITERS) and len(share) >= 8
    assert 0.7 <= share["story"] <= 0.76 and 0.05 <= share["pairs"] <= 0.08 and 0.11 <= share["profile"] + share["profile facts"] <= 0.16


def test_documents_are_mostly_distinct(docs):
    assert len({d.text for d in docs}) > 0.995 * len(docs)
    assert not any(re.search(r"[{}_]|  |\ba (?!one)[aeio]\w|\ban [bcdfgjklmnpqrstvwxyz]\w", d.text) for d in docs
                   if d.kind != "spelled")


def test_story_lengths_and_cleanness(docs):
    stories = [d.text for d in docs if d.kind == "story"]
    words = [len(t.split()) for t in stories]
    assert min(words) > 40 and 60 <= sum(words) / len(words) <= 85
    assert sum(len(t) for t in stories) / len(stories) < 480


def test_attributes_occur_often_enough(docs):
    "Counted in 3 MB: 8 documents there are more than 25 in 10 MB."
    seen = Counter()
    plain = {world.plain_fact(n, a, facts[a]): (n, a) for n, facts in world.profiles().items() for a in world.ATTRIBUTES}
    for d in docs:
        if d.kind == "profile": seen.update((n, a) for n in world.profiles() if n in d.text.split() for a in world.ATTRIBUTES)
        if d.kind == "profile facts":
            seen.update(plain[s + "."] for s in re.split(r"\.\s", d.text.rstrip(".")))
    counts = [seen[n, a] for n in world.profiles() for a in world.ATTRIBUTES]
    assert min(counts) >= 8 and sum(counts) / len(counts) > 12
    held = [seen[n, a] for n in world.held_people() for a in world.ATTRIBUTES]
    assert 0.9 < (sum(held) / len(held)) / (sum(counts) / len(counts)) < 1.1


def test_facts_in_documents_are_never_contradicted(text):
    verbs = dict(zip(("keeps a", "lives in a", "works as a", "loves to eat", "plays the"), world.ATTRIBUTES))
    checked = 0
    for name, verb, value in re.findall(rf"\b([A-Z][a-z]+) ({'|'.join(verbs)}) ([a-z]+)", text):
        if name in world.profiles() and value in world.lexicon(world._LISTS[verbs[verb]]):
            assert world.profiles()[name][verbs[verb]] == value
            checked += 1
    assert checked > 5000


def test_sums_are_right(text):
    rows = re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)\.", text)
    assert len(rows) > 1000
    results = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    assert all(results[s](int(a), int(b)) == int(c) for a, s, b, c in rows)


# ---- counted entropy

def test_a_chooser_counts_what_choices_are_worth():
    chooser = world.Chooser("x")
    chooser.pick("abcd"), chooser.pick("a"), chooser.take([1, 2, 3], 3)
    assert chooser.bits == pytest.approx(2 + 0 + log2(6))
    chooser.bits = 0
    chooser.pick_weighted({"a": 3.0, "b": 3.0, "c": 0.0})
    assert chooser.bits == pytest.approx(1)


def test_weighted_choice_follows_its_weights():
    chooser = world.Chooser("w")
    got = Counter(chooser.pick_weighted({"a": 1.0, "b": 3.0}) for _ in range(4000))
    assert 0.22 < got["a"] / 4000 < 0.28


def test_counted_bits_are_minus_log2_of_the_probability_of_the_text():
    "A grammar small enough to enumerate: the true distribution against the counted bits."
    line = [tuple(world.compile_line(t) for t in ("{^a weekdays}, {months}.", "{^weekdays} again.")),
            (world.compile_line("{a thing}"),)]
    chooser, seen, bits = world.Chooser("tiny"), Counter(), {}
    for _ in range(30_000):
        chooser.bits = 0.0
        made = world.tell(line, chooser, {"thing": "orange kite"})
        seen[made] += 1
        assert bits.setdefault(made, chooser.bits) == chooser.bits
    assert len(seen) == 7 * 12 + 7                                 # every outcome, each from one path
    assert sum(2 ** -b for b in bits.values()) == pytest.approx(1)
    for made, n in seen.items():
        want = 30_000 * 2 ** -bits[made]
        assert abs(n - want) < 5.5 * want ** 0.5, made             # 5.5 standard deviations


def test_the_bits_of_sums_by_an_independent_formula():
    chooser = world.Chooser("sums")
    for _ in range(50):
        chooser.bits = 0.0
        want = 0.0
        for a, sign, _ in re.findall(r"(\d+) ([-+x]) (\d+) =", world.sums(chooser)):
            want += log2(3) + {"+": log2(100) * 2, "-": log2(100) + log2(int(a) + 1), "x": 2 * log2(11)}[sign]
        assert chooser.bits == pytest.approx(want)


def test_the_bits_of_people_facts_by_an_independent_formula():
    chooser = world.Chooser("facts")
    world.profile_facts(chooser)
    assert chooser.bits == pytest.approx(log2(comb(100, 6) * 720) + 6 * log2(5))


PLAIN = ("dialogue", "recipe", "directions", "weather", "howto", "diary", "letter", "lists")

def test_a_cast_costs_what_the_text_names(monkeypatch):
    "A choice counts only if another one would have changed the text; the oracle looks for the names themselves."
    told = {}
    real = world.cast
    monkeypatch.setattr(world, "cast", lambda chooser: told.setdefault("cast", real(chooser)))
    friends = {h: [f for f, _ in world.people("friends") if f[0] != h[0]] for h, _ in world.people("heroes")}
    seen = Counter()
    for kind in PLAIN:
        for i in range(60):
            told.clear()
            whole, named = world.Chooser(f"{kind} {i}"), world.Chooser(f"{kind} {i}")
            cast = real(whole)
            drawn = whole.bits                                  # the same draws; whole.bits prices all of them
            world.tell(world.grammar("documents")[kind], whole, cast)
            text = world.WRITERS[kind](named)
            assert told["cast"] == cast
            hero, friend, thing = (re.search(rf"\b{cast[k]}\b", text) is not None for k in ("hero", "friend", "thing"))
            want = whole.bits - drawn + log2(120) * hero + log2(150 * 20) * thing
            if friend and hero: want += log2(len(friends[cast["hero"]]))
            if friend and not hero:
                want -= log2(sum(1 / len(f) for f in friends.values() if cast["friend"] in f) / 120)
            assert named.bits == pytest.approx(want), (kind, text)
            seen[hero, friend, thing] += 1
    assert min(seen[key] for key in ((False,) * 3, (True, False, False), (False, True, False), (True, True, True))) > 3


def test_a_friend_without_the_hero_is_as_likely_as_counted():
    "The price of a friend whose hero stays unnamed, against how often the friend is drawn."
    chooser, n = world.Chooser("alone"), 60_000
    drawn, bits = Counter(), {}
    for _ in range(n):
        known = world.cast(chooser)
        drawn[known["friend"]] += 1
        if known["friend"] not in bits: bits[known["friend"]] = world._named_bits(known, {"friend"})
    assert sum(2 ** -b for b in bits.values()) == pytest.approx(1)
    assert sum((drawn[f] - n * 2**-b) ** 2 / (n * 2**-b) for f, b in bits.items()) < 185     # 119 degrees, p = 0.0001


def test_every_story_names_its_whole_cast(monkeypatch):
    "So that the bits of a story's cast count in full; the pronoun too, which a new hero has as a choice of its own."
    casts, real = [], world.cast
    monkeypatch.setattr(world, "cast", lambda *a: casts.append(real(*a)) or casts[-1])
    chooser = world.Chooser("whole casts")
    for _ in range(1000):
        text = world.story(chooser)
        assert all(re.search(rf"\b{casts[-1][k]}\b", text, re.I) for k in ("hero", "friend", "thing", "his"))


def test_slot_frequencies_agree_with_the_counted_probability(docs):
    stories = [d.text for d in docs if d.kind == "story"]
    heroes = Counter(n for t in stories for n in {w for w in re.findall("[A-Z][a-z]+", t)} & world._name_set("heroes"))
    assert len(heroes) == 120
    want = 0.6 * len(stories) / 120                # two heroes in five have a new name
    assert sum((n - want) ** 2 / want for n in heroes.values()) < 185      # chi square, 119 degrees, p = 0.0001


def test_new_names_are_nobodys_and_nearly_every_one_is_new(docs):
    new = set(world.new_names())
    assert len(new) == len(world.new_names()) > 20_000
    assert not new & {name for g in GROUPS for name, _ in world.people(g)}
    stories = [d.text for d in docs if d.kind == "story"]
    found = Counter(n for t in stories for n in {w for w in re.findall("[A-Z][a-z]+", t)} & new)
    assert 0.35 < found.total() / len(stories) < 0.45 and max(found.values()) < 12
    for opening in world.story_openings(100): assert opening["hero"] not in new     # tests ask about known heroes


def test_entropy_of_the_whole_corpus(docs):
    assert 0.35 <= world.entropy_bpb(docs) <= 0.45
    by_kind = defaultdict(list)
    for d in docs: by_kind[d.kind].append(d)
    assert all(d.bits > 0 for d in docs)
    assert world.entropy_bpb(docs) == pytest.approx(sum(d.bits for d in docs) / sum(len(d.text) for d in docs))
    assert world.entropy_bpb(by_kind["profile"]) < world.entropy_bpb(by_kind["lists"])   # facts cost nothing


# ---- what is held out

def test_held_people_are_in_documents_but_in_no_question(text, train_talks):
    held = world.held_people()
    assert len(held) >= 40
    talk = "\n".join(t for rows in train_talks.values() for t in said(rows)) + "\n".join(world.general_prompts(2000))
    assert set(held) <= set(re.findall("[A-Za-z]+", text)) and not set(held) & set(re.findall("[A-Za-z]+", talk))
    asked = Counter((r["name"], r["attribute"]) for r in world.conversations("profile", 200, 0, split="test"))
    assert set(asked) == {(n, a) for n in held for a in world.ATTRIBUTES} and set(asked.values()) == {1}


def test_strangers_occur_nowhere_in_training(text, train_talks):
    everything = set(re.findall("[A-Z][a-z]+", text)).union(
        *(set(re.findall("[A-Z][a-z]+", t)) for rows in train_talks.values() for t in said(rows)))
    strangers = world._name_set("strangers")
    assert len(strangers) >= 60 and not strangers & everything
    for kind in ("reading", "word1", "word2", "word3"):
        for t in said(world.conversations(kind, 300, 1, split="test")):
            names = set(re.findall("[A-Z][a-z]+", t)) & {n for g in GROUPS for n, _ in world.people(g)}
            assert names <= strangers


@pytest.mark.parametrize("kind", ["word1", "word2", "word3"])
def test_held_numbers_are_in_no_training_problem_and_in_every_test_problem(kind):
    held = set(world.held_numbers())
    assert len(held) == 20
    for seed in (0, 1):
        for t in said(world.conversations(kind, 3000, seed)):
            assert not held & {int(n) for n in re.findall(r"\d+", t)}, t
    for row in world.conversations(kind, 500, 0, split="test"):
        assert {int(n) for n in re.findall(r"\d+", row["messages"][0]["content"])} <= held


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["word1", "word2", "word3"])
def test_problems_work_out(kind, split):
    for row in world.conversations(kind, 500, 5, split=split):
        call, output, last = row["messages"][1]["content"]
        assert [call["type"], output["type"], last["type"]] == ["python", "python_output", "text"]
        assert re.fullmatch(r"\d+([-+*]\d+)+", call["text"])
        value = eval(call["text"])                                 # an oracle; the package itself never evals
        assert output["text"] == row["answer"] == str(value) and 0 <= value <= 9801
        assert last["text"] == f" The answer is {value}."
        numbers = re.findall(r"\d+", row["messages"][0]["content"])
        assert set(re.findall(r"\d+", call["text"])) <= set(numbers)


def test_problem_templates():
    assert len(world._problems("word1")) >= 20
    for k in ("word1", "word2", "word3"): assert len(world._problems(f"{k} new")) >= 1


def test_held_spellings_stand_in_no_document(text):
    train, held = world.spelling_words()
    assert len(train) >= 2000 and len(held) >= 300 and not set(train) & set(held)
    assert all(re.fullmatch("[a-z]{3,12}", w) for w in train + held)
    spelled = set(re.findall(r"\b[a-z](?: [a-z])+(?=[.\s])", text))
    spelled_words = {s.replace(" ", "") for s in spelled}
    assert len(spelled_words) > 800 and not set(held) & spelled_words
    assert not {w for w in held if f"The word {w} is spelled" in text}


def test_every_letter_stands_alone(text):
    for letter in "abcdefghijklmnopqrstuvwxyz": assert f" {letter} " in text or f" {letter}." in text


def test_held_wordings_are_asked_in_tests_only():
    seen = {r["messages"][0]["content"].split()[0] for r in world.conversations("profile", 600, 0)}
    assert "Can" not in seen
    rows = world.conversations("profile", 200, 0, split="test")
    assert {r["wording"] for r in rows} == {"new", "seen"}
    for a in world.ATTRIBUTES: assert len(world.wordings(a).asked) >= 6 and len(world.wordings(a).kept) >= 2


def test_held_colours_are_in_no_training_text(text, train_talks):
    pairs = {f"{c} {o}" for o in world.objects() for c in world.held_colours(o)}
    assert len(pairs) == 300
    everything = text + "\n".join(said(train_talks["story"]))
    stories = {" ".join(p) for p in re.findall(rf"\b({'|'.join(world.lexicon('colours'))}) ([a-z]+)\b", everything)}
    assert len(stories) > 2500 and not pairs & stories
    for row in world.story_openings(200): assert f"{row['colour']} {row['object']}" in pairs


# ---- conversations

def test_answers_are_short_and_roles_alternate(train_talks):
    for kind, rows in train_talks.items():
        for row in rows:
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"] and row["kind"] == kind
        if kind != "story": assert max(len(t.split()) for t in list(said(rows))[1::2]) <= 20
        if kind in ("profile", "reading"):
            assert all(re.search(rf"\b{r['answer']}\b", r["messages"][1]["content"]) for r in rows)


@pytest.mark.parametrize("split", ["train", "test"])
def test_reading_is_answerable_from_the_prompt(split):
    for row in world.conversations("reading", 500, 0, split=split):
        assert re.search(rf"\b{row['answer']}\b", row["messages"][0]["content"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_choice_has_one_right_option_and_even_letters(split):
    rows = world.conversations("choice", 800, 0, split=split)
    assert Counter(r["answer"] for r in rows) == {letter: 200 for letter in "ABCD"}
    assert {r["topic"] for r in rows} == {"passage", "person", "kind", "fact"}
    shortest = 0
    for r in rows:
        prompt = r["messages"][0]["content"]
        options = dict(re.findall(r"^- (.*)=([A-D])$", prompt, re.M))
        assert len(options) == 4 and sorted(options.values()) == r["letters"] == list("ABCD")
        said, mark, letter = r["messages"][1]["content"].partition(r["mark"])
        assert mark and letter == r["answer"]
        assert [o for o in options if said.endswith(f" {o}")] == [o for o in options if options[o] == letter]
        best = min(len(o) for o in options)
        short = [letter for o, letter in options.items() if len(o) == best]
        shortest += (r["answer"] in short) / len(short)
    assert shortest / len(rows) < 0.33


def test_choice_kinds_have_one_right_answer():
    of = defaultdict(set)
    for kind in world.KINDS_OF:
        for w, _, _ in world.facts()[kind]: of[w].add(kind)
    for r in world.conversations("choice", 600, 2) + world.conversations("choice", 600, 2, split="test"):
        if r["topic"] != "kind": continue
        prompt = r["messages"][0]["content"]
        asked = re.search(r"What is (?:an? )?(.+)\?", prompt)[1]
        fits = [letter for o, letter in re.findall(r"^- (.*)=([A-D])$", prompt, re.M) if o in of[asked]]
        assert fits == [r["answer"]], prompt


def test_general_prompts_are_not_about_identity():
    prompts = world.general_prompts(500) + world.general_prompts(500, split="test")
    assert not [p for p in prompts if re.search(r"\byou\b.*\b(name|called|who)\b|who are you|made you|your name", p, re.I)]
    assert not set(world.general_prompts(500)) & set(world.general_prompts(500, split="test"))


def test_a_friend_never_begins_like_the_hero():
    chooser = world.Chooser("initials")
    casts = [world.cast(chooser, hero) for hero in world.people("heroes") for _ in range(5)]
    assert all(c["hero"][0] != c["friend"][0] for c in casts) and len({c["friend"] for c in casts}) > 100


def test_the_first_word_about_a_friend_is_that_this_is_one():
    friends = "|".join(name for name, _ in world.people("friends"))
    told = [world.story(world.Chooser(f"friends {i}")) for i in range(500)]
    first = [re.search(rf"(.*?)\b({friends})\b(.*)", text) for text in told]
    assert all(m[1].endswith((" his friend ", " her friend ", " His friend ", " Her friend ")) for m in first)
    assert not [m[0] for m in first if re.search(r"[.!?] (his|her) friend|[a-z,] (His|Her) friend", m[1])]
    assert not [m[0] for m in first if re.search(rf"friend ({friends})", m[3])]


# ---- the judge

def named_again(t):
    "An opinion of its own: hero, object and colour of a story by counting words."
    words = re.findall("[A-Za-z]+", t)
    heroes = world._name_set("heroes") | set(world.new_names())
    hero = next(w for w in words if w in heroes and words.count(w) > 1)
    thing = next(w for w in words if w in world.objects())
    colour = next(w for w in words if w in world.lexicon("colours"))
    return hero, thing, colour


def test_the_judge_passes_stories_and_fails_swaps(docs):
    stories = [d.text for d in docs if d.kind == "story"][:2000]
    facts = [named_again(t) for t in stories]
    good = [world.judge_story(t, *f)["ok"] for t, f in zip(stories, facts)]
    assert sum(good) >= 0.98 * len(good)
    known = [(t, f) for t, f in zip(stories, facts) if f[0] in world._name_set("heroes")]    # whom a swap can name
    bad = [world.judge_story(world.corrupt_story(t, i), *f)["ok"] for i, (t, f) in enumerate(known)]
    assert len(bad) > 1000 and sum(bad) <= 0.10 * len(bad)
    assert all(world.corrupt_story(t, i) != t for i, (t, _) in enumerate(known))


def test_the_judge_names_the_fault():
    tale = ("Mira had a red kite. " + "She took the red kite to the river and Tom was not there. " * 5).replace("Tom", "Abby")
    tale += "Mira gave the red kite to Abby."
    assert world.judge_story(tale, "Mira", "kite", "red")["ok"]
    for old, new, fault in (("the red kite to the river", "the red drum to the river", "object"),
                            ("the red kite to the river", "the blue kite to the river", "colour"),
                            ("the red kite to the river", "the red zorp to the river", "object"),
                            ("Mira gave", "Lily gave", "name"), (" to Abby.", " to Holly.", "friend"),
                            (" to Abby.", " to Zorba.", "name"), ("Abby", "she", "friend")):
        verdict = world.judge_story(tale.replace(old, new), "Mira", "kite", "red")
        assert not verdict[fault] and not verdict["ok"], (old, new)
    short = world.judge_story("Mira had a red kite. Mira gave Abby the red kite.", "Mira", "kite", "red")
    assert short["friend"] and not short["ok"] and short["words"] == 11


# ---- CORE tasks

def test_core_tasks_have_the_bundle_format():
    tasks = world.core_tasks(40)
    count = Counter(t["type"] for t in tasks)
    assert len(tasks) >= 6 and all(count[k] >= 2 for k in ("multiple_choice", "schema", "language_modeling"))
    for t in tasks:
        assert len(t["rows"]) == 40 and t["baseline"] == world.CHANCE[t["type"]] and t["delimiter"] == " "
        for r in t["rows"]:
            if t["type"] == "multiple_choice":
                assert len(set(r["choices"])) == 4 and not r["query"].endswith(" ")
            elif t["type"] == "schema":
                assert len(set(r["context_options"])) == 2 and r["continuation"]
            else: assert r["context"] and not r["context"].endswith(" ") and r["continuation"]
        if t["type"] != "language_modeling":
            golds = Counter(r["gold"] for r in t["rows"])
            assert len(set(golds.values())) == 1


def test_core_multiple_choice_cannot_be_guessed_by_length():
    for t in world.core_tasks(400):
        if t["type"] != "multiple_choice": continue
        hits = 0.0
        for r in t["rows"]:
            best = min(map(len, r["choices"]))
            short = [i for i, c in enumerate(r["choices"]) if len(c) == best]
            hits += (r["gold"] in short) / len(short)
        assert 0.15 < hits / 400 < 0.36, t["label"]


def test_core_queries_are_in_the_form_of_the_documents(text):
    for t in world.core_tasks(60):
        if t["type"] != "multiple_choice": continue
        found = sum(f"{r['query']} {r['choices'][r['gold']]}" in text for r in t["rows"])
        assert found > 30, t["label"]


def test_schema_contexts_differ_in_one_word():
    for t in world.core_tasks(60):
        if t["type"] != "schema": continue
        for r in t["rows"]:
            a, b = (re.findall(r"\w+", c) for c in r["context_options"])
            swaps = {(x, y) for x, y in zip(a, b) if x != y}
            assert len(a) == len(b) and len({x.lower() for x, _ in swaps} - {"a", "an"}) == 1
            right = re.match(r"\w+", r["continuation"])[0]
            assert right in (a, b)[r["gold"]] and right not in (a, b)[1 - r["gold"]]


def test_labels_give_each_word_its_letter_again():
    games = [[m["content"] for m in talk["messages"]] for talk in world.conversations("labels", 300, 0)]
    orders = set()
    for parts in games:
        given, asked = (dict(re.findall(r"^(?:-)? ?(.+)=([A-D])$", part, re.M)) for part in parts)
        assert given == asked and list(given.values()) == list("ABCD")
        orders.add(tuple(asked.values()))
    assert len(orders) == 24


def test_pairs_come_back_with_their_partners(docs):
    games = [d.text for d in docs if d.kind == "pairs"]
    assert len(games) > 50
    sizes, seen = set(), set()
    for text in games:
        lettered = "=" in text
        given, back = text.split("\n\n") if lettered else text.removeprefix("Pairs:").removesuffix(".").split(". Again:")
        given, back = (part.replace("-", "").split("\n" if lettered else ",") for part in (given, back))
        assert set(back) <= set(given) and len(back) == 12
        sizes.add((lettered, len(given)))
        if lettered: seen.update(pair[-1] for pair in given)
    assert sizes == {(kind, n) for kind in (True, False) for n in (3, 4, 5, 6)} and seen == set("ABCDEFGH")
