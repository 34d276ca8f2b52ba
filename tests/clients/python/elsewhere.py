"""openai-python against a node whose engine is llama.cpp's own server.

`cargo xtask test` starts both and sets OPENAI_BASE_URL, OPENAI_API_KEY and CLIENT_MODEL.
"""

import json
import os
import urllib.request

import openai

from client import CLOCK, LONGER, QUESTION, WEATHER, a_stream_says_the_same_as_one_answer, ask, check_x_tirami
from client import a_chat_is_answered_and_metered, a_stop_string_ends_the_answer_before_it, client


def a_chat_with_tools_calls_and_results_is_understood():
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    options = {"tools": [WEATHER, CLOCK], "temperature": 0, "max_completion_tokens": 60}
    choice = ask(question, **options).choices[0]
    for call in choice.message.tool_calls or []:
        json.loads(call.function.arguments)
    assert choice.message.content or choice.message.tool_calls, choice
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "sunny"}]
    after = ask(question + turns, tools=[WEATHER], max_tokens=24)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls"), after


def a_call_that_the_server_was_told_to_make_is_made_or_costs_nothing():
    """llama-server does not make every model keep to tool_choice."""
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    before = balance()
    try:
        choice = ask(question, tools=[CLOCK], tool_choice="required", temperature=0, max_tokens=60).choices[0]
    except openai.InternalServerError as error:
        assert error.body["code"] in ("engine_failed", "engine_broke_off"), error.body
        assert balance() == before, "nothing was delivered, and something was charged"
        return
    assert [call.function.name for call in choice.message.tool_calls][0] == "clock", choice


def balance():
    return client.get("/tirami/balance", cast_to=object)["effective_balance"]


def a_schema_is_followed():
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    answer = ask(QUESTION, response_format=form, temperature=0, max_tokens=40)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Rome"), answer


def tokens_are_counted_with_the_models_own_vocabulary():
    answer = ask(LONGER, temperature=0, max_tokens=12)
    assert 10 <= answer.usage.completion_tokens <= 12, answer.usage
    assert answer.system_fingerprint == "openai", answer
    check_x_tirami(answer.model_extra["x_tirami"])


def a_model_without_its_file_is_sold_by_its_shape_and_counted_by_bytes():
    answer = client.chat.completions.create(model="told", messages=LONGER, temperature=0, max_tokens=12)
    text = answer.choices[0].message.content
    assert text and answer.usage.completion_tokens == -(-len(text.encode()) // 4), answer
    assert answer.usage.prompt_tokens >= sum(len(m["content"]) for m in LONGER) // 4, answer.usage
    # Two FLOP for each weight and token, a TRM for 10**9 of them.
    tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert abs(answer.model_extra["x_tirami"]["trm_cost"] - tokens * 0.27) < 0.001, answer
    assert client.models.retrieve("told").model_extra["x_tirami"]["context_tokens"] == 2048


MODEL = os.environ["CLIENT_MODEL"]
PARIS = "The capital of France is"


# The API's pieces have `finish_reason: null` until the last, which this client's own types forbid.
lenient = openai.OpenAI(max_retries=0, timeout=120)


def complete(prompt, by=client, **options):
    return by.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=6, **options)


def tokens_of(text):
    url = os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/tokenize"
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"model": MODEL, "prompt": text}).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def a_text_and_its_tokens_are_continued_whole_and_streamed():
    whole = complete(PARIS)
    text = whole.choices[0].text
    assert "Paris" in text, whole
    tokens = tokens_of(PARIS)
    assert whole.usage.prompt_tokens == len(tokens) and 1 <= whole.usage.completion_tokens <= 6, whole.usage
    check_x_tirami(whole.model_extra["x_tirami"])
    assert complete(tokens).choices[0].text == text
    pieces = complete(PARIS, by=lenient, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text
    assert complete(PARIS, stop="Paris").choices[0].text == text.split("Paris")[0]
    told = client.completions.create(model="told", prompt=PARIS, temperature=0, max_tokens=6)
    assert told.usage.prompt_tokens == -(-len(PARIS) // 4), told.usage


def texts_become_vectors_that_are_paid_by_the_token():
    texts = [PARIS, "Paris is the capital of France", "A recipe for pancakes"]
    answer = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert answer.usage.prompt_tokens == sum(len(tokens_of(text)) for text in texts), answer.usage
    check_x_tirami(answer.model_extra["x_tirami"])
    one, same, other = (list(map(float, one.embedding)) for one in answer.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(one) == 576 and abs(dot(one, one) - 1) < 1e-3, one[:8]
    assert dot(one, same) > dot(one, other)
    again = client.embeddings.create(model=MODEL, input=tokens_of(PARIS), encoding_format="float")
    assert dot(again.data[0].embedding, one) > 0.999
    short = client.embeddings.create(model=MODEL, input=PARIS, dimensions=8, encoding_format="float").data[0].embedding
    assert len(short) == 8 and abs(dot(short, short) - 1) < 1e-3, short


def what_such_servers_do_not_have_in_common_is_refused():
    for options in ({"logprobs": True}, {"logit_bias": {"5": 1}}):
        try:
            ask(QUESTION, max_tokens=4, **options)
        except openai.BadRequestError:
            continue
        raise AssertionError(f"{options} was not refused")
    calls = (
        lambda: complete("def f(", suffix="return 1"),
        lambda: complete(PARIS, logprobs=1),
        lambda: client.completions.create(model="told", prompt=tokens_of(PARIS)),
        lambda: client.embeddings.create(model="told", input=PARIS),
    )
    for call in calls:
        before = balance()
        try:
            answer = call()
        except openai.BadRequestError:
            assert balance() == before, "it was refused, and something was charged"
            continue
        raise AssertionError(f"it was not refused: {answer}")


if __name__ == "__main__":
    assert client.models.retrieve(os.environ["CLIENT_MODEL"])
    for check in (
        a_chat_is_answered_and_metered,
        a_stream_says_the_same_as_one_answer,
        a_stop_string_ends_the_answer_before_it,
        a_chat_with_tools_calls_and_results_is_understood,
        a_call_that_the_server_was_told_to_make_is_made_or_costs_nothing,
        a_schema_is_followed,
        tokens_are_counted_with_the_models_own_vocabulary,
        a_model_without_its_file_is_sold_by_its_shape_and_counted_by_bytes,
        a_text_and_its_tokens_are_continued_whole_and_streamed,
        texts_become_vectors_that_are_paid_by_the_token,
        what_such_servers_do_not_have_in_common_is_refused,
    ):
        check()
        print(f"  ok       openai-python {openai.__version__}, llama-server: {check.__name__}", flush=True)
