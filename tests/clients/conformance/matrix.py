"""What all Python clients of the matrix share: the questions, the checks, and how a row is told.

A client's script names its calls and hands them to `tell`, which runs each and prints one JSON
object a line: `{"client", "version", "call", "passed", "detail"}`. `cargo xtask conformance` starts
the node and sets OPENAI_BASE_URL, OPENAI_API_KEY, BUDGET_API_KEY and CLIENT_MODEL.
"""

import json
import os
import time
import traceback
import urllib.request

BASE_URL = os.environ["OPENAI_BASE_URL"]
API_KEY = os.environ["OPENAI_API_KEY"]
# A key whose budget is used up by any call.
BUDGET_KEY = os.environ["BUDGET_API_KEY"]
WRONG_KEY = "tirami_00000000_wrong"
MODEL = os.environ["CLIENT_MODEL"]

QUESTION = "What is the capital of France? Answer in one sentence."
LONGER = "Describe a lighthouse in three sentences."
TEXTS = ["The cat sleeps on the sofa.", "A kitten is sleeping on the couch.", "fn main() { 40 + 2 }"]

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather of a city.", "parameters": CITY},
}


def user(text):
    return [{"role": "user", "content": text}]


def check_city(arguments):
    """Arguments as text or as an object are what the schema asks for."""
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert sorted(value) == ["city", "unit"], value
    assert isinstance(value["city"], str) and len(value["city"]) <= 20, value
    assert value["unit"] in ("celsius", "fahrenheit"), value


def check_vectors(vectors, width=576):
    """Unit vectors, of which the two texts about cats are nearer to each other than to code."""

    def likeness(a, b):
        return sum(x * y for x, y in zip(a, b))

    assert [len(vector) for vector in vectors] == [width] * len(TEXTS), [len(v) for v in vectors]
    assert all(abs(likeness(vector, vector) - 1) < 1e-3 for vector in vectors)
    cat, kitten, code = vectors
    assert likeness(cat, kitten) > likeness(cat, code), (likeness(cat, kitten), likeness(cat, code))


def refused(kind, call, status=None):
    """The call raises exactly this exception of the client's, with the node's own sentence."""
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}"
        assert status is None or getattr(error, "status_code", None) == status, error
        assert str(error), error
        return error
    raise AssertionError(f"expected {kind.__name__}")


# What a request asks for that is to go on for as long as nobody ends it: many tokens, and none of
# those with which the default model ends its answers.
ENDLESS_TOKENS = 3000
ENDLESS_BIAS = {"0": -100, "2": -100}
# Seconds within which the node must have noticed that a client left.
LEFT_SECONDS = 2


def running():
    """Requests that the node answers now, as it says itself."""
    asked = urllib.request.Request(f"{BASE_URL}/tirami/status", headers={"Authorization": f"Bearer {API_KEY}"})
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with directly.open(asked, timeout=10) as answer:
        return json.load(answer)["engine"]["running"]


def frees_the_node(leave):
    """The request whose client `leave` takes away would go on for long, and ends at once."""
    time.sleep(LEFT_SECONDS)
    assert running() == 1, "the answer ended by itself, so leaving it would show nothing"
    left = time.monotonic()
    leave()
    while running() > 0:
        assert time.monotonic() - left < LEFT_SECONDS, "the node still answers a client that left"
        time.sleep(0.02)


def tell(client, version, calls):
    for name, call in calls.items():
        try:
            call()
            passed, detail = True, ""
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            passed, detail = False, f"{type(error).__name__} at line {last.lineno}: {error}"[:600]
        row = {"client": client, "version": version, "call": name, "passed": passed, "detail": detail}
        print(json.dumps(row), flush=True)
