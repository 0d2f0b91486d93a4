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
    if re.search(r"(ed|ing|some|en|le|wn|st-?\w*ed)$|-| ", adjective): return False
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
    if adjective.endswith("ly"): return f"in a {adjective} way"
    if adjective.endswith("ic"): return adjective + "ally"
    if adjective.endswith("ll"): return adjective + "y"
    if re.search(r"[^aeiou]le$", adjective): return adjective[:-1] + "y"
    if re.search(r"[^aeiou]y$", adjective) and len(adjective) > 4: return adjective[:-1] + "ily"
    return adjective + "ly"

def with_article(
    phrase: str,
) -> str:
    "The phrase with `a` or `an` before it."
    vowel = re.match(r"[aeio]|un[^iu]|un(im|in)|u[^nstk]|hon|heir|hour", phrase, re.IGNORECASE)
    return f"{'an' if vowel and not re.match('one|eu', phrase) else 'a'} {phrase}"


# %%
assert comparative("big") == "bigger" and superlative("happy") == "happiest" and adverb("gentle") == "gently"
assert [with_article(w) for w in ("owl", "unicycle", "umbrella", "hour")] == ["an owl", "a unicycle", "an umbrella", "an hour"]

# %%
#| export
WORLD_SEED = 2026
PRONOUNS = {"she": ("she", "her", "her", "girl"), "he": ("he", "him", "his", "boy")}
FORMS = {"pl": plural, "3": third, "past": past, "ing": ing,
         "er": comparative, "est": superlative, "ly": adverb}
POOLS = {"edibles": ("fruits", "vegetables", "foods")}

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
    chooser: Chooser,
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
    "The plots that suit a class of objects, each with scene before and ending after it."
    story = grammar("stories")
    heads = [h for h in story if h.startswith("plot") and {kind, "all"} & set(h.split(": ")[1].split())]
    return tuple((*story["scene"], *story[h], *story["ending"]) for h in heads)

def story(
    chooser: Chooser,
    hero: tuple[str, str] | None = None,
    thing: tuple[str, str] | None = None,
) -> str:
    "A story of eight or nine sentences about one hero, one friend and one thing with its colour."
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
    return Wordings(plain, (plain, plain, *rows["+"]), tuple(rows["?"]), tuple(rows["!"]))

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
    "The plain sentence for an attribute: `Petra keeps a goat.`"
    return write(wordings(attribute).plain, Chooser(""), {"name": name, "value": value})


# %%
print(held_people()[:5], profiles()["Petra"], plain_fact("Petra", "pet", profiles()["Petra"]["pet"]))


# %%
#| export
def profile(
    chooser: Chooser,
) -> str:
    "A paragraph about one character with all five attributes in any order."
    name = chooser.pick(_names())
    facts = profiles()[name]
    he, him, his, child = PRONOUNS[facts["she"]]
    known = {"name": name, "he": he, "him": him, "his": his, "person": {"girl": "woman", "boy": "man"}[child]}
    out = [tell(grammar("profiles")["begin"], chooser, known)]
    for attribute in chooser.take(ATTRIBUTES, len(ATTRIBUTES)):
        who = chooser.pick((name, _upper(he)))
        line = chooser.pick(_distinct(attribute))
        out.append(write(line, chooser, {"name": who, "value": facts[attribute]}))
    return " ".join([*out, tell(grammar("profiles")["end"], chooser, known)])

@cache
def _names() -> tuple[str, ...]: return tuple(profiles())

@cache
def _distinct(attribute: str) -> tuple: return wordings(attribute).said[1:]

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
        rows[:] = [(r[0], r[1], re.sub(r"^(A|a) (\w+)", lambda m: _upper(with_article(m[2])),
                                       frame.format(*r[:2]))) for r in rows]
    for line in _lines("kinds"):
        if not line: continue
        kind, names = line[1:].split("] ")
        words = [w for n in names.split() for w in word_list(n)]
        out[kind] = [(w, kind, f"{_upper(with_article(w))} is {with_article(kind)}.") for w in words]
    return {name: tuple(rows) for name, rows in out.items()}

KINDS_OF = ("fruit", "vegetable", "animal", "plant", "vehicle", "garment", "game")

def fact_list(
    chooser: Chooser,
) -> str:
    "Six facts: opposites, young animals, sounds, colours, materials, places, order and kinds."
    names = tuple(facts())
    return " ".join(chooser.pick(facts()[chooser.pick(names)])[2] for _ in range(6))

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
    vehicles clothes bodies materials games events abstracts things traits looks scenes feelings tastes
    weathers acts deeds cares says""".split())
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
WEIGHTS = {"story": 75.0, "profile": 7.5, "profile facts": 13.5, "facts": 6.0, "sums": 4.0, "ages": 2.0,
           "spelled": 4.5, "dialogue": 1.5, "recipe": 1.0, "directions": 1.0, "weather": 1.0, "howto": 1.5,
           "diary": 1.5, "letter": 1.5, "lists": 1.5}

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
