"""The rows of openai-python."""

import os
import random

import jsonschema
import openai
from matrix import *
from pydantic import BaseModel

# Every field of every answer has the type that the client declares for it.
client = openai.OpenAI(max_retries=0, timeout=120, _strict_response_validation=True)
# The client declares vectors as lists and asks for base64, and that a piece of a continued text
# always says why it ended: neither is what OpenAI sends.
loose = openai.OpenAI(max_retries=0, timeout=120)


class City(BaseModel):
    city: str
    population: int


def ask(text, **options):
    return client.chat.completions.create(model=MODEL, messages=user(text), **options)


def chat():
    answer = ask(QUESTION, temperature=0, max_completion_tokens=40)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop", answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream():
    options = {"temperature": 0, "max_completion_tokens": 40}
    whole = ask(LONGER, **options)
    chunks = list(ask(LONGER, stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content, text
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in (chunks[-1].usage, whole.usage)]
    assert counts[0] == counts[1], chunks[-1]


TOOLS = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "seed": 3}


def tools():
    choice = ask("What is the weather in Paris?", **TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and call.id, call
    check_city(call.function.arguments)


def tools_streamed():
    call = {"ids": set(), "name": "", "arguments": ""}
    for chunk in ask("What is the weather in Paris?", stream=True, **TOOLS):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.index == 0, delta
            call["ids"] |= {delta.id} - {None}
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""
    assert len(call["ids"]) == 1 and call["name"] == "weather", call
    check_city(call["arguments"])
    assert chunk.choices[0].finish_reason == "tool_calls", chunk


def random_schema(dice, depth):
    kinds = ["string", "integer", "boolean", "enum"] + (["array", "object"] if depth else [])
    match dice.choice(kinds):
        case "string":
            return {"type": "string", "maxLength": dice.randint(1, 12)}
        case "integer":
            return {"type": "integer", "minimum": 0, "maximum": dice.randint(1, 99)}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": ["celsius", "fahrenheit", 'a "quoted" word', "é"][: dice.randint(1, 4)]}
        case "array":
            return {"type": "array", "items": random_schema(dice, 0), "maxItems": 3}
        case _:
            return random_object(dice, depth - 1)


def random_object(dice, depth):
    names = [f"p{n}" for n in range(dice.randint(0, 3))]
    properties = {name: random_schema(dice, depth) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def random_tools():
    """Streams of random tools: every delta is well formed, and arguments are valid by schema."""
    most = int(os.environ.get("CONFORMANCE_TOOL_TOKENS", "400"))
    for seed in range(int(os.environ.get("CONFORMANCE_TOOL_REQUESTS", "20"))):
        # Three requests have the same tools, so two of them find their prompt in the cache.
        dice = random.Random(seed // 3)
        schemas = {name: random_object(dice, 2) for name in dice.sample(["weather", "get-time", "f"], dice.randint(1, 3))}
        offered = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
        calls = []
        for chunk in ask("Use a tool.", stream=True, tools=offered, tool_choice="required", seed=seed, temperature=1.2,
                         parallel_tool_calls=seed % 2 == 0, max_completion_tokens=most):
            choice = chunk.choices[0]
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(calls):
                    assert delta.id and delta.type == "function" and delta.function.name in schemas, (seed, delta)
                    calls.append([delta.id, delta.function.name, ""])
                assert delta.index == len(calls) - 1 and delta.id in (None, calls[-1][0]), (seed, delta)
                calls[-1][2] += delta.function.arguments
        if choice.finish_reason == "length":
            # What was cut off is no call yet.
            calls[-1:] = []
        else:
            assert choice.finish_reason == "tool_calls" and calls, (seed, chunk)
        assert len({call[0] for call in calls}) == len(calls), (seed, calls)
        for _, name, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas[name])


def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40)
    assert "Paris" in answer.output_text and answer.status == "completed", answer
    events = list(client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text and events[-1].type == "response.completed", events[-1]


def json_schema():
    answer = client.chat.completions.parse(
        model=MODEL, messages=user("Paris has two million people. Give city and population."),
        response_format=City, max_completion_tokens=200, temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, City), answer


def logprobs():
    choice = ask(QUESTION, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3).choices[0]
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def n():
    answer = ask(LONGER, n=3, seed=7, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer


def embeddings():
    # Without a format this client asks for base64.
    answer = loose.embeddings.create(model=MODEL, input=TEXTS)
    check_vectors([one.embedding for one in answer.data])
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    for one, other in zip(plain.data, answer.data, strict=True):
        assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding, strict=True))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0, answer.usage
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64, encoding_format="float")
    assert len(short.data[0].embedding) == 64, short


def completions():
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert "Paris" in answer.choices[0].text, answer
    pieces = list(loose.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == answer.choices[0].text


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


def bad_key():
    stranger = openai.OpenAI(api_key=WRONG_KEY, max_retries=0)
    refused(openai.AuthenticationError, lambda: stranger.models.list(), 401)


def budget():
    poor = openai.OpenAI(api_key=BUDGET_KEY, max_retries=0)
    call = lambda: poor.chat.completions.create(model=MODEL, messages=user(QUESTION), max_tokens=4)
    error = refused(openai.PermissionDeniedError, call, 403)
    assert error.code == "budget_limit", error.body


def cancel():
    stream = ask(LONGER, stream=True, max_completion_tokens=ENDLESS_TOKENS, logit_bias=ENDLESS_BIAS)
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    frees_the_node(stream.close)


tell("openai-python", openai.__version__, {
    "chat": chat, "stream": stream, "tools": tools, "tools streamed": tools_streamed,
    "random tools": random_tools, "json_schema": json_schema, "logprobs": logprobs, "n": n, "embeddings": embeddings,
    "completions": completions, "responses": responses, "models": models, "bad key": bad_key, "budget": budget,
    "cancel": cancel,
})
