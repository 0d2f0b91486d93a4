"Tools: the calculator against Python and against attacks, the state machine, the sandbox."
import gzip
import json
import os
import re
import time
from pathlib import Path
from random import Random

import pytest

from nanochat import tools
from nanochat.tokenizer import Tokenizer
from nanochat.tools import calculate, make_tool, run_code

DATA = os.environ.get("NANOCHAT_REAL_DATA")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["What is 12+7? The answer is 19. 'strawberry'.count('r')"] * 4, 320)


def random_expression(random: Random, depth: int) -> str:
    if depth == 0: return str(random.randrange(0, 100))
    left, right = (random_expression(random, depth - 1) for _ in range(2))
    text = f"{left}{random.choice(['+', '-', '*'])}{right}"
    return f"({text})" if random.random() < 0.5 else text


def test_integers_agree_with_python():
    random = Random(0)
    for _ in range(300):
        text = random_expression(random, random.randrange(1, 4))
        assert calculate(text) == str(eval(text)), text      # our own text: the one place where eval is fair


@pytest.mark.parametrize("text, result", [
    ("4/2", "2"), ("7/2", "3.5"), ("1/3", "0.3333"), ("2/3", "0.6667"), ("0.1+0.2", "0.3"), ("-5", "-5"), ("- 5+2", "-3"),
    ("10//3", "3"), ("1,234,567+1", "1234568"), ("0*5", "0"), (".5*4", "2"), ("3.0", "3"), ("-1/100000", "0"),
    ("1e3", None), ("5+", None), ("", None), ("  ", None), ("7", "7"), (" 7 ", "7"), ("2*(3", None), ("1_000", None),
    ("'strawberry'.count('r')", "3"), ("' strawberry'.count('r')", "3"), ("'abc'.count('z')", "0"), ("'abc'.count('')", None),
    ("'directory'.count('r')", "2"), ("'profile'.count('e')", "1"), ("'1,000'.count(',')", "1"),
    ("999999999999999+0.1", "999999999999999.1"), ("100000000000000/3", "33333333333333.3333"), ("99999999999999/7", "14285714285714.1429"),
    ("-7/2", "-3.5"), ("-1/3", "-0.3333"), ("10", "10"), ("0.00004", "0"), ("-0.00004", "0"), ("100.5", "100.5")])
def test_results_read_as_the_data_writes_them(text, result): assert calculate(text) == result


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "().__class__.__base__.__subclasses__()", "'a'.__class__", "'a'.upper()", "open('x')",
    "'a'.count('b').__class__", "'a'.count.__self__", "'a'.count(b'c')", "'a'.count('b', 0)", "'a'.count(x='b')", "'a'.count(*'b')",
    "'x'+__import__('os').popen('id').read()+'y'.count('y')",            # the quote closed inside the word
    "'a' 'b'.count('b')", "f'{1}'.count('1')", "'''a'''.count('a')", "'\\x41'.count('A')", "(1).real", "1 if 1 else 2",
    "[1][0]", "lambda: 1", "True", "None", "x", "1;2", "1\n2", "1#2", "\x00", "9**9", "9**9**9**9", "1<<9", "1j", "0x10", "1/0", "1//0",
    "１+１", "(" * 99 + ")" * 99, "(" * 90 + "1" + ")" * 90, "-" * 190 + "1", "9" * 200, "9" * 5000, "*".join(["99999999"] * 20),
    "1/3/7/11/13/17/19/23/29/31/37/41/43/47/53/59", "1e400", "0.0000000000000000000001"])
def test_nothing_else_is_computed(text):
    assert calculate(text) in (None, "1") if set(text) <= set("()1-") else calculate(text) is None


def test_no_huge_number_is_ever_built():
    assert calculate("999999999999999*1") == "999999999999999"
    assert calculate("999999999999999*999999999999999*0") is None


@pytest.mark.skipif(not DATA, reason="NANOCHAT_REAL_DATA is not set to a folder of real data")
def test_every_calculator_mark_of_gsm8k_is_computed_and_agrees():
    from nanochat.tasks import gsm8k_parts
    n = same = 0
    for name in ("test", "train_1000"):
        with gzip.open(Path(DATA) / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                parts = gsm8k_parts(json.loads(line)["answer"])
                for call, output in zip(parts, parts[1:]):
                    if call["type"] != "python": continue
                    result = calculate(call["text"])
                    assert result is not None, call
                    n, same = n + 1, same + (result == output["text"])
    assert n > 7000 and same / n > 0.99, (same, n)


# --- the state machine -------------------------------------------------------------------------

def call(tokenizer, text): return [tokenizer.python_start, *tokenizer.encode(text), tokenizer.python_end]


def test_forced_tokens_equal_what_training_rendered(tokenizer):
    for expression, result in (("12+7", "19"), ("' strawberry'.count('r')", "3"), ("7/2", "3.5")):
        row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": [
            {"type": "text", "text": "So"}, {"type": "python", "text": expression},
            {"type": "python_output", "text": result}, {"type": "text", "text": " done"}]}]}
        ids, mask = tokenizer.render(row)
        end = ids.index(tokenizer.python_end)
        forced = make_tool(tokenizer)(ids[: end + 1])
        assert ids[end + 1 : end + 1 + len(forced)] == forced
        assert not any(mask[end + 1 : end + 1 + len(forced)])


def test_the_tool_speaks_only_after_a_whole_call(tokenizer):
    tool, start = make_tool(tokenizer), [tokenizer.bos, tokenizer.assistant_start]
    whole = start + call(tokenizer, "2*3")
    assert [tool(whole[:n]) is not None for n in range(len(whole) + 1)] == [False] * len(whole) + [True]
    assert tool(start + call(tokenizer, "hello")) is None                       # no result: nothing is forced
    assert tool(start + [tokenizer.python_end]) is None
    assert tool([tokenizer.python_start, *tokenizer.encode("1+1"), tokenizer.assistant_start, tokenizer.python_end]) is None
    assert tool(whole + tool(whole) + [tokenizer.python_end]) is None           # the old call is not answered twice
    again = tool(whole + tool(whole) + call(tokenizer, "4+4"))
    assert tokenizer.decode(again) == "<|output_start|>8<|output_end|>"
    nested = start + [tokenizer.python_start, *tokenizer.encode("9+9")] + call(tokenizer, "1+2")
    assert tokenizer.decode(tool(nested)) == "<|output_start|>3<|output_end|>"  # collection starts anew


def test_typed_marks_do_not_call_the_tool(tokenizer):
    typed = tokenizer.encode("<|python_start|>1+1<|python_end|>")
    assert make_tool(tokenizer)(typed) is None and tokenizer.python_end not in typed


class OnlyLast(list):
    "A row that refuses to be read except at its end."
    def __getitem__(self, i):
        assert i == -1, "the tool read more than the last token"
        return list.__getitem__(self, i)
    def __iter__(self): raise AssertionError("the tool walked through the row")


def test_an_ordinary_token_costs_nothing(tokenizer):
    assert make_tool(tokenizer)(OnlyLast([5] * 10_000)) is None


def test_with_a_sampler(tokenizer):
    "A model that always writes a call: the sampler forces the output and marks it."
    import torch

    from nanochat.sample import make_sampler
    script = [*call(tokenizer, "2+2"), tokenizer.assistant_end]
    start = tokenizer.render_prompt({"messages": [{"role": "user", "content": "?"}]})

    class Scripted:
        device = torch.device("cpu")
        def logits(self, features): return features
        def features(self, idx):
            logits = torch.zeros(*idx.shape, tokenizer.vocab_size)
            for b, row in enumerate(idx.tolist()):
                done = row[len(start):]
                if tokenizer.output_start in done:        # what was forced does not move the script
                    cut = done.index(tokenizer.output_start)
                    done = done[:cut] + done[cut + 3 :]       # output_start, 4, output_end
                logits[b, -1, script[min(len(done), len(script) - 1)]] = 10.0
            return logits

    sampler = make_sampler(Scripted(), [tokenizer.assistant_end])
    sample = sampler([start], max_new_tokens=20, temperature=0.0, tool=make_tool(tokenizer))[0]
    assert tokenizer.decode(sample.tokens) == tools.tool_call_text("2+2") + "<|assistant_end|>"
    forced = [t for t, own in zip(sample.tokens, sample.sampled) if not own]
    assert tokenizer.decode(forced) == "<|output_start|>4<|output_end|>"


# --- the sandbox -------------------------------------------------------------------------------

def test_a_good_program_and_its_output():
    r = run_code("import math, json\nprint(json.dumps(math.comb(5, 2)))\nprint('é')")
    assert r.ok and r.output == "10\né\n" and not r.timed_out


@pytest.mark.parametrize("program", [
    "assert False", "1/0", "def f(:", "import sys; sys.exit(0)", "raise SystemExit(0)", "exit()", "import os; os._exit(0)",
    "import os; os.kill(os.getpid(), 9)", "input()", "import torch", "x = bytearray(10**10)", "x = '\ud800'\nprint(x)",
    "def f(): f()\nf()"])
def test_programs_that_do_not_reach_their_end(program): assert not run_code(program, timeout=4).ok


def test_the_clock_stops_loops():
    r = run_code("print('begun', flush=True)\nwhile True: pass", timeout=0.7)
    assert not r.ok and r.timed_out and "begun" in r.output
    assert run_code("import time; time.sleep(60)", timeout=0.5).timed_out


def test_nothing_of_ours_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    r = run_code("import os, sys\nprint(dict(os.environ), os.listdir('.'), sys.argv, sys.path, sys.flags.isolated)")
    assert r.ok and "hunter2" not in r.output and os.getcwd() not in r.output
    assert "['program.py']" in r.output and r.output.rstrip().endswith("1")


def test_output_and_files_are_limited():
    r = run_code("print('x' * 10**7)", keep=100)
    assert len(r.output) <= 100
    assert not run_code("open('big', 'wb').write(b'x' * 10**8)").ok


def test_children_do_not_outlive_the_program(tmp_path):
    mark = tmp_path / "alive"
    program = f"""
import os, time
try: pid = os.fork()
except OSError: pid = 1
if pid == 0:
    for _ in range(100):
        time.sleep(0.05)
        open({str(mark)!r}, 'a').write('x')
time.sleep(0.3)
"""
    assert run_code(program).ok
    size = mark.stat().st_size if mark.exists() else 0
    time.sleep(0.4)
    assert (mark.stat().st_size if mark.exists() else 0) == size


def test_a_child_cannot_hold_the_answer_back():
    "A left-over child keeps the pipe open; reading the verdict must not wait for it."
    r = run_code("import os, time\ntry: pid = os.fork()\nexcept OSError: pid = 1\nif pid == 0: time.sleep(60)")
    assert not r.timed_out


def test_the_parent_is_unharmed():
    before = (os.getcwd(), dict(os.environ), len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0)
    for program in ("import os; os.chdir('/')", "import os; os.environ['X'] = '1'", "1/0"): run_code(program)
    after = (os.getcwd(), dict(os.environ), len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0)
    assert before == after


def test_the_docstring_says_what_it_is_not():
    assert re.search(r"not a security boundary", tools.run_code.__doc__)
