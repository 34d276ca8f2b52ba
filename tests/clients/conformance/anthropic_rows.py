"""The rows of Anthropic's own client, which speaks `/v1/messages`."""

import anthropic
from matrix import *
from pydantic import BaseModel

# This client has no argument for it.
GREEDY = {"temperature": 0}
TOOL = {"name": "weather", "description": "Tells the weather of a city.", "input_schema": CITY}


class City(BaseModel):
    city: str
    population: int


def client_with(key):
    # Every field of every answer has the type that the client declares for it.
    return anthropic.Anthropic(
        base_url=BASE_URL.removesuffix("/v1"), api_key=key, max_retries=0, timeout=120,
        _strict_response_validation=True)


client = client_with(API_KEY)


def ask(text, **options):
    return client.messages.create(model=MODEL, messages=user(text), **{"max_tokens": 40, **options})


def chat():
    answer = ask(QUESTION, extra_body=GREEDY)
    assert "Paris" in answer.content[0].text and answer.stop_reason == "end_turn", answer
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer


def stream():
    whole = ask(LONGER, extra_body=GREEDY)
    with client.messages.stream(
        model=MODEL, messages=user(LONGER), max_tokens=40, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text, text
    assert final.usage.output_tokens == whole.usage.output_tokens, final


CALLED = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 200}


def tools():
    answer = ask("What is the weather in Paris?", **CALLED)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and call.name == "weather" and call.id, answer
    check_city(call.input)


def tools_streamed():
    with client.messages.stream(
        model=MODEL, messages=user("What is the weather in Paris?"), **CALLED) as stream:
        answer = stream.get_final_message()
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    check_city(call.input)


def json_schema():
    answer = client.messages.parse(
        model=MODEL, messages=user("Paris has two million people. Give city and population."),
        output_format=City, max_tokens=200, extra_body=GREEDY)
    assert isinstance(answer.parsed_output, City), answer


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).display_name


def bad_key():
    refused(anthropic.AuthenticationError, lambda: client_with(WRONG_KEY).messages.create(
        model=MODEL, messages=user(QUESTION), max_tokens=4), 401)


def budget():
    refused(anthropic.PermissionDeniedError, lambda: client_with(BUDGET_KEY).messages.create(
        model=MODEL, messages=user(QUESTION), max_tokens=4), 403)


# This client cannot forbid tokens; only a call of so many words follows its schema.
WORDS = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 900}
ENDLESS = {"type": "object", "properties": {"words": WORDS}, "required": ["words"], "additionalProperties": False}
ENDLESS_TOOL = {"name": "colours", "description": "Tells colours.", "input_schema": ENDLESS}


def cancel():
    asked = CALLED | {"tools": [ENDLESS_TOOL], "max_tokens": ENDLESS_TOKENS}
    stream = client.messages.create(model=MODEL, messages=user(LONGER), stream=True, **asked)
    next(event for event in stream if event.type == "content_block_delta")
    frees_the_node(stream.close)


tell("anthropic", anthropic.__version__, {
    "chat": chat, "stream": stream, "tools": tools, "tools streamed": tools_streamed,
    "json_schema": json_schema, "models": models, "bad key": bad_key, "budget": budget, "cancel": cancel,
})
