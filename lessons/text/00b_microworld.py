# %%
#| default_exp microworld

# %%
#| export
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import islice
from math import log2
from random import Random
from typing import NamedTuple
from zlib import crc32

from nanochat.workshop import UserError

LEXICON = files("nanochat") / "lexicon"

@cache
def _lines(name: str) -> tuple[str, ...]:
    "The lines of a lexicon file that are neither empty nor a comment."
    path = LEXICON / f"{name}.txt"
    if not path.is_file(): raise UserError(f"no word list {name!r} in {LEXICON}; see its *.txt files")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))

def lexicon(
    name: str,    # file name without .txt
) -> list[str]:   # its words, each once, in the order of the file
    "The words of `nanochat/lexicon/<name>.txt`; an underscore in the file stands for a space."
    words = (word.replace("_", " ") for line in _lines(name) for word in line.split())
    return list(dict.fromkeys(words))


# %%
lexicon("animals")[:8]


# %%
#| export
@cache
def _irregular(name: str) -> dict[str, str]:
    "The two-column lexicon files: base form to irregular form."
    return dict(line.split() for line in _lines(name))

def _doubles(verb: str) -> bool:
    "Does the last letter double before -ed and -ing (hop, hopping)?"
    return bool(re.fullmatch(r"(?:[^aeiou]|qu)*[aeiouy][bdgklmnprtz]", verb)) or verb in lexicon("doubles")

def _on_last(rule: Callable[[str], str], phrase: str) -> str:
    "Apply a rule to the last word of a phrase."
    head, _, word = phrase.rpartition(" ")
    return f"{head} {rule(word)}".lstrip()

def _on_first(rule: Callable[[str], str], phrase: str) -> str:
    "Apply a rule to the first word of a phrase."
    word, *rest = phrase.split(" ")
    return " ".join([rule(word), *rest])

def _s(word: str) -> str:
    "Add -s as English spells it: boxes, flies, days."
    if word.endswith("man"): return word[:-3] + "men"
    if re.search(r"(s|x|z|ch|sh)$", word): return word + "es"
    if re.search(r"[^aeiou]y$", word): return word[:-1] + "ies"
    return word + "s"

def plural(
    noun: str,  # singular
) -> str:
    "The plural of a noun or of the last word of a phrase."
    return _on_last(lambda w: _irregular("plurals").get(w) or _s(w), noun)

def third(
    verb: str,  # base form
) -> str:
    "The third person of a verb: `she waves`."
    return _on_first(lambda w: w + "es" if re.search(r"[^o]o$", w) else _s(w), verb)

def _past(verb: str) -> str:
    if verb in (odd := _irregular("pasts")): return odd[verb]
    if verb.endswith("e"): return verb + "d"
    if re.search(r"[^aeiou]y$", verb): return verb[:-1] + "ied"
    if verb.endswith("c"): return verb + "ked"
    return verb + verb[-1] * _doubles(verb) + "ed"

def past(
    verb: str,  # base form
) -> str:
    "The past tense of a verb, from the rules or from `pasts.txt`."
    return _on_first(_past, verb)

def _ing(verb: str) -> str:
    if verb.endswith("ie"): return verb[:-2] + "ying"
    if re.search(r"[^eyo]e$", verb): return verb[:-1] + "ing"
    if verb.endswith("c"): return verb + "king"
    return verb + verb[-1] * _doubles(verb) + "ing"

def ing(
    verb: str,  # base form
) -> str:
    "The -ing form of a verb."
    return _on_first(_ing, verb)


# %%
assert [plural(w) for w in ("fox", "berry", "wolf", "bus driver")] == ["foxes", "berries", "wolves", "bus drivers"]
assert [past(w) for w in ("hop", "wave", "carry", "sing", "curl up")] == ["hopped", "waved", "carried", "sang", "curled up"]
assert [ing(w) for w in ("tie", "make", "see", "swim")] == ["tying", "making", "seeing", "swimming"]


# %%
#| export
def _short(adjective: str) -> bool:
    "Does it take -er and -est? One syllable or an ending in -y, and no participle."
    if re.search(r"(ed|ing|some|en|le|wn|orn|ous)$|[- ]", adjective): return False
    syllables = len(re.findall(r"[aeiouy]+", re.sub(r"e$", "", adjective)))
    return syllables == 1 or (syllables == 2 and adjective.endswith("y"))

def _degree(adjective: str, ending: str) -> str:
    "Add -er or -est as English spells it."
    if adjective.endswith("e"): return adjective + ending[1:]
    if re.search(r"[^aeiou]y$", adjective): return adjective[:-1] + "i" + ending
    return adjective + adjective[-1] * _doubles(adjective) + ending

def comparative(
    adjective: str,
) -> str:
    "The comparative: `bigger`, `more careful`."
    odd = {"good": "better", "bad": "worse", "ill": "worse", "little": "smaller", "well": "better"}
    if adjective in odd: return odd[adjective]
    return _degree(adjective, "er") if _short(adjective) else f"more {adjective}"

def superlative(
    adjective: str,
) -> str:
    "The superlative: `biggest`, `most careful`."
    odd = {"good": "best", "bad": "worst", "ill": "worst", "little": "smallest", "well": "best"}
    if adjective in odd: return odd[adjective]
    return _degree(adjective, "est") if _short(adjective) else f"most {adjective}"

def adverb(
    adjective: str,
) -> str:
    "The adverb of an adjective: `bravely`, `happily`, `gently`."
    if re.search("(ly|ed|ing|eat)$", adjective): return f"in {with_article(adjective)} way"
    if adjective.endswith("ic"): return adjective + "ally"
    if adjective.endswith("ll"): return adjective + "y"
    if re.search(r"[^aeiou]le$", adjective): return adjective[:-1] + "y"
    if re.search(r"[aeiou].*[^aeiou]y$", adjective): return adjective[:-1] + "ily"
    return adjective + "ly"

def with_article(
    phrase: str,
) -> str:
    "The phrase with `a` or `an` before it."
    vowel = re.match(r"(?!eu|ew|one|u(ni[^nm]|se|su|ku|ti))[aeiou]|hon|heir|hour", phrase, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {phrase}"


# %%
assert comparative("big") == "bigger" and superlative("happy") == "happiest" and adverb("gentle") == "gently"
assert [with_article(w) for w in ("owl", "unicycle", "umbrella", "hour")] == ["an owl", "a unicycle", "an umbrella", "an hour"]

# %%
#| export
WORLD_SEED = 2026
PRONOUNS = {"she": ("she", "her", "her", "girl"), "he": ("he", "him", "his", "boy")}
FORMS = {"pl": plural, "3": third, "past": past, "ing": ing,
         "er": comparative, "est": superlative, "ly": adverb}
POOLS = {"edibles": ("fruits", "vegetables", "foods"), "feelings": ("glads", "sads"),
         "acts": ("moves", "joys", "griefs", "habits"), "deeds": ("handles", "chores")}

def people(
    group: str,                # heroes, friends, people, readers or strangers
) -> list[tuple[str, str]]:    # (name, "she" or "he")
    "The names of one group with their pronouns. No name is in two groups."
    return [(name, she) for she in ("she", "he") for name in lexicon(f"{group}_{she}")]

@cache
def objects() -> dict[str, str]:  # object -> its class
    "The things that stories are about."
    classes = ("toy", "tool", "wear", "paper", "music", "holder", "treasure")
    return {word: c for c in classes for word in lexicon(f"objects_{c}")}

@cache
def _reserved() -> frozenset[str]:
    "Objects and colours with their plurals: no slot may offer them, so a story names only its own."
    words = [*objects(), *lexicon("colours")]
    return frozenset(words + [plural(w) for w in words])

@cache
def word_list(
    key: str,              # "animals", or with a form: "animals.pl"
) -> tuple[str, ...]:
    "The words that a slot of the grammar may take: a list or a pool, without objects and colours."
    name, _, form = key.partition(".")
    words = [w for part in POOLS.get(name, (name,)) for w in lexicon(part)]
    words = [FORMS[form](w) if form else w for w in words if not _reserved() & set(re.split("[ -]", w))]
    return tuple(dict.fromkeys(words))


# %%
print(len(objects()), "objects,", len(lexicon("colours")), "colours;", word_list("animals.pl")[:5], word_list("acts.ing")[:5])


# %%
#| export
class Chooser:
    """Makes every random choice of the generator and adds up what it is worth.

    A choice of one among n equal options adds log2 n bits; `bits` is the sum since it was last set to 0."""
    def __init__(self, seed: str):
        self.random = Random(seed).random
        self.bits = 0.0

    def pick(self, options):
        "One of the options, each as likely."
        n = len(options)
        self.bits += log2(n)
        return options[int(self.random() * n)]

    def pick_weighted(self, weights: dict[str, float]) -> str:
        "A key, as likely as its weight says; adds -log2 of its probability."
        total = sum(weights.values())
        mark = self.random() * total
        for key, weight in weights.items():
            mark -= weight
            if mark < 0: break
        self.bits += log2(total / weight)
        return key

    def take(self, options: list, k: int) -> list:
        "k different options in random order; adds log2 of the number of such rows."
        rest, taken = list(options), []
        for _ in range(k):
            taken.append(self.pick(rest))
            rest.remove(taken[-1])
        return taken


# %%
coin = Chooser("a coin")
coin.pick(["heads", "tails"]), coin.bits


# %%
#| export
class Slot(NamedTuple):
    "A hole in a sentence: filled from `words` when there are any, else with what is known as `key`."
    key: str
    article: bool
    capital: bool
    words: tuple[str, ...]

def _upper(text: str) -> str: return text[:1].upper() + text[1:]

def _slot(inside: str, known: frozenset[str]) -> Slot:
    "Read what stands between braces: `{^a animals}`."
    capital, inside = inside.startswith("^"), inside.removeprefix("^")
    article, key = inside.startswith("a "), inside.removeprefix("a ")
    if key in known: return Slot(key, article, capital, ())
    words = [with_article(w) if article else w for w in word_list(key)]
    return Slot(key, article, capital, tuple(_upper(w) if capital else w for w in words))

KNOWN = frozenset("""hero he him his child friend he2 him2 his2 child2 object colour thing use used using
    name value person nouns a b c d""".split())

def compile_line(
    text: str,                    # a sentence with slots in braces
) -> tuple[str | Slot, ...]:      # literal text and slots in turn
    "Split a sentence of the grammar into literal text and slots."
    parts = re.split(r"\{([^}]*)\}", text)
    made = [_slot(p, KNOWN) if i % 2 else p for i, p in enumerate(parts)]
    return tuple(p for p in made if p != "")

def write(
    line: tuple[str | Slot, ...],  # from compile_line
    chooser: Chooser | None,       # None will do for a line without free slots
    known: dict[str, str],         # values of the slots that are not free
) -> str:
    "Fill the slots of one sentence."
    out = []
    for part in line:
        if isinstance(part, str): out.append(part)
        elif part.words: out.append(chooser.pick(part.words))
        else:
            word = known[part.key]
            if part.article: word = with_article(word)
            out.append(_upper(word) if part.capital else word)
    return "".join(out)


# %%
line = compile_line("{^a animals} saw {a thing}.")
print(write(line, Chooser("1"), {"thing": "orange kite"}))

# %%
#| export
Step = tuple[tuple[str | Slot, ...], ...]      # the wordings of one sentence

@cache
def grammar(
    name: str,                     # lexicon file
) -> dict[str, list[Step]]:        # section heading -> its steps, each with its wordings
    "Read a grammar file: `[section]` headings, steps parted by empty lines, one wording per line."
    sections, new = {}, True
    for line in _lines(name):
        if line.startswith("["):
            steps = sections.setdefault(line.strip("[]"), [])
            new = True
        elif not line: new = True
        else:
            if new: steps.append([])
            steps[-1].append(compile_line(line))
            new = False
    return {head: [tuple(step) for step in steps] for head, steps in sections.items()}

def tell(
    steps: Iterable[Step],
    chooser: Chooser,
    known: dict[str, str],
) -> str:
    "One wording of each step, joined by spaces."
    return " ".join(write(chooser.pick(step), chooser, known) for step in steps)

@cache
def _uses() -> dict[str, tuple[str, ...]]:
    "For each class of objects: what one does with it (base, past, -ing)."
    pairs = (line.split(": ") for line in _lines("uses"))
    return {name: tuple(forms.split(" | ")) for name, forms in pairs}

@cache
def held_colours(
    thing: str,          # an object
) -> tuple[str, ...]:    # two of the colours
    "The colours that this object never has in the training text."
    i = list(objects()).index(thing)
    return tuple(c for j, c in enumerate(lexicon("colours")) if (i + 7 * j) % 11 == 0)

@cache
def train_colours(
    thing: str,
) -> tuple[str, ...]:
    "The colours that this object may have in the training text."
    return tuple(c for c in lexicon("colours") if c not in held_colours(thing))


# %%
held_colours("kite"), len(train_colours("kite"))


# %%
#| export
def cast(
    chooser: Chooser,
    hero: tuple[str, str] | None = None,    # (name, pronoun), else chosen
    thing: tuple[str, str] | None = None,   # (object, colour), else chosen
) -> dict[str, str]:                        # what the grammar calls hero, friend, object, thing, ...
    "Choose who and what a story is about."
    name, she = hero or chooser.pick(_group("heroes"))
    friend, she2 = chooser.pick(_group("friends"))
    kind = thing[0] if thing else chooser.pick(_object_list())
    colour = thing[1] if thing else chooser.pick(train_colours(kind))
    known = {"hero": name, "friend": friend, "object": kind, "colour": colour, "thing": f"{colour} {kind}"}
    known |= zip(("he", "him", "his", "child"), PRONOUNS[she])
    known |= zip(("he2", "him2", "his2", "child2"), PRONOUNS[she2])
    return known | dict(zip(("use", "used", "using"), _uses()[objects()[kind]]))

@cache
def _group(name: str) -> tuple[tuple[str, str], ...]: return tuple(people(name))

@cache
def _object_list() -> tuple[str, ...]: return tuple(objects())

@cache
def _plots(kind: str) -> tuple[tuple[Step, ...], ...]:
    "The plots that suit a class of objects, each with the ending after it."
    story = grammar("stories")
    heads = [h for h in story if h.startswith("plot") and {kind, "all"} & set(h.split(": ")[1].split())]
    return tuple((*story[h], *story["ending"]) for h in heads)

def story(
    chooser: Chooser,
    hero: tuple[str, str] | None = None,
    thing: tuple[str, str] | None = None,
) -> str:
    "A story of six to nine sentences about one hero, one friend and one thing with its colour."
    known = cast(chooser, hero, thing)
    opening = tell(grammar("stories")["opening"], chooser, known)
    return f"{opening} {tell(chooser.pick(_plots(objects()[known['object']])), chooser, known)}"


# %%
chooser = Chooser("a first story")
print(story(chooser), f"\n({chooser.bits:.0f} bits)")

# %%
#| export
ATTRIBUTES = ("pet", "home", "work", "dish", "play")
_LISTS = {"pet": "pets", "home": "homes", "work": "works", "dish": "dishes", "play": "plays"}

class Wordings(NamedTuple):
    "How one attribute is said and asked."
    plain: tuple           # the plain sentence
    said: tuple            # all sentences, the plain one first
    asked: tuple           # questions
    kept: tuple            # questions for tests only

@cache
def wordings(
    attribute: str,   # one of ATTRIBUTES
) -> Wordings:
    "The sentences and questions of an attribute, from `attributes.txt`."
    here, rows = None, {"=": [], "+": [], "?": [], "!": []}
    for line in _lines("attributes"):
        if line.startswith("["): here = line[1:].split(":")[0]
        elif line and here == attribute: rows[line[0]].append(compile_line(line[2:]))
    plain = rows["="][0]
    return Wordings(plain, (plain, *rows["+"]), tuple(rows["?"]), tuple(rows["!"]))

@cache
def profiles() -> dict[str, dict[str, str]]:  # name -> {"she": pronoun, "pet": ..., ...}
    "Who has which attributes: the facts of this world, fixed by WORLD_SEED."
    rng, world = Random(f"profiles {WORLD_SEED}"), {n: {"she": she} for n, she in people("people")}
    for attribute in ATTRIBUTES:
        values = lexicon(_LISTS[attribute])
        deal = (values * (len(world) // len(values) + 1))[:len(world)]
        rng.shuffle(deal)
        for person, value in zip(world.values(), deal): person[attribute] = value
    return world

@cache
def held_people() -> tuple[str, ...]:
    "The 40 characters about whom no question is ever asked in training."
    return tuple(sorted(Random(f"held people {WORLD_SEED}").sample(list(profiles()), 40)))

def plain_fact(
    name: str,       # anybody
    attribute: str,  # one of ATTRIBUTES
    value: str,
) -> str:
    "The plain sentence for an attribute: `Edda keeps a goat.`"
    return write(wordings(attribute).plain, None, {"name": name, "value": value})


# %%
print(held_people()[:5], profiles()["Edda"], plain_fact("Edda", "pet", profiles()["Edda"]["pet"]))


# %%
#| export
def profile(
    chooser: Chooser,
) -> str:
    "All five attributes of one character, in any order and wording."
    name = chooser.pick(_names())
    facts = profiles()[name]
    out = []
    for attribute in chooser.take(ATTRIBUTES, len(ATTRIBUTES)):
        who = chooser.pick((name, _upper(facts["she"]))) if out else name
        out.append(write(chooser.pick(wordings(attribute).said), chooser, {"name": who, "value": facts[attribute]}))
    return " ".join(out)

@cache
def _names() -> tuple[str, ...]: return tuple(profiles())

def profile_facts(
    chooser: Chooser,
) -> str:
    "Six plain sentences about six people, each to be known without help from the others."
    out = []
    for name in chooser.take(_names(), 6):
        attribute = chooser.pick(ATTRIBUTES)
        out.append(plain_fact(name, attribute, profiles()[name][attribute]))
    return " ".join(out)


# %%
print(profile(Chooser("p")), "\n\n", profile_facts(Chooser("p")))


# %%
#| export
def _right_articles(sentence: str) -> str:
    "Turn `a` into `an` where the next word wants it."
    mend = lambda m: with_article(m[2]) if m[1] == "a" else _upper(with_article(m[2]))
    return re.sub(r"\b([Aa]) (\w+)", mend, sentence)

def _elsewhere(word: str, own: str) -> bool:
    "Is the word in the list of another kind too? A squash is a game and a vegetable: better left out."
    lists = ("fruits", "vegetables", "animals", "plants", "vehicles", "clothes", "games")
    return any(word in word_list(name) for name in lists if name != own)

@cache
def facts() -> dict[str, tuple[tuple[str, str, str], ...]]:  # kind -> ((subject, value, sentence), ...)
    "The facts of the world that are not about people, from `facts.txt` and `kinds.txt`."
    out: dict[str, list] = {}
    for line in _lines("facts"):
        if line.startswith("["):
            name, frame = line[1:].split("] ")
            out[name] = []
            continue
        for pair in line.split():
            left, right = re.split("[=/]", pair)
            out[name].append((left, right))
            if "/" in pair: out[name].append((right, left))
        rows = out[name]
        rows[:] = [(r[0], r[1], _right_articles(frame.format(*r[:2]))) for r in rows]
    for line in _lines("kinds"):
        if not line: continue
        kind, frame, names = re.split(r"\] | \| ", line[1:])
        words = [w for w in word_list(names) if not _elsewhere(w, names)]
        words = words[::-(-len(words) // 36)]      # at most 36 of a kind, from the whole list
        out[kind] = [(w, kind, frame.format(A=_upper(with_article(w)), W=_upper(w))) for w in words]
    return {name: tuple(rows) for name, rows in out.items()}

KINDS_OF = ("fruit", "vegetable", "animal", "plant", "vehicle", "garment", "game")

def fact_list(
    chooser: Chooser,
) -> str:
    "Six facts: opposites, young animals, sounds, colours, materials, places, order and kinds."
    return " ".join(chooser.pick(_all_facts())[2] for _ in range(6))

@cache
def _all_facts() -> tuple[tuple[str, str, str], ...]:
    return tuple(row for rows in facts().values() for row in rows)

def sums(
    chooser: Chooser,
) -> str:
    "Six sums with their results."
    out = []
    for _ in range(6):
        sign = chooser.pick("+-x")
        if sign == "x": a, b = chooser.pick(range(2, 13)), chooser.pick(range(2, 13))
        else: a = chooser.pick(range(100)); b = chooser.pick(range(a + 1 if sign == "-" else 100))
        out.append(f"{a} {sign} {b} = {a + b if sign == '+' else a - b if sign == '-' else a * b}.")
    return " ".join(out)

def ages(
    chooser: Chooser,
) -> str:
    "Who is older: two ages, and what follows from them. Then the same with height."
    (a, _), (b, _), (c, _), (d, _) = chooser.take(_group("heroes"), 4)
    m, n = chooser.take(range(3, 100), 2)
    h, k = chooser.take(range(60, 200), 2)
    old, tall = (a, b) if m > n else (b, a), (c, d) if h > k else (d, c)
    return (f"{a} is {m} years old. {b} is {n} years old. So {old[0]} is older than {old[1]}. "
            f"{c} is {h} cm tall. {d} is {k} cm tall. So {tall[0]} is taller than {tall[1]}.")


# %%
for kind in (fact_list, sums, ages): print(kind(Chooser("x")), "\n")


# %%
#| export
@cache
def spelling_words() -> tuple[list[str], list[str]]:  # (words to train on, held-out words)
    "Words of 3 to 12 letters for spelling. The spelling of a held-out word stands in no document."
    skip = ("heroes", "friends", "people", "readers", "strangers")
    lists = sorted(p.name[:-4] for p in LEXICON.iterdir() if p.name.endswith(".txt"))
    plain = [n for n in lists if not n.startswith(skip) and n in SPELLED]
    words = sorted({w for n in plain for w in lexicon(n) if re.fullmatch("[a-z]{3,12}", w)})
    held = [w for w in words if crc32(w.encode()) % 8 == 0]
    return [w for w in words if crc32(w.encode()) % 8], held

SPELLED = frozenset("""animals fruits vegetables foods foods_mass plants jobs places buildings furniture
    vehicles clothes bodies materials games events abstracts things traits looks scenes glads sads tastes
    weathers moves joys griefs habits handles chores cares says""".split())
ALPHABET = "The alphabet is " + " ".join("abcdefghijklmnopqrstuvwxyz") + "."

def spelled(
    chooser: Chooser,
) -> str:
    "Four words and their letters, and in every second document the alphabet."
    words = (chooser.pick(spelling_words()[0]) for _ in range(4))
    lines = [f"The word {w} is spelled {' '.join(w)}." for w in words]
    return " ".join([ALPHABET] * chooser.pick((0, 1)) + lines)

def _section(name: str) -> Callable[[Chooser], str]:
    "A writer for a section of `documents.txt`."
    return lambda chooser: tell(grammar("documents")[name], chooser, cast(chooser))

WRITERS: dict[str, Callable[[Chooser], str]] = {
    "story": story, "profile": profile, "profile facts": profile_facts, "facts": fact_list, "sums": sums,
    "ages": ages, "spelled": spelled,
    **{k: _section(k) for k in "dialogue recipe directions weather howto diary letter lists".split()}}
WEIGHTS = {"story": 75.0, "profile": 12.0, "profile facts": 20.0, "facts": 10.0, "sums": 4.0, "ages": 2.0,
           "spelled": 4.5, "dialogue": 1.0, "recipe": 1.0, "directions": 1.0, "weather": 1.0, "howto": 1.0,
           "diary": 1.0, "letter": 1.0, "lists": 1.0}

class Doc(NamedTuple):
    "One document: its text, its kind, and the bits of choice in it, the choice of kind included."
    text: str
    kind: str
    bits: float

def _in_validation(text: str) -> bool:
    "An eighth of all possible texts is for validation, by their checksum."
    return crc32(text.encode()) % 8 == 0

def documents(
    seed: int,
    *,
    split: str = "train",      # or "val": no text can be in both
) -> Iterator[Doc]:
    "Documents without end, the same for the same seed."
    chooser = Chooser(f"documents {split} {seed}")
    while True:
        chooser.bits = 0.0
        kind = chooser.pick_weighted(WEIGHTS)
        text = WRITERS[kind](chooser)
        if _in_validation(text) == (split == "val"): yield Doc(text, kind, chooser.bits)

def _until(docs: Iterable[Doc], n_bytes: int) -> list[Doc]:
    "The first documents that hold n_bytes of UTF-8 text together."
    out = []
    for doc in docs:
        if n_bytes <= 0: break
        out.append(doc)
        n_bytes -= len(doc.text.encode())
    return out

def corpus(
    n_bytes: int,        # at least this much UTF-8 text
    seed: int = 0,
) -> list[Doc]:
    "The first training documents of a seed."
    return _until(documents(seed), n_bytes)

def validation(
    n_bytes: int,
    seed: int = 0,
    exclude: frozenset[str] | set[str] = frozenset(),  # texts to leave out (none can be training text anyway)
) -> list[Doc]:
    "Fresh documents of the same kinds; none can be in any `corpus`."
    return _until((d for d in documents(seed, split="val") if d.text not in exclude), n_bytes)

def entropy_bpb(
    docs: Iterable[Doc],
) -> float:  # bits per UTF-8 byte
    "The choice entropy of documents: the floor under a model's bits per byte."
    docs = list(docs)
    return sum(d.bits for d in docs) / sum(len(d.text.encode()) for d in docs)


# %%
sample = corpus(100_000)
print(f"{entropy_bpb(sample):.3f} bits per byte, {len(sample)} documents")


# %%
#| export
def _turn(kind: str, question: str, reply: str | list, answer: str, **more) -> dict:
    "A conversation of one question and one reply."
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "kind": kind, "answer": answer, **more}

def _ask(chooser: Chooser, split: str, name: str, attribute: str) -> tuple[str, str]:
    "A question about an attribute, and whether its wording is \"seen\" or, in tests only, \"new\"."
    lines = wordings(attribute)
    new = split == "test" and chooser.pick((True, False))
    line = chooser.pick(lines.kept if new else lines.asked)
    return write(line, chooser, {"name": name}), "new" if new else "seen"

def _asked_people(split: str) -> list[str]:
    "Who may be asked about: in tests only the characters held out of training."
    return [name for name in profiles() if (name in held_people()) == (split == "test")]

def _profile_talks(chooser: Chooser, split: str) -> Iterator[dict]:
    "Questions about characters, answered from memory: every character and attribute in turn."
    pairs = [(name, attribute) for name in _asked_people(split) for attribute in ATTRIBUTES]
    while True:
        for name, attribute in chooser.take(pairs, len(pairs)):
            value = profiles()[name][attribute]
            question, wording = _ask(chooser, split, name, attribute)
            yield _turn("profile", question, plain_fact(name, attribute, value), value,
                        name=name, attribute=attribute, wording=wording)

def _fresh_group(split: str) -> tuple[tuple[str, str], ...]:
    "Names for texts that bring their own facts: strangers occur in no training text at all."
    return _group("strangers" if split == "test" else "readers")

def _invented(chooser: Chooser, name: str, k: int) -> dict[str, str]:
    "k attributes with invented values for somebody."
    return {a: chooser.pick(lexicon(_LISTS[a])) for a in chooser.take(list(ATTRIBUTES), k)}

def _told(name: str, facts: dict[str, str]) -> str:
    return " ".join(plain_fact(name, a, value) for a, value in facts.items())

def _read_profile(chooser: Chooser, split: str) -> dict:
    "Three sentences about somebody unknown and a question that one of them answers."
    name, _ = chooser.pick(_fresh_group(split))
    facts = _invented(chooser, name, 3)
    attribute = chooser.pick(tuple(facts))
    question, wording = _ask(chooser, split, name, attribute)
    value = facts[attribute]
    return _turn("reading", f"{_told(name, facts)} {question}", plain_fact(name, attribute, value), value,
                 wording=wording)

def _read_owner(chooser: Chooser, split: str) -> dict:
    "Two people, two things: who has which, or which colour it is."
    (a, _), (b, _) = chooser.take(_fresh_group(split), 2)
    x, y = chooser.take(_object_list(), 2)
    colours = chooser.take(lexicon("colours"), 2)
    told = f"{a} has {with_article(colours[0])} {x}. {b} has {with_article(colours[1])} {y}."
    i = chooser.pick((0, 1))
    name, thing, colour = (a, b)[i], (x, y)[i], colours[i]
    question, reply, answer = chooser.pick((
        (f"Who has the {thing}?", f"{name} has the {thing}.", name),
        (f"What does {name} have?", f"{name} has {with_article(colour)} {thing}.", thing),
        (f"What colour is the {thing}?", f"The {thing} is {colour}.", colour)))
    return _turn("reading", f"{told} {question}", reply, answer, wording="seen")

def _reading_talks(chooser: Chooser, split: str) -> Iterator[dict]:
    "Questions that the prompt itself answers, about people who occur nowhere else."
    while True: yield chooser.pick((_read_profile, _read_owner))(chooser, split)


# %%
for maker in (_profile_talks, _reading_talks):
    for row in islice(maker(Chooser("demo"), "train"), 2): print([m["content"] for m in row["messages"]])

# %%
#| export
LETTERS = ("A", "B", "C", "D")

def _others(chooser: Chooser, values: Iterable[str], right: str, k: int = 3) -> list[str]:
    "k wrong values, all different."
    return chooser.take([v for v in values if v != right], k)

def _choice_passage(chooser: Chooser, split: str) -> tuple[str, str, list[str]]:
    "A question that a passage in the prompt answers."
    name, _ = chooser.pick(_fresh_group(split))
    facts = _invented(chooser, name, chooser.pick((1, 2)))
    attribute = chooser.pick(tuple(facts))
    question, _ = _ask(chooser, split, name, attribute)
    right = facts[attribute]
    return f"{_told(name, facts)} {question}", right, _others(chooser, lexicon(_LISTS[attribute]), right)

def _choice_person(chooser: Chooser, split: str) -> tuple[str, str, list[str]]:
    "A question about a character of this world."
    name, attribute = chooser.pick(_asked_people(split)), chooser.pick(ATTRIBUTES)
    right = profiles()[name][attribute]
    question, _ = _ask(chooser, split, name, attribute)
    return question, right, _others(chooser, lexicon(_LISTS[attribute]), right)

def _held_word(word: str) -> bool:
    "A fifth of the words: in choice questions they are the answer in tests only."
    return crc32(f"choice {word}".encode()) % 5 == 0

def _choice_kind(chooser: Chooser, split: str) -> tuple[str, str, list[str]]:
    "Which of these is a fruit?"
    kinds = chooser.take(list(KINDS_OF), 4)
    words = [[w for w, _, _ in facts()[k] if _held_word(w) == (split == "test")] for k in kinds]
    right, *wrong = [chooser.pick(some) for some in words]
    return f"Which of these is {with_article(kinds[0])}?", right, wrong

def _choice_sum(chooser: Chooser, split: str) -> tuple[str, str, list[str]]:
    "A small sum; in training the two numbers never add up to a multiple of 5, in tests they do."
    pairs = [(a, b) for a in range(2, 21) for b in range(2, 21) if ((a + b) % 5 == 0) == (split == "test")]
    a, b = chooser.pick(pairs)
    wrong = _others(chooser, [str(a + b + d) for d in range(-4, 10) if d and a + b + d > 0], str(a + b))
    return f"What is {a} + {b}?", str(a + b), wrong

CHOICES = (_choice_passage, _choice_passage, _choice_passage, _choice_person, _choice_person,
           _choice_kind, _choice_kind, _choice_sum)

def choice_prompt(
    question: str,
    options: list[str],   # at most 26
) -> str:
    "The prompt of a multiple-choice question, in the layout of nanochat."
    lines = [f"- {text}={letter}" for text, letter in zip(options, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    return "\n".join([f"Multiple Choice question: {question}", *lines, "",
                      "Respond only with the letter of the correct answer."])

def _choice_talks(chooser: Chooser, split: str) -> Iterator[dict]:
    "Multiple-choice questions; the right letters are dealt evenly."
    while True:
        for gold in chooser.take([0, 1, 2, 3], 4):
            make = chooser.pick(CHOICES)
            question, right, options = make(chooser, split)
            options.insert(gold, right)
            letter = LETTERS[gold]
            yield _turn("choice", choice_prompt(question, options), letter, letter,
                        letters=list(LETTERS), topic=make.__name__.removeprefix("_choice_"))


# %%
print(next(_choice_talks(Chooser("demo"), "train"))["messages"][0]["content"])


# %%
#| export
@cache
def held_numbers() -> tuple[int, ...]:
    "A fifth of the numbers 2 to 99: they occur in no word problem of any training text."
    return tuple(sorted(Random(f"held numbers {WORLD_SEED}").sample(range(2, 100), 20)))

@cache
def _problems(section: str) -> tuple[tuple, ...]:
    "The problems of a section: (sum, story), both compiled."
    here, out = None, []
    for line in _lines("problems"):
        if line.startswith("["): here = line.strip("[]")
        elif line and here == section: out.append(tuple(compile_line(part) for part in line.split(" | ")))
    return tuple(out)

def _value(expression: str) -> tuple[int, bool]:
    "The value of a sum like 3*12+7-5, and whether it goes below zero on the way."
    total, low = 0, 0
    for sign, product in re.findall(r"([+-]?)([\d*]+)", expression):
        term = 1
        for factor in product.split("*"): term *= int(factor)
        total += -term if sign == "-" else term
        low = min(low, total)
    return total, low < 0

def _numbers_for(chooser: Chooser, split: str, expression: tuple) -> tuple[dict[str, str], str, int]:
    "Numbers for a problem: a result from 0 to 9,801, and held-out numbers only in tests."
    held = held_numbers()
    pool = held if split == "test" else [n for n in range(2, 100) if n not in held]
    while True:
        known = {k: str(chooser.pick(pool)) for k in "abcd"}
        text = write(expression, chooser, known)
        value, below = _value(text)
        if not below and value <= 9801 and (split == "test" or value not in held): return known, text, value

@cache
def _countable() -> tuple[str, ...]:
    return tuple(w for k in ("things.pl", "edibles.pl", "animals.pl") for w in word_list(k) if " " not in w)

def _problem_talks(section: str) -> Callable[[Chooser, str], Iterator[dict]]:
    "Word problems of one difficulty, worked out with the calculator."
    def talks(chooser: Chooser, split: str) -> Iterator[dict]:
        while True:
            new = split == "test" and chooser.pick((True, False))
            expression, line = chooser.pick(_problems(f"{section} new" if new else section))
            known, text, value = _numbers_for(chooser, split, expression)
            (name, she), (friend, _) = chooser.take(_fresh_group(split), 2)
            known |= {"name": name, "he": she, "friend": friend, "nouns": chooser.pick(_countable())}
            reply = [{"type": "python", "text": text}, {"type": "python_output", "text": str(value)},
                     {"type": "text", "text": f" The answer is {value}."}]
            yield _turn(section, write(line, chooser, known), reply, str(value), expression=text,
                        wording="new" if new else "seen")
    return talks


# %%
row = next(_problem_talks("word2")(Chooser("demo"), "train"))
row["messages"][0]["content"], row["messages"][1]["content"]

# %%
#| export
STORY_ASKS = ("Tell me a story about {0} and {1}.", "Please write a story about {0} and {1}.",
              "I would like a story about {0} and {1}.", "Can you tell a story about {0} and {1}?")
STORY_ASKS_NEW = ("Let me hear a story about {0} and {1}.",)

def _story_talks(chooser: Chooser, split: str) -> Iterator[dict]:
    "Wishes for a story; in tests about a thing in a colour that it never had before."
    while True:
        hero, kind = chooser.pick(_group("heroes")), chooser.pick(_object_list())
        colour = chooser.pick(held_colours(kind) if split == "test" else train_colours(kind))
        asks = STORY_ASKS + STORY_ASKS_NEW if split == "test" else STORY_ASKS
        question = chooser.pick(asks).format(hero[0], with_article(f"{colour} {kind}"))
        yield _turn("story", question, story(chooser, hero, (kind, colour)), "",
                    hero=hero[0], object=kind, colour=colour)

@cache
def _smalltalk() -> tuple[tuple[tuple[str, ...], ...], ...]:
    "Groups of small talk: (what people say, what only test people say, good replies)."
    groups, new = [], True
    for line in _lines("smalltalk"):
        if line and new: groups.append({"?": [], "!": [], "=": []})
        if line: groups[-1][line[0]].append(line[2:])
        new = not line
    return tuple(tuple(tuple(g[mark]) for mark in "?!=") for g in groups)

def _small_talks(chooser: Chooser, split: str) -> Iterator[dict]:
    "Greetings, thanks and the like."
    while True:
        asks, kept, replies = chooser.pick(_smalltalk())
        reply = chooser.pick(replies)
        yield _turn("smalltalk", chooser.pick(kept if split == "test" else asks), reply, reply)

TALKS: dict[str, Callable[[Chooser, str], Iterator[dict]]] = {
    "profile": _profile_talks, "reading": _reading_talks, "choice": _choice_talks, "story": _story_talks,
    "smalltalk": _small_talks, **{k: _problem_talks(k) for k in ("word1", "word2", "word3")}}

def conversations(
    kind: str,               # a key of TALKS
    n: int,                  # how many
    seed: int,
    *,
    split: str = "train",    # or "test", which asks only for what training held out
) -> list[dict]:             # {"messages": [...], "kind": ..., "answer": ..., more by kind}
    "Conversations of one kind, the same for the same seed. Raises `UserError` for an unknown kind or split."
    if kind not in TALKS: raise UserError(f"no conversations of kind {kind!r}; kinds: {', '.join(TALKS)}")
    if split not in ("train", "test"): raise UserError(f"split {split!r} is neither 'train' nor 'test'")
    return list(islice(TALKS[kind](Chooser(f"conversations {kind} {split} {seed}"), split), n))

def general_prompts(
    n: int,
    seed: int = 0,
    split: str = "train",    # or "test": other wordings
) -> list[str]:
    "Ordinary requests; none of them asks who answers."
    chooser = Chooser(f"prompts {split} {seed}")
    return [tell(grammar("prompts")[split], chooser, {}) for _ in range(n)]


# %%
for kind in ("story", "smalltalk"): print([m["content"] for m in conversations(kind, 1, 0)[0]["messages"]])
print(general_prompts(3))


# %%
#| export
def story_openings(
    n: int,
    seed: int = 0,
) -> list[dict]:    # {"opening", "hero", "object", "colour"}
    "First sentences for the model to go on from, with colours that the thing never had in training."
    chooser, out = Chooser(f"openings {seed}"), []
    for _ in range(n):
        kind = chooser.pick(_object_list())
        known = cast(chooser, thing=(kind, chooser.pick(held_colours(kind))))
        opening = tell(grammar("stories")["opening"], chooser, known)
        out.append({"opening": opening, **{k: known[k] for k in ("hero", "object", "colour")}})
    return out

@cache
def _singular() -> dict[str, str]:
    "Every object and its plural, mapped to the object."
    return {form: word for word in objects() for form in (word, plural(word))}

@cache
def _name_set(group: str) -> frozenset[str]: return frozenset(name for name, _ in people(group))

def judge_story(
    text: str,       # the whole story, opening included
    hero: str,
    object: str,
    colour: str,
) -> dict:           # object, colour, name, friend: bool; words: int; ok: bool
    """Does a story keep its thing, its colour and its people?

    The object and the hero are named at least twice; no other object, colour or name occurs; every colour word
    stands before the object; there is exactly one friend. `ok` also asks for 40 words."""
    words = re.findall(r"[A-Za-z]+", text)
    colours = set(lexicon("colours"))
    seen = [_singular()[w] for w in words if w in _singular()]
    painted = [(w, after) for w, after in zip(words, [*words[1:], ""]) if w in colours]
    friends = set(words) & _name_set("friends")
    names = {w for w in re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)} | set(words) & _name_set("heroes")
    calendar = {*lexicon("weekdays"), *lexicon("months")}
    got = {"object": set(seen) == {object} and len(seen) > 1 and all(after == object for _, after in painted),
           "colour": {c for c, _ in painted} == {colour},
           "name": words.count(hero) > 1 and names - friends - calendar == {hero},
           "friend": len(friends) == 1 and hero not in friends, "words": len(words)}
    return got | {"ok": all(got[k] for k in ("object", "colour", "name", "friend")) and len(words) >= 40}

def corrupt_story(
    text: str,
    seed: int = 0,
) -> str:
    "The story with one later mention of its hero, object or colour swapped for another: food for the judge."
    chooser = Chooser(f"corrupt {seed}")
    sets = {"hero": _name_set("heroes"), "object": frozenset(objects()), "colour": frozenset(lexicon("colours"))}
    spots = [(m, k) for m in re.finditer(r"[A-Za-z]+", text) for k, some in sets.items() if m[0] in some]
    first = {k: m.start() for m, k in reversed(spots)}
    match, kind = chooser.pick([(m, k) for m, k in spots if m.start() != first[k]])
    other = chooser.pick(sorted(sets[kind] - {match[0]}))
    return text[:match.start()] + other + text[match.end():]


# %%
chooser = Chooser("judge")
tale = story(chooser, ("Mira", "she"), ("kite", "red"))
print(tale, judge_story(tale, "Mira", "kite", "red"))
print(judge_story(corrupt_story(tale, 1), "Mira", "kite", "red"))


# %%
#| export
def _mc(query: str, right: str, wrong: list[str], gold: int) -> dict:
    return {"query": query, "choices": [*wrong[:gold], right, *wrong[gold:]], "gold": gold}

def _core_profile(attribute: str) -> Callable[[Chooser, int], dict]:
    "`Edda keeps a` and four pets."
    def row(chooser: Chooser, i: int) -> dict:
        name = chooser.pick(_names())
        value = profiles()[name][attribute]
        start = plain_fact(name, attribute, "\n").split("\n")[0].strip()
        return _mc(start, value + ".", [v + "." for v in _others(chooser, lexicon(_LISTS[attribute]), value)], i % 4)
    return row

def _core_fact(kind: str) -> Callable[[Chooser, int], dict]:
    "`The opposite of hot is` and four answers of the same kind of fact."
    def row(chooser: Chooser, i: int) -> dict:
        subject, value, sentence = chooser.pick(facts()[kind])
        wrong = _others(chooser, sorted({v for s, v, _ in facts()[kind] if s != subject} - {subject}), value)
        return _mc(sentence.removesuffix(f" {value}."), value + ".", [w + "." for w in wrong], i % 4)
    return row

def _core_kind(chooser: Chooser, i: int) -> dict:
    "`A plum is a` and four kinds."
    kind = chooser.pick([k for k in KINDS_OF if k != "animal"])
    subject, _, sentence = chooser.pick(facts()[kind])
    wrong = _others(chooser, [k for k in KINDS_OF if k != "animal"], kind)
    return _mc(sentence.removesuffix(f" {kind}."), kind + ".", [w + "." for w in wrong], i % 4)

def _fresh_story(chooser: Chooser) -> tuple[str, str, str, str]:
    "A story with a thing in a new colour: text, hero, object, colour."
    hero, kind = chooser.pick(_group("heroes")), chooser.pick(_object_list())
    colour = chooser.pick(held_colours(kind))
    return story(chooser, hero, (kind, colour)), hero[0], kind, colour

def _cut(text: str, word: str) -> tuple[str, str]:
    "The text before the last mention of a word, and from there to the end of its sentence."
    start = [m.start() for m in re.finditer(rf"\b{word}\b", text)][-1]
    return text[:start].rstrip(), re.match(r"[^.!?]*", text[start:])[0]

def _core_schema(chooser: Chooser, i: int, which: int) -> dict:
    "Two stories that differ in one word, and one way to go on."
    tale = _fresh_story(chooser)
    word = tale[which]
    context, rest = _cut(tale[0], word)
    she = dict(people("heroes"))
    others = ([n for n in she if she[n] == she[tale[1]]], list(objects()))[which - 1]
    false = re.sub(rf"\b{word}\b", _others(chooser, others, word, 1)[0], context)
    return {"context_options": [context, false][::-1 if i % 2 else 1], "continuation": rest, "gold": i % 2}

def _core_word(chooser: Chooser, i: int, which: int) -> dict:
    "A story up to the last mention of its hero, object or colour; the word is to be said."
    tale = _fresh_story(chooser)
    return {"context": _cut(tale[0], tale[which])[0], "continuation": tale[which]}

def _core_answer(chooser: Chooser, i: int) -> dict:
    "A fact of the world without its last word."
    subject, value, sentence = chooser.pick(facts()[chooser.pick(("opposite", "young", "sound", "next"))])
    start, _, last = sentence.removesuffix(".").rpartition(" ")
    return {"context": start, "continuation": last}

CORE: dict[str, tuple[str, Callable[[Chooser, int], dict]]] = {
    "world_pets": ("multiple_choice", _core_profile("pet")),
    "world_jobs": ("multiple_choice", _core_profile("work")),
    "world_opposites": ("multiple_choice", _core_fact("opposite")),
    "world_kinds": ("multiple_choice", _core_kind),
    "story_who": ("schema", lambda chooser, i: _core_schema(chooser, i, 1)),
    "story_what": ("schema", lambda chooser, i: _core_schema(chooser, i, 2)),
    "story_hero": ("language_modeling", lambda chooser, i: _core_word(chooser, i, 1)),
    "story_thing": ("language_modeling", lambda chooser, i: _core_word(chooser, i, 2)),
    "world_facts": ("language_modeling", _core_answer)}
CHANCE = {"multiple_choice": 25.0, "schema": 50.0, "language_modeling": 0.0}

def core_tasks(
    n: int = 200,     # rows of each task
    seed: int = 0,
) -> list[dict]:      # {"label", "type", "rows", "shots", "delimiter", "baseline" in percent}
    "The world's own CORE: nine tasks of the three types, in the row format of the evaluation bundle."
    out = []
    for label, (kind, make) in CORE.items():
        chooser = Chooser(f"core {label} {seed}")
        out.append({"label": label, "type": kind, "rows": [make(chooser, i) for i in range(n)],
                    "shots": 0, "delimiter": " ", "baseline": CHANCE[kind]})
    return out


# %%
for task in core_tasks(2): print(task["label"], task["rows"][1])
