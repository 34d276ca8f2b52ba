"""The rows of LiteLLM, which takes the node for an OpenAI-compatible server."""

import os
from importlib.metadata import version

# Its table of prices comes with it; it must not look for a newer one in the internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
from matrix import *
from pydantic import BaseModel

NAME = f"openai/{MODEL}"
litellm.suppress_debug_info = True


class City(BaseModel):
    city: str
    population: int


def ask(text, key=API_KEY, **options):
    return litellm.completion(
        model=NAME, messages=user(text), api_base=BASE_URL, api_key=key, num_retries=0, **options)


def chat():
    answer = ask(QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop", answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream():
    options = {"temperature": 0, "max_tokens": 40}
    whole = ask(LONGER, **options).choices[0].message.content
    chunks = list(ask(LONGER, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    built = litellm.stream_chunk_builder(chunks, messages=user(LONGER))
    assert built.choices[0].message.content == whole, built


TOOLS = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "seed": 3}


def tools():
    choice = ask("What is the weather in Paris?", **TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and call.id, call
    check_city(call.function.arguments)


def tools_streamed():
    chunks = list(ask("What is the weather in Paris?", stream=True, **TOOLS))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert call.function.name == "weather" and call.id, call
    check_city(call.function.arguments)


def json_schema():
    answer = ask("Paris has two million people. Give city and population.",
                 response_format=City, max_tokens=200, temperature=0)
    City.model_validate_json(answer.choices[0].message.content)


def logprobs():
    choice = ask(QUESTION, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content, choice


def n():
    answer = ask(LONGER, n=3, seed=7, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer


def embeddings():
    answer = litellm.embedding(model=NAME, input=TEXTS, api_base=BASE_URL, api_key=API_KEY, encoding_format="float")
    check_vectors([one["embedding"] for one in answer.data])


def completions():
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", max_tokens=8,
        temperature=0, api_base=BASE_URL, api_key=API_KEY)
    assert "Paris" in answer.choices[0].text, answer


def models():
    names = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=BASE_URL.removesuffix("/v1"), api_key=API_KEY)
    assert any(name.endswith(MODEL) for name in names), names


def bad_key():
    refused(litellm.AuthenticationError, lambda: ask(QUESTION, key=WRONG_KEY, max_tokens=1), 401)


def budget():
    # This client has no exception of its own for a 403 that is not about a key.
    error = refused(litellm.APIError, lambda: ask(QUESTION, key=BUDGET_KEY, max_tokens=4), 403)
    assert "TRM" in str(error), error


def cancel():
    stream = ask(LONGER, stream=True, max_tokens=ENDLESS_TOKENS, logit_bias=ENDLESS_BIAS)
    next(chunk for chunk in stream if chunk.choices[0].delta.content)
    frees_the_node(stream.completion_stream.close)


tell("LiteLLM", version("litellm"), {
    "chat": chat, "stream": stream, "tools": tools, "tools streamed": tools_streamed,
    "json_schema": json_schema, "logprobs": logprobs, "n": n, "embeddings": embeddings,
    "completions": completions, "models": models, "bad key": bad_key, "budget": budget,
    "cancel": cancel,
})
