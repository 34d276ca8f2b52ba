"""The rows of langchain-openai."""

from importlib.metadata import version

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_openai.chat_models.base import OpenAIAuthenticationError, OpenAIPermissionDeniedError
from matrix import *
from pydantic import BaseModel


class City(BaseModel):
    """A city."""

    city: str
    population: int




def model(**options):
    return ChatOpenAI(model=MODEL, max_retries=0, **options)


def chat():
    answer = model(temperature=0, max_completion_tokens=40).invoke(QUESTION)
    assert "Paris" in answer.content, answer
    assert answer.response_metadata["finish_reason"] == "stop", answer
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0, usage


def stream():
    asked = model(temperature=0, max_completion_tokens=40, stream_usage=True)
    whole = asked.invoke(LONGER)
    chunks = list(asked.stream(LONGER))
    assert "".join(chunk.content for chunk in chunks) == whole.content, chunks
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"], total


def bound():
    asked = model(seed=3, max_completion_tokens=200)
    return asked.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False)


def tools():
    answer = bound().invoke("What is the weather in Paris?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and call["id"] and not answer.invalid_tool_calls, answer
    check_city(call["args"])


def tools_streamed():
    total = None
    for chunk in bound().stream("What is the weather in Paris?"):
        total = chunk if total is None else total + chunk
    (call,) = total.tool_calls
    assert call["name"] == "weather" and call["id"] and not total.invalid_tool_calls, total
    check_city(call["args"])


def json_schema():
    asked = model(temperature=0, max_completion_tokens=200)
    asked = asked.with_structured_output(City, method="json_schema", strict=True)
    assert isinstance(asked.invoke("Paris has two million people. Give city and population."), City)


def logprobs():
    answer = model(temperature=0, max_completion_tokens=6, logprobs=True, top_logprobs=3).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == answer.content, content


def n():
    answer = model(n=3, seed=7, max_completion_tokens=8).generate([[HumanMessage(LONGER)]])
    assert len(answer.generations[0]) == 3, answer


def embeddings():
    # Its own cutting of texts knows only OpenAI's tokens; without it the text is sent as it is.
    asked = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, max_retries=0)
    check_vectors(asked.embed_documents(TEXTS))
    assert len(asked.embed_query(TEXTS[0])) == 576


def completions():
    asked = OpenAI(model=MODEL, temperature=0, max_tokens=8, max_retries=0)
    assert "Paris" in asked.invoke("The capital of France is")
    assert "Paris" in "".join(asked.stream("The capital of France is"))


def bad_key():
    refused(OpenAIAuthenticationError, lambda: model(api_key=WRONG_KEY).invoke(QUESTION), 401)


def budget():
    asked = model(api_key=BUDGET_KEY, max_completion_tokens=4)
    refused(OpenAIPermissionDeniedError, lambda: asked.invoke(QUESTION), 403)


def cancel():
    stream = model(max_completion_tokens=ENDLESS_TOKENS, logit_bias=ENDLESS_BIAS).stream(LONGER)
    next(chunk for chunk in stream if chunk.content)
    frees_the_node(stream.close)


tell("langchain-openai", version("langchain-openai"), {
    "chat": chat, "stream": stream, "tools": tools, "tools streamed": tools_streamed,
    "json_schema": json_schema, "logprobs": logprobs, "n": n, "embeddings": embeddings,
    "completions": completions, "bad key": bad_key, "budget": budget, "cancel": cancel,
})
