"""The rows of the `llm` command, which knows the node from a file of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from matrix import *

folder = Path(tempfile.mkdtemp(prefix="llm-"))
PROGRAM = str(Path(sys.executable).parent / "llm")
MODELS = [("tirami", "right"), ("tirami-stranger", "wrong"), ("tirami-poor", "budget")]
(folder / "extra-openai-models.yaml").write_text("".join(
    f"- model_id: {name}\n  model_name: {json.dumps(MODEL)}\n  api_base: {json.dumps(BASE_URL)}\n"
    f"  api_key_name: {key}\n  supports_schema: true\n  supports_tools: true\n"
    for name, key in MODELS))
(folder / "keys.json").write_text(json.dumps({"right": API_KEY, "wrong": WRONG_KEY, "budget": BUDGET_KEY}))
ENVIRONMENT = os.environ | {"LLM_USER_PATH": str(folder)}


def llm(*arguments, model="tirami", fails=False):
    ran = subprocess.run(
        [PROGRAM, *arguments, "-m", model], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120)
    assert (ran.returncode != 0) == fails, ran
    return ran.stderr if fails else ran.stdout


def chat():
    assert "Paris" in llm(QUESTION, "--no-stream", "-o", "temperature", "0", "-o", "max_tokens", "40")


def stream():
    options = ("-o", "temperature", "0", "-o", "max_tokens", "40")
    assert llm(LONGER, *options) == llm(LONGER, "--no-stream", *options)


def json_schema():
    text = llm("Paris has two million people.", "--schema", "city, population int", "-o", "max_tokens", "200")
    value = json.loads(text)
    assert sorted(value) == ["city", "population"] and isinstance(value["population"], int), value


def models():
    listed = subprocess.run([PROGRAM, "models"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "tirami" in listed.stdout, listed


def bad_key():
    assert "401" in llm(QUESTION, model="tirami-stranger", fails=True)


def budget():
    said = llm(QUESTION, "-o", "max_tokens", "4", model="tirami-poor", fails=True)
    assert "403" in said or "TRM" in said, said


def cancel():
    options = ("-o", "max_tokens", str(ENDLESS_TOKENS), "-o", "logit_bias", json.dumps(ENDLESS_BIAS))
    asking = subprocess.Popen(
        [PROGRAM, LONGER, "-m", "tirami", *options], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE)
    assert asking.stdout.read(1)
    frees_the_node(lambda: asking.send_signal(signal.SIGINT))
    asking.wait(timeout=20)


tell("llm", version("llm"), {
    "chat": chat, "stream": stream, "json_schema": json_schema, "models": models,
    "bad key": bad_key, "budget": budget, "cancel": cancel,
})
