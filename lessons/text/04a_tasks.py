# %%
#| default_exp tasks

# %% [markdown]
# # 04a · Tasks: conversations as data
#
# **Promise.** You will build the one small interface behind which every conversation of this course stands: the little world's
# questions, and MMLU, ARC, GSM8K, HumanEval and SmolTalk.
#
# After this lesson you can
#
# * write down a conversation, with tool calls, as plain data;
# * grade an answer strictly, and name three ways in which a lenient grader lies;
# * mix tasks in fixed proportions, shuffled the same way each time;
# * load the public data sets, or your own folder, behind the same interface.
#
# **Before:** 01 (rendering a conversation), 03a (scores). **Time:** 15 minutes to read, 15 to do, seconds to compute.

# %%
#| export
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random

from nanochat import microworld
from nanochat.core import read_jsonl
from nanochat.workshop import UserError

# %% [markdown]
# ## A grader that is easily pleased
#
# The right answer is 19. Which of these completions deserve the mark?

# %%
completions = [
    "The answer is 19.",
    "The answer is 119.",
    "I think 19 or 20. The answer is 20.",
    "19 is a nice number. The answer is 7.",
]
for text in completions: print("19" in text, "|", text)
assert sum("19" in text for text in completions) == 4

# %% [markdown]
# A grader that searches for a substring marks all four as right. A model trained against such a grader by reinforcement learning (lesson 07)
# will find this out long before you do. So graders come first in this lesson. Ours are strict and simple.
#
# ## A conversation is plain data
#
# A conversation is a dict with `messages`. User content is a string. Assistant content is a string, or a list of parts when a tool is used:

# %%
example = {
    "messages": [
        {
            "role": "user",
            "content": "Mia has 12 pears. She gets 7 more. How many pears has she now?",
        },
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "12+7"},
                {"type": "python_output", "text": "19"},
                {"type": "text", "text": " The answer is 19."},
            ],
        },
    ],
    "answer": "19",
}
assert [part["type"] for part in example["messages"][1]["content"]] == [
    "python",
    "python_output",
    "text",
]

# %% [markdown]
# The loss covers `text` and `python`, not `python_output`: the calculator writes that part when the model is used (lesson 01 renders it so).
#
# ## Three graders
#
# The first reads a number. A completion arrives as decoded text, tool calls included. What the *tool* said is no merit of the
# model, and what the model *asked* is no answer, so only the text after the last tool output counts, without calls, finished or cut off.
# The last number in it is the answer.

# %%
#| export
OUTPUT_END = "<|output_end|>"


def final_number(
    text: str,       # a decoded completion, tool calls included
) -> str | None:     # "19", "-3", "2.5"; None when there is no number
    "The last number after the last tool output, without thousands separators or a final dot."
    said = text.rsplit(OUTPUT_END, 1)[-1]
    said = re.sub(r"<\|(python|output)_start\|>.*?(<\|\1_end\|>|$)", "", said, flags=re.DOTALL)
    found = re.findall(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?", said)    # 5-3: a minus, no sign
    return found[-1].replace(",", "") if found else None


# %%
for text in completions: print(f"{final_number(text):>4}", "|", text)
call = "<|python_start|>12+7<|python_end|><|output_start|>19<|output_end|>"
assert final_number(call + " The answer is 19.") == "19"
assert final_number(call) is None                          # the tool knew; the model did not say it
assert all(final_number(cut) is None for cut in (call[:20], call[:-14], "<|python_start|>19", "<|output_start|>19"))
assert final_number("It costs 1,234.50.") == "1234.50" and final_number("None.") is None
assert final_number("3-2 is 1") == "1" and final_number("It is -4.") == "-4"


# %% [markdown]
# The second grader looks for a word. It must stand alone ("red" is not in "hundred"), and if the conversation lists wrong values, none of
# them may be there: an answer that names every colour is not an answer.

# %%
#| export
def has_word(text: str, word: str) -> bool:
    "Does the word or phrase stand in the text by itself, in any case of letters?"
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def names_answer(conversation: dict, completion: str) -> bool:
    "The answer is named as a whole word, and no value listed under `wrong` is."
    others = [
        w for w in conversation.get("wrong", ()) if w.lower() != conversation["answer"].lower()
    ]
    return has_word(completion, conversation["answer"]) and not any(
        has_word(completion, w) for w in others
    )


def same_number(conversation: dict, completion: str) -> bool:
    "The final number is the answer."
    found = final_number(completion)
    return found is not None and found == conversation["answer"]


def same_letter(conversation: dict, completion: str) -> bool:
    "The completion is the letter, or ends in it after the last `=`."
    return completion.rpartition("=")[2].strip() == conversation["answer"]


# %%
kite = {"answer": "red", "wrong": ["blue", "green"]}
assert names_answer(kite, "Her kite is red.") and names_answer(kite, "Red.")
assert not names_answer(kite, "There are a hundred kites.")
assert not names_answer(kite, "It is red, blue or green.")
assert same_number(example, "So 12+7 = 19.") and not same_number(example, "The answer is 119.")
assert same_letter({"answer": "B"}, " B\n") and not same_letter({"answer": "B"}, "A or B")
assert same_letter({"answer": "B"}, " a duck=B") and not same_letter({"answer": "B"}, " a duck=C")


# %% [markdown]
# ## The interface
#
# A task is a list of conversations that can judge. Four members, and nothing in the rest of the course asks for more:
# `name`, `kind` (`"generative"` or `"letter"`: how the evaluation of the next lesson should ask), indexing, and `evaluate`.

# %%
#| export
class Task:
    """Conversations and a grader.

    `kind` is "generative" (the model writes an answer) or "letter" (it picks one of the
    conversation's `letters`); `baseline` is the score of a guesser, in 0..1.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[dict],                     # conversations
        grade: Callable[[dict, str], bool] = names_answer,
        kind: str = "generative",
        baseline: float = 0.0,
    ):
        self.name, self.rows = name, rows
        self.grade, self.kind, self.baseline = grade, kind, baseline

    def __len__(self) -> int: return len(self.rows)

    def __getitem__(self, i: int) -> dict: return self.rows[i]

    def evaluate(self, conversation: dict, completion: str) -> bool:
        "Is this completion right for this conversation?"
        return self.grade(conversation, completion)


# %%
sums = Task("sums", [example], same_number)
assert len(sums) == 1 and sums.evaluate(sums[0], "The answer is 19.") and sums.kind == "generative"


# %% [markdown]
# ## The little world's tasks
#
# `microworld` yields conversations by kind. The grader follows from the kind. Stories, small talk and games with letters have no one right answer: they are for training,
# and asking for a grade is a mistake that should be loud.

# %%
#| export
def not_graded(conversation: dict, completion: str) -> bool:
    "Stands where no answer is right or wrong; raises TypeError."
    raise TypeError(
        f"{conversation.get('kind', 'such')} conversations have no right answer to grade"
    )


GRADERS = {
    "profile": names_answer,
    "reading": names_answer,
    "choice": same_letter,
    "word1": same_number,
    "word2": same_number,
    "word3": same_number,
    "labels": not_graded,
    "story": not_graded,
    "smalltalk": not_graded,
    "beyond": not_graded,
}


class WorldTask(Task):
    "Conversations of one kind from the microworld; lesson 00b says what the test split holds out."

    def __init__(self, kind: str, n: int, seed: int = 0, split: str = "train"):
        if kind not in GRADERS:
            raise UserError(f"no kind of conversation {kind!r}; choose from {', '.join(GRADERS)}")
        rows = microworld.conversations(kind, n, seed, split=split)
        choice = kind == "choice"
        super().__init__(
            kind, rows, GRADERS[kind], "letter" if choice else "generative", 0.25 if choice else 0.0
        )


# %%
for kind in ("profile", "reading", "word1", "choice"):
    task = WorldTask(kind, 3, seed=1, split="test")
    print(
        f"--- {kind} ({task.kind}): answer {task[0]['answer']!r}\n"
        f"{task[0]['messages'][0]['content']}"
    )


# %% [markdown]
# ## Mixtures
#
# Training takes many tasks at once, some of them more than once. A mixture is a list of (task, times), flattened into index pairs
# and shuffled once with a fixed seed. No conversation is copied.

# %%
#| export
class Mixture:
    "Several tasks as one sequence of conversations, each task `times` over, shuffled by a seed."

    def __init__(self, parts: Sequence[tuple[Task, int]], seed: int = 0):
        if any(times < 0 for _, times in parts):
            raise UserError("a mixture needs times of 0 or more for each task")
        self.name, self.tasks = "mixture", [task for task, _ in parts]
        self.order = [
            (t, i)
            for t, (task, times) in enumerate(parts)
            for _ in range(times)
            for i in range(len(task))
        ]
        Random(seed).shuffle(self.order)

    def __len__(self) -> int: return len(self.order)

    def __getitem__(self, i: int) -> dict:
        task, row = self.order[i]
        return self.tasks[task][row] | {"task": task}

    def evaluate(self, conversation: dict, completion: str) -> bool:
        "Graded by the task that the conversation came from."
        return self.tasks[conversation["task"]].evaluate(conversation, completion)

    def counts(self) -> dict[str, int]:
        "Conversations by task name."
        found = {task.name: 0 for task in self.tasks}
        for t, _ in self.order: found[self.tasks[t].name] += 1
        return found


# %%
mix = Mixture([(WorldTask("word1", 20), 1), (WorldTask("profile", 10), 3)], seed=0)
print(mix.counts(), [mix[i]["kind"] for i in range(8)])
assert len(mix) == 50 and mix.counts() == {"word1": 20, "profile": 30}
again = Mixture([(WorldTask("word1", 20), 1), (WorldTask("profile", 10), 3)], seed=0)
assert all(mix[i] == again[i] for i in range(50))

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

colours = [0 if mix[i]["kind"] == "word1" else 1 for i in range(50)]
fig, ax = plt.subplots(figsize=(5, 0.9), layout="constrained")
ax.imshow([colours], aspect="auto", cmap="coolwarm")
ax.set(yticks=[], xlabel="position in the mixture")
figure(
    fig,
    caption="Twenty word problems (blue) and ten profiles three times over (red), shuffled.",
    alt="A strip of fifty cells in which blue and red cells alternate irregularly, two in five "
    "of them blue.",
)


# %% [markdown]
# ## Multiple choice by letter
#
# `microworld.choice_prompt` already lays a question out, and there is only one way to do it. It puts the letter *after* the option and no space before it. Both are deliberate. A small model binds the letter better to text it
# has just read, and without the space the letter in the list is the same token as the letter of the answer. The public data sets want the bare letter; the
# world's questions want the option before it, ` a cow=A`, and `same_letter` reads both.

# %%
#| export
def choice_conversation(
    question: str,
    options: Sequence[str],
    letters: Sequence[str],
    answer: str,                # one of the letters
) -> dict:                      # messages, letters, answer
    "A multiple-choice question as a conversation whose answer is the bare letter."
    messages = [{"role": "user", "content": microworld.choice_prompt(question, options, letters)},
                {"role": "assistant", "content": answer}]
    return {"messages": messages, "letters": list(letters), "answer": answer}


# %%
asked = choice_conversation(
    "Which animal says moo?", ["a cow", "a duck", "a cat", "an owl"], "ABCD", "A"
)
print(asked["messages"][0]["content"])
assert (
    asked["letters"] == ["A", "B", "C", "D"] and "- a duck=B\n" in asked["messages"][0]["content"]
)


# %% [markdown]
# ## The public data sets
#
# Five data sets, five small functions from a row of the hub to a conversation. They are pure, so a test needs no download.

# %%
#| export
def mmlu_row(row: dict) -> dict:
    "MMLU (Hendrycks et al. 2021); rows of auxiliary_train may be nested one deeper."
    row = row.get("train", row)
    return choice_conversation(row["question"], row["choices"], "ABCD", "ABCD"[row["answer"]])


def arc_row(row: dict) -> dict:
    "ARC (Clark et al. 2018): keeps the row's labels; some rows have 3 or 5, some use digits."
    return choice_conversation(
        row["question"], row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    )


# %%
moon = {
    "question": "What is the Moon?",
    "choices": ["a star", "a satellite", "a comet", "a planet"],
    "answer": 1,
}
assert mmlu_row(moon) == mmlu_row({"train": moon}) and mmlu_row(moon)["answer"] == "B"
odd = {
    "question": "Odd?",
    "choices": {"text": ["2", "3", "4"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
assert arc_row(odd)["letters"] == ["1", "2", "3"]


# %% [markdown]
# GSM8K's answers carry calculator marks such as `<<48/2=24>>`. Each becomes a call and its output; the text between them stays text. The final answer
# stands behind four hash signs.
#
# People wrote these marks, and they write one number in many ways: 30, 30.00, .5, 1,000. Our calculator (lesson 09) writes one way. The model should
# meet in training what the tool will show it later, so the output is brought to that form.

# %%
#| export
def plain_number(text: str) -> str:
    "A number as the calculator writes it, up to four decimals: 30.00 -> 30, 1,000 -> 1000; other text is left alone."
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if not re.fullmatch(r"-?(\d+|\d*\.\d+|\d+\.)", plain): return text
    ten_thousandths = round(Fraction(plain) * 10_000)
    whole, rest = divmod(abs(ten_thousandths), 10_000)
    return "-" * (ten_thousandths < 0) + f"{whole}.{rest:04}".rstrip("0").rstrip(".")


def gsm8k_parts(
    answer: str,      # text with <<expression=result>> marks
) -> list[dict]:      # text, python and python_output parts
    "Split a GSM8K answer at its calculator marks, each at its last '='."
    parts = []
    for piece in re.split(r"(<<[^>]*>>)", answer):
        if piece.startswith("<<"):
            inner = piece[2:-2]
            expression, _, result = inner.rpartition("=") if "=" in inner else (inner, "", "")
            parts.append({"type": "python", "text": expression})
            parts.append({"type": "python_output", "text": plain_number(result)})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


# %%
for part in gsm8k_parts("A third of 90 is <<90/3=30.00>>30."): print(part)
forms = {"30.00": "30", ".5": "0.5", "-0.50": "-0.5", "24": "24", "3/4": "3/4", "1,000": "1000", "0.66667": "0.6667", "-0": "0", "05": "5", "1,00": "1,00"}
assert {text: plain_number(text) for text in forms} == forms
assert gsm8k_parts("<<5>>")[1]["text"] == ""

# %% [markdown]
# The answer is graded as the benchmark's authors do it: the number behind the hash signs, as a string, commas dropped.

# %%
#| export


def marked_answer(text: str) -> str | None:
    "The number behind four hash signs and one space, commas dropped; None when there is none."
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return found.group(1).replace(",", "") if found else None


def gsm8k_row(row: dict) -> dict:
    "GSM8K (Cobbe et al. 2021): question, and an answer with calculator steps."
    answer = marked_answer(row["answer"])
    if answer is None: raise UserError(f"a GSM8K answer must hold '#### NUMBER': {row['answer']!r}")
    messages = [{"role": "user", "content": row["question"]},
                {"role": "assistant", "content": gsm8k_parts(row["answer"])}]
    return {"messages": messages, "answer": answer}


def same_marked(conversation: dict, completion: str) -> bool:
    "The number behind the four hash signs is the answer."
    found = marked_answer(completion)
    return found is not None and found == conversation["answer"]


# %%
clips = gsm8k_row(
    {"question": "How many?", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\n#### 1,024"}
)
for part in clips["messages"][1]["content"]: print(part)
assert (
    clips["answer"] == "1024"
    and same_marked(clips, "so it is\n#### 1,024")
    and not same_marked(clips, "1024")
)
assert gsm8k_parts("<<5>>")[1]["text"] == ""


# %% [markdown]
# HumanEval asks for code, and grading it means *running* what a model wrote. That is the business of lesson 09, so the runner comes in as an
# argument: `run(program) -> bool`. Here we only assemble the program: the imports of the prompt, the code of the first fenced block, the tests.

# %%
#| export
def fenced_code(completion: str) -> str:
    "The first fenced block of a completion, or all of it when there is none."
    found = re.search(r"```(?:python)?[ \t]*\n(.*?)\n```", completion, re.DOTALL)
    return (found.group(1) if found else completion).strip()


def leading_imports(prompt: str) -> str:
    "Import lines at the top of a prompt, up to the first line that is no import or comment."
    kept = []
    for line in prompt.splitlines():
        text = line.strip()
        if text.startswith(("import ", "from ")): kept.append(line)
        elif text and not text.startswith("#"): break
    return "\n".join(kept)


def humaneval_row(row: dict) -> dict:
    "HumanEval (Chen et al. 2021): a code stub to complete, with tests."
    messages = [
        {"role": "user", "content": row["prompt"]},
        {
            "role": "assistant",
            "content": f"```python\n{row['prompt']}{row['canonical_solution']}\n```",
        },
    ]
    return {"messages": messages, "answer": row["canonical_solution"],
            **{key: row[key] for key in ("prompt", "test", "entry_point")}}


def humaneval_program(conversation: dict, completion: str) -> str:
    "The program that passes if the completion is right: imports, its code, tests, the check."
    return "\n\n".join(
        [
            leading_imports(conversation["prompt"]),
            fenced_code(completion),
            conversation["test"],
            f"check({conversation['entry_point']})",
        ]
    )


# %%
double = humaneval_row(
    {
        "prompt": "import math\n\ndef double(x):\n",
        "canonical_solution": "    return 2 * x",
        "test": "def check(f):\n    assert f(4) == 8",
        "entry_point": "double",
    }
)
program = humaneval_program(
    double, "Here:\n```python\ndef double(x):\n    return x + x\n```\nDone."
)
print(program)
exec(program, {})            # code of our own, so exec is fine here; code of a model never is
assert program.startswith("import math")

# %% [markdown]
# Loading is one table and two readers. `datasets` is imported only when the hub is asked. A folder on disk has the same names, as JSON lines,
# plain or gzipped; that is also the way to bring rows of your own.

# %%
#| export
TRAIN_SPLITS = {"mmlu": "auxiliary_train"}     # all others call it "train"
HUB = {  # name: (path on the hub, configuration, row function, grader, kind, score of a guesser)
    "mmlu": ("cais/mmlu", "all", mmlu_row, same_letter, "letter", 0.25),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", arc_row, same_letter, "letter", 0.25),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", arc_row, same_letter, "letter", 0.25),
    "gsm8k": ("openai/gsm8k", "main", gsm8k_row, same_marked, "generative", 0.0),
    "humaneval": ("openai/openai_humaneval", None, humaneval_row, None, "generative", 0.0),
    "smoltalk": ("HuggingFaceTB/smol-smoltalk", None, dict, not_graded, "generative", 0.0),
}


def hub_rows(path: str, config: str | None, split: str) -> list[dict]:
    "Rows of a data set of the Hugging Face hub, shuffled with seed 42 (downloads on first use)."
    from datasets import load_dataset
    try: return load_dataset(path, config, split=split).shuffle(seed=42)
    except Exception as error:       # the library's kinds of failure have no base class of their own
        raise UserError(f"data set {path} ({split}) cannot be loaded: {error}; "
                        "check the network, or download it while there is one") from error


def code_grader(run: Callable[[str], bool] | None) -> Callable[[dict, str], bool]:
    "A HumanEval grader around a runner of untrusted programs; UserError without one."
    if run is None:
        raise UserError("humaneval needs run=..., a function that runs a program in a sandbox")
    return lambda conversation, completion: run(humaneval_program(conversation, completion))


# %%
passing = Task("humaneval", [double], code_grader(lambda program: "x + x" in program))
assert passing.evaluate(double, "```\ndef double(x): return x + x\n```") and not passing.evaluate(
    double, "no idea"
)


# %%
#| export
class Rows(Sequence):
    "A view of data set rows as conversations, converted one at a time when asked for."

    def __init__(self, rows: Sequence[dict], convert: Callable[[dict], dict]):
        self.rows, self.convert = rows, convert

    def __len__(self) -> int: return len(self.rows)

    def __getitem__(self, i: int) -> dict: return self.convert(self.rows[i])


def hub_task(
    name: str,                                 # a key of HUB
    split: str,                                # as the hub names it, such as "train"
    file: str | Path | None = None,            # rows as .jsonl or .jsonl.gz instead of the hub
    run: Callable[[str], bool] | None = None,  # runs a program safely; HumanEval only
) -> Task:
    "A public data set as a Task, from the hub or a local file; UserError for an unknown name."
    if name not in HUB: raise UserError(f"no data set {name!r}; choose from {', '.join(HUB)}")
    path, config, convert, grade, kind, baseline = HUB[name]
    if name == "humaneval": grade = code_grader(run)
    if file is None: rows = hub_rows(path, config, split)
    else: rows = read_jsonl(Path(str(file).removesuffix(".gz")))
    return Task(name, Rows(rows, convert), grade, kind, baseline)


# %% [markdown]
# One row in a file of your own is a task:

# %%
import json
import tempfile

mine = Path(tempfile.mkdtemp()) / "mine.jsonl"
mine.write_text(json.dumps(moon) + "\n", encoding="utf-8")
local = hub_task("mmlu", "test", file=mine)
print(local.name, len(local), local.kind, local[0]["answer"])
assert local.evaluate(local[0], "B") and local.baseline == 0.25
try: hub_task("imagenet", "test")
except UserError as e: print("UserError:", e)

# %% [markdown]
# **Trap.** MMLU's training rows are the split `auxiliary_train` of the configuration `all`. There is also a *configuration* of that
# name, and its rows are nested one level deeper, under `train`. Code that meets them for the first time crashes with a missing key, hours into
# a paid run. `mmlu_row` takes both forms, and the assertion above keeps it so.
#
# ## At scale
#
# The full mixture of the big run is about 850,000 conversations: SmolTalk 460K, MMLU's auxiliary questions 100K, GSM8K 8K, persona and spelling
# rows. `Rows` converts lazily, so a task of that size costs nothing until it is read.
#
# ## Recap
#
# * A conversation is a dict with messages; a tool call is three parts.
# * Grade strictly: the number after the last tool output, the whole word and no rival, the bare letter.
# * A task is rows and a grader; a mixture is (task, times), shuffled once by a seed.
# * Hub and local folder go through the same row functions.
# * Running a model's code is an argument here, and lesson 09's responsibility.
