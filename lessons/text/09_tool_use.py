# %%
#| default_exp tools

# %% [markdown]
# # 09 · Tool use: a calculator, a state machine and a sandbox
#
# **Promise.** You will give the model a calculator that cannot be tricked into running code, wire it into decoding, and build a
# box in which a program written by a model may run without taking your machine along.
#
# After this lesson you can
#
# * evaluate an expression by walking its syntax tree, and say why `eval` cannot be made safe;
# * write the rule that turns a sampled token into forced ones;
# * make a tool's output agree, character by character, with the training data;
# * run untrusted code in a process with limits, and name what these limits do not stop.
#
# **Before:** 01 (special tokens), 02c and 08 (samplers). **Time:** 25 minutes to read, 30 to do, seconds to compute.

# %%
#| export
import ast
import operator
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple


# %% [markdown]
# ## Why not `eval`?
#
# A small model is poor at sums and a Python interpreter is perfect at them. The first idea is three lines, with the built-ins removed "for safety":

# %%
def naive(expression: str):
    return eval(expression, {"__builtins__": {}}, {})       # do not do this


print(naive("12*7"))
attack = "().__class__.__base__.__subclasses__()"
print(
    f"and {attack} gives {len(naive(attack))} classes, some of which open files and start processes"
)
assert len(naive(attack)) > 100

# %% [markdown]
# No built-ins, no names, and still everything: each Python object leads to its class, that to `object`, and that to every class
# in the process. Filters on characters or forbidden words have been tried and walked around, for instance by closing a quote inside the "word" whose letters
# are to be counted. A list of what is forbidden is never complete. So we turn it round: parse the text, walk the tree, and compute only what
# we *list*. Whatever is not on the list has no way to happen.

# %%
tree = ast.parse("2*(3+4)", mode="eval")
print(ast.dump(tree.body, indent=2))
assert isinstance(tree.body, ast.BinOp)

# %% [markdown]
# Numbers are kept as exact fractions. `0.1+0.2` is then 0.3 and not 0.30000000000000004, and sizes can be checked. There is no power operator:
# `9**9**9` has four characters more than it looks and would keep a machine busy for hours.

# %%
#| export
LIMIT = 10**15        # no number in a calculation may be larger, and no denominator
LONGEST = 200         # characters of an expression
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv}


def small(value: Fraction) -> Fraction:
    "The value itself; ValueError when it is too large or too fine to go on with."
    if abs(value.numerator) > LIMIT * value.denominator or value.denominator > LIMIT:
        raise ValueError("number out of range")
    return value


def number_of(node: ast.AST) -> Fraction:
    "Exact value of a tree of numbers and + - * / //; ValueError for anything else."
    match node:
        case ast.Constant(value=int() | float() as n) if not isinstance(n, bool):
            return small(Fraction(repr(n)))
        case ast.UnaryOp(op=ast.USub(), operand=inner): return -number_of(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner): return number_of(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return small(Fraction(OPERATORS[type(op)](number_of(left), number_of(right))))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


# %%
print(
    number_of(ast.parse("0.1+0.2", mode="eval").body), number_of(ast.parse("7/2", mode="eval").body)
)
for text in ("9999999999*9999999999", "True+1", "x+1", "2**9"):
    try: number_of(ast.parse(text, mode="eval").body); raise AssertionError(text)
    except ValueError as e: print(f"{text:24s} {e}")


# %% [markdown]
# ## What a result looks like
#
# The training data shows the model what the tool will answer. If the tool then writes it another way, the model meets something at test time that it
# never saw. Published nanochat had this slip: its data says `4/2` is `2`, its engine inserted Python's `2.0`. Ours writes whole numbers without a
# point and other numbers as short as they can be.

# %%
#| export
def number_text(value: Fraction) -> str:
    "A result as people write it: 2, 3.5, 0.3333 (at most four decimals, no trailing zeros)."
    tenthousandths = round(value * 10_000)                   # no float: it holds 16 digits only
    whole, rest = divmod(abs(tenthousandths), 10_000)
    text = f"{whole}.{rest:04}".rstrip("0").rstrip(".")
    return "-" + text if tenthousandths < 0 else text


def count_of(node: ast.AST) -> int:
    "Value of 'word'.count('x') as a tree; ValueError for anything else."
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str() as word), attr="count"),
                      args=[ast.Constant(value=str() as part)], keywords=[]) if part:
            return word.count(part)
    raise ValueError("not a count")


# %%
for text in ("4/2", "7/2", "1/3", "2-2.00001"):
    print(f"{text:10s} {number_text(number_of(ast.parse(text, mode='eval').body))}")
assert number_text(Fraction(4, 2)) == "2" and number_text(Fraction(-1, 10**6)) == "0"
assert count_of(ast.parse("'strawberry'.count('r')", mode="eval").body) == 3


# %%
#| export
def calculate(
    expression: str,    # such as "12+7", "(3+4)*2", "1,000/8" or "'strawberry'.count('r')"
) -> str | None:        # as the training data writes it; None when it is not a calculation
    "Compute an expression by walking its syntax tree; nothing is ever executed."
    if len(expression) > LONGEST: return None
    text = (
        re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression) if "'" not in expression else expression
    )
    if not re.fullmatch(r"[0-9.+\-*/() ]+|\s*'[^'\\]*'\.count\('[^'\\]*'\)\s*", text): return None
    try:
        node = ast.parse(text.strip(), mode="eval").body
        return str(count_of(node)) if isinstance(node, ast.Call) else number_text(number_of(node))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


# %% [markdown]
# First the uses, then the abuses.

# %%
for text in ("12+7", "4/2", "(3+4)*2", "1,000/8", "-3+1", "10//3", "'strawberry'.count('r')"):
    print(f"{text:28s} {calculate(text)}")
assert (
    calculate("12+7") == "19"
    and calculate("4/2") == "2"
    and calculate("'strawberry'.count('r')") == "3"
)

# %%
attacks = [
    "__import__('os').system('ls')",
    attack,
    "'a'.__class__",
    "'x'.count('y')+open('/etc/passwd').read()",
    "9**9**9",
    "9" * 300,
    "*".join(["99999999"] * 20),
    "1/0",
    "(" * 150,
    "'" + "a'.count('b').__class__",
    "lambda: 1",
    "[1][0]",
    "1 if 1 else 2",
    "'a'.count(open('x'))",
    "\x00",
    "",
]
for text in attacks: assert calculate(text) is None, text
print(f"{len(attacks)} attacks, {len(attacks)} times None")

# %% [markdown]
# The regular expression in front is not the lock. It is a mat at the door: it keeps Python's parser from seeing oddities (and from warning about them).
# The lock is the tree walk. Ordinary words that contain "open", "file" or "dir" count like any other:

# %%
assert calculate("'directory'.count('r')") == "2" and calculate("'profile'.count('l')") == "1"
print("open in 'reopened':", calculate("'reopened'.count('e')"))


# %% [markdown]
# ## The state machine
#
# The model calls the tool by sampling special tokens: `<|python_start|>`, the expression, `<|python_end|>`. At that moment we compute, and *force* the next
# tokens: `<|output_start|>`, the result, `<|output_end|>`. Then the model goes on. It *can* sample `<|output_start|>` and a result of its own, since midtraining taught it
# what comes after a call; but what it invents is marked `sampled`, and what was forced is not. So look there before you believe an output (lesson 11b does).
#
# The whole machine is one function of the row so far. It is called after every sampled token, so it must cost nothing unless the last token ends a call.

# %%
#| export
def call_text(
    tokenizer,
    tokens: Sequence[int],  # prompt and new tokens; the last one is python_end
) -> str | None:            # the expression; None when no call was opened since the last other mark
    "The expression of the tool call that the last token closes."
    opened, marks = tokenizer.python_start, {tokenizer.python_end, tokenizer.output_end,
                                             tokenizer.assistant_start, tokenizer.bos}
    for i in range(len(tokens) - 2, -1, -1):
        if tokens[i] == opened: return tokenizer.decode(tokens[i + 1 : -1])
        if tokens[i] in marks: return None
    return None


def make_tool(
    tokenizer,              # our Tokenizer
) -> Callable[[Sequence[int]], list[int] | None]:
    "The calculator as a sampler's `tool`: forces the output after python_end, else None at once."
    python_end = tokenizer.python_end

    def tool(tokens: Sequence[int]) -> list[int] | None:
        "Tokens to force after `tokens`, or None."
        if not tokens or tokens[-1] != python_end: return None
        expression = call_text(tokenizer, tokens)
        result = None if expression is None else calculate(expression)
        if result is None: return None
        return [tokenizer.output_start, *tokenizer.encode(result), tokenizer.output_end]

    return tool


def tool_call_text(expression: str) -> str:
    "A call and its result as decoded text shows them; no result when there is none."
    result = calculate(expression)
    output = "" if result is None else f"<|output_start|>{result}<|output_end|>"
    return f"<|python_start|>{expression}<|python_end|>{output}"


# %%
from nanochat.tokenizer import Tokenizer

tokenizer = Tokenizer.train(["What is 12+7? The answer is 19."] * 4, 300)
tool = make_tool(tokenizer)
row = [tokenizer.assistant_start, tokenizer.python_start, *tokenizer.encode("12+7")]
print("in the middle:", tool(row))
print("at the end:   ", tokenizer.decode(tool([*row, tokenizer.python_end])))
assert tool(row) is None and tool([]) is None
assert tokenizer.decode(tool([*row, tokenizer.python_end])) == "<|output_start|>19<|output_end|>"
assert tool([tokenizer.assistant_start, tokenizer.python_end]) is None  # an end without a start

# %% [markdown]
# What is forced must be what training rendered, token for token. Lesson 01's `render` is the reference:

# %%
shown = {
    "messages": [
        {"role": "user", "content": "12 and 7?"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "12+7"},
                {"type": "python_output", "text": "19"},
                {"type": "text", "text": " The answer is 19."},
            ],
        },
    ]
}
ids, _ = tokenizer.render(shown)
end = ids.index(tokenizer.python_end)
forced = tool(ids[: end + 1])
print(tokenizer.decode(ids))
assert ids[end + 1 : end + 1 + len(forced)] == forced
assert tokenizer.decode(ids).count(tool_call_text("12+7")) == 1

# %% [markdown]
# A user may *type* `<|python_end|>`. That text is encoded as ordinary characters and never becomes the special token (lesson 01), so it cannot
# start the calculator.
#
# ## Running a program
#
# HumanEval asks the model for a function and then runs its tests. Now code of unknown intent must really run. There is no syntax tree to hide
# behind, so we lower what an accident can do:
#
# * a fresh interpreter in a new process, `python -I -S`: no site packages, no user paths, no environment variables but LC_CTYPE, which Python sets, nothing of ours in memory;
# * a temporary folder with nothing but the program as working directory, nothing on standard input;
# * limits, set before the program starts: memory, CPU seconds, file size, open files, processes;
# * a wall clock, after which the whole process group is killed;
# * the output goes to a file of limited size.
#
# The parent learns through a pipe whether the program ran *to its end*. An exit code would not do: `sys.exit(0)` before the tests exits with 0.

# %%
#| export
CHILD = """
import os, sys
try:
    import resource as r
    memory, seconds = int(sys.argv[2]), int(sys.argv[3])
    for name, n in (("AS", memory), ("DATA", memory), ("CPU", seconds), ("FSIZE", 1 << 20),
                    ("NOFILE", 64), ("NPROC", 0), ("CORE", 0)):
        try: r.setrlimit(getattr(r, "RLIMIT_" + name), (n, n))
        except (ValueError, OSError, AttributeError): pass
except ImportError: pass
pipe, source = int(sys.argv[1]), open("program.py", encoding="utf-8").read()
sys.argv[1:] = []
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
os.write(pipe, b"done")
"""


class RunResult(NamedTuple):
    "What became of a program: ran to its end? what it printed; stopped by the clock?"
    ok: bool
    output: str
    timed_out: bool


# %%
assert compile(CHILD, "child", "exec") and RunResult(True, "", False).ok
print(f"the child's own program has {len(CHILD.splitlines()) - 1} lines")


# %%
#| export
def _start(folder: str, pipe: int, timeout: float, memory_mb: int, log) -> subprocess.Popen:
    "Start the child interpreter in its own process group, with nothing inherited but the pipe."
    limits = [str(pipe), str(memory_mb << 20), str(int(timeout) + 1)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", CHILD, *limits],
        cwd=folder,
        env={},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(pipe,),
        start_new_session=True,
    )


def _wait_and_kill(process: subprocess.Popen, timeout: float) -> bool:
    "Wait for the child, then kill its whole process group; True when the clock ran out."
    try: process.wait(timeout)
    except subprocess.TimeoutExpired: return True
    finally:
        try: os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        process.wait()
    return False


def _read(pipe: int) -> bytes:
    "What waits in a pipe; nothing when it is empty or still held open by someone."
    os.set_blocking(pipe, False)
    try: return os.read(pipe, 16)
    except BlockingIOError: return b""


# %% [markdown]
# Try the two helpers on a child that sleeps and on a pipe.

# %%
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
assert _wait_and_kill(child, timeout=0.1) and child.returncode == -signal.SIGKILL
reads, writes = os.pipe()
assert _read(reads) == b"" and os.write(writes, b"done") == 4 and _read(reads) == b"done"
os.close(reads); os.close(writes)
print("the clock ran out, the child is gone; the pipe gives what was written, or nothing at once")


# %% [markdown]
# The last line before the verdict matters: kill the *group*, always, also when the program ended well. It may have left children behind.

# %%
#| export
def run_code(
    code: str,              # a Python program; only the standard library is there
    timeout: float = 5.0,   # seconds on the wall clock
    memory_mb: int = 256,   # address space of the child (not enforced on macOS)
    keep: int = 10_000,     # characters of output to return
) -> RunResult:
    """Run a program in a fresh, limited process; ok when it ran to its end without an exception.

    It guards against accidents: endless loops, memory, large files, left-over children.
    It is not a security boundary: the program can read what your user can read and use the network.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        Path(folder, "program.py").write_text(code, encoding="utf-8", errors="surrogatepass")
        reads, writes = os.pipe()
        try:
            try: process = _start(folder, writes, timeout, memory_mb, log)
            finally: os.close(writes)
            timed_out = _wait_and_kill(process, timeout)
            ok = not timed_out and _read(reads) == b"done"
        finally: os.close(reads)
        log.seek(0)
        return RunResult(ok, log.read(4 * keep).decode(errors="replace")[:keep], timed_out)


# %%
print(run_code("print(sum(range(10)))"))
print(run_code("assert 1 == 2").output.splitlines()[-1])
assert run_code("print(sum(range(10)))") == RunResult(True, "45\n", False)
assert not run_code("assert 1 == 2").ok

# %% [markdown]
# **Predict, then run.** Which of these programs is `ok`? And which ends only because somebody stops it?

# %%
programs = {
    "endless loop": "while True: pass",
    "gigabytes": "x = bytearray(10**10)",
    "leaves early": "import sys; sys.exit(0)",
    "reads input": "input()",
    "looks around": "import os; print(dict(os.environ)); print(os.listdir('.'))",
    "prints a lot": "while True: print('x' * 1000)",
}
results = {name: run_code(program, timeout=1.0) for name, program in programs.items()}
for name, r in results.items():
    print(f"{name:13s} ok={r.ok!s:5}  stopped={r.timed_out!s:5}  {r.output[-60:]!r}")
assert [name for name, r in results.items() if r.ok] == ["looks around"]

# %% [markdown]
# ## What it does not stop
#
# A determined attacker reads your files, talks to the network, or starts a process that leaves the process group. It can also find the pipe that
# carries the verdict and write `done` into it, so a verdict is no proof against a program that wants to cheat. If models you do not trust
# write code you do not read, put this function inside a container or a virtual machine without network and with nothing in it that you would miss. Say so in
# your own project's documentation too; the docstring above does.

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

rings = [
    "calculator: syntax tree\nonly what is listed",
    "run_code:\nprocess with limits\nstops accidents",
    "container or VM\nstops attackers",
]
fig, ax = plt.subplots(figsize=(7.5, 1.3))
for i, text in enumerate(rings):
    ax.barh(0, 1, left=i, color=plt.cm.Blues(0.25 + 0.25 * i), edgecolor="white")
    ax.text(i + 0.5, 0, text, ha="center", va="center", fontsize=8, color="white" if i == 2 else "black")
ax.set_axis_off()
figure(
    fig,
    caption="Three walls. The first two are in this lesson; the third is yours to add.",
    alt="Three boxes side by side: the calculator, which computes only what is listed; run_code, "
    "a process with limits that stops accidents; a container or virtual machine, which stops "
    "attackers.",
)

# %% [markdown]
# ## Together with HumanEval
#
# Lesson 04a left a hole where the runner belongs. Here it is filled.

# %%
from nanochat.tasks import Task, code_grader, humaneval_row

double = humaneval_row(
    {
        "prompt": "def double(x):\n    'Twice x.'\n",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(f):\n    assert f(4) == 8",
        "entry_point": "double",
    }
)
exam = Task("humaneval", [double], code_grader(lambda program: run_code(program).ok))
assert exam.evaluate(double, double["messages"][1]["content"])
assert not exam.evaluate(
    double, "```python\nimport sys\nsys.exit(0)\n```"
)  # the early exit gains nothing
print("the reference solution passes; leaving early does not")

# %% [markdown]
# ## Recap
#
# * Never `eval`: parse, walk, and compute only what you list.
# * Exact fractions, a bound on every number, no powers.
# * The tool writes results exactly as the training data does.
# * The state machine is one function of the row; forced tokens are marked.
# * A process with limits stops accidents. It is no prison.
