"""What a program written for openai-python does, against a real node with a real model.

`cargo xtask test` starts the node and sets OPENAI_BASE_URL, OPENAI_API_KEY and CLIENT_MODEL.
"""

import json
import os

import openai

MODEL = os.environ["CLIENT_MODEL"]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LONGER = [{"role": "user", "content": "Describe a lighthouse in three sentences."}]

# Every field of every answer has the type that the client declares for it.
client = openai.OpenAI(max_retries=0, timeout=120, _strict_response_validation=True)
# The client declares vectors as lists and asks for base64 without a format.
loose = openai.OpenAI(max_retries=0, timeout=120)


def ask(messages, **options):
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


def check_x_tirami(info):
    assert info["trm_cost"] > 0, info
    assert info["effective_balance"] > 0, info
    assert info["flops"] > 0, info
    assert len(info["trade_id"]) == 64, info
    assert len(info["provider"]) == 64, info
    assert info["route"]["reason"], info


def models_are_listed():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


def a_chat_is_answered_and_metered():
    answer = ask(QUESTION, temperature=0, max_completion_tokens=40)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop", answer
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    check_x_tirami(answer.model_extra["x_tirami"])
    assert answer._request_id


def a_stream_says_the_same_as_one_answer():
    whole = ask(LONGER, temperature=0, max_completion_tokens=48)
    chunks = list(
        ask(
            LONGER,
            temperature=0,
            max_completion_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert len([piece for piece in pieces if piece]) > 10, "the answer came in one piece"
    assert "".join(pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    # The second time its prompt is in the cache, which is told beside the counts.
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in (chunks[-1].usage, whole.usage)]
    assert chunks[-1].choices == [] and counts[0] == counts[1], chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    check_x_tirami(chunks[-1].model_extra["x_tirami"])
    assert len({chunk.id for chunk in chunks}) == 1


def a_stream_without_usage_has_no_usage_chunk():
    chunks = list(ask(QUESTION, temperature=0, max_completion_tokens=8, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    check_x_tirami(chunks[-1].model_extra["x_tirami"])


def a_stop_string_ends_the_answer_before_it():
    whole = ask(LONGER, temperature=0, max_completion_tokens=48).choices[0].message.content
    stop = whole.split()[6]
    for stream in (False, True):
        answer = ask(LONGER, temperature=0, max_completion_tokens=48, stop=[stop], stream=stream)
        if stream:
            chunks = [chunk for chunk in answer if chunk.choices]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert text == whole[: whole.index(stop)], (text, stop)
        assert finish == "stop", finish


def a_seed_gives_the_same_text_twice():
    def text(seed):
        answer = ask(LONGER, temperature=1.0, seed=seed, max_completion_tokens=32)
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert len({text(seed) for seed in (7, 8, 9)}) > 1, "the seed changes nothing"


def a_token_limit_is_exact():
    answer = ask(LONGER, max_tokens=5)
    assert answer.usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"


def tokens_carry_their_log_probabilities():
    options = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    whole = ask(QUESTION, **options).choices[0]
    assert "".join(token.token for token in whole.logprobs.content) == whole.message.content, whole
    for token in whole.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3, token
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
    chunks = [chunk.choices[0] for chunk in ask(QUESTION, stream=True, **options) if chunk.choices]
    tokens = [t for c in chunks if c.logprobs for t in c.logprobs.content]
    assert tokens == whole.logprobs.content, tokens


def sampling_settings_reach_the_engine():
    def text(**options):
        options = {"seed": 5, "max_tokens": 32} | options
        return ask(LONGER, **options).choices[0].message.content

    greedy = text(temperature=0)
    hot = text(temperature=1.8)
    assert hot != greedy
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert text(temperature=1.8, extra_body=extra) == greedy, extra
    assert text(temperature=1.8, top_p=0.0001) == greedy
    assert text(temperature=1.8, extra_body={"typical_p": 0.01}) != hot
    assert text(temperature=0, presence_penalty=2) != greedy
    assert text(temperature=0, frequency_penalty=2) != greedy
    assert text(temperature=0, extra_body={"repeat_penalty": 1.5}) != greedy
    tokens = client.with_options(base_url=str(client.base_url).removesuffix("v1/")).post(
        "/tokenize", body={"model": MODEL, "content": greedy}, cast_to=object
    )["tokens"]
    other = text(temperature=0, logit_bias={str(token): -100 for token in tokens})
    assert other.split()[0] != greedy.split()[0], other
    form = ask([{"role": "user", "content": "Answer with a JSON object about Paris."}],
               response_format={"type": "json_object"}, temperature=0, max_tokens=200).choices[0]
    assert form.message.content.lstrip().startswith("{"), form
    assert form.finish_reason == "length" or isinstance(json.loads(form.message.content), dict), form


def several_answers_come_at_once():
    answer = ask(LONGER, n=3, seed=7, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer
    assert len({choice.message.content for choice in answer.choices}) > 1, answer
    assert len(answer.model_extra["x_tirami"]["trade_ids"]) == 3, answer
    texts = {0: "", 1: "", 2: ""}
    for chunk in ask(LONGER, n=3, seed=7, max_tokens=12, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in answer.choices], texts


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"$ref": "#/$defs/Unit"},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"Unit": {"enum": ["celsius", "fahrenheit"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}


def check_call(call):
    assert call.id and call.type == "function", call
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert sorted(arguments) == ["city", "unit"] and len(arguments["city"]) <= 20, call
        assert arguments["unit"] in ("celsius", "fahrenheit"), call
    else:
        assert call.function.name == "clock" and arguments == {}, call


def tools_are_called_with_valid_arguments():
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    for seed in range(4):
        options = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": seed, "temperature": 1.2}
        options |= {"parallel_tool_calls": False, "max_completion_tokens": 200}
        choice = ask(question, **options).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        (call,) = choice.message.tool_calls
        check_call(call)
        parts = {"id": None, "name": None, "arguments": ""}
        for chunk in ask(question, stream=True, **options):
            for delta in chunk.choices[0].delta.tool_calls or []:
                assert delta.index == 0, delta
                parts["id"] = parts["id"] or delta.id
                parts["name"] = parts["name"] or delta.function.name
                parts["arguments"] += delta.function.arguments
        assert parts["id"] and parts["name"] == call.function.name, parts
        assert parts["arguments"] == call.function.arguments, parts
        assert chunk.choices[0].finish_reason == "tool_calls", chunk
    named = {"type": "function", "function": {"name": "clock"}}
    # Whoever names a tool wants one call of it, and says no more.
    message = ask(question, tools=[WEATHER, CLOCK], tool_choice=named).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["clock"], message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "noon"}
    after = ask([*question, message.model_dump(), result], tools=[CLOCK], max_tokens=16)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls"), after
    plain = ask(question, tools=[WEATHER], tool_choice="none", max_tokens=8).choices[0].message
    assert plain.content and not plain.tool_calls, plain
    with client.chat.completions.stream(
        model=MODEL, messages=question, tools=[WEATHER | {"function": WEATHER["function"] | {"strict": True}}],
        tool_choice="required", parallel_tool_calls=False, max_completion_tokens=200,
    ) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls
    check_call(final[0])


def texts_become_vectors():
    texts = ["The cat sleeps on the sofa.", "A kitten is sleeping on the couch.", "fn main() { 40 + 2 }"]
    answer = loose.embeddings.create(model=MODEL, input=texts)
    cat, kitten, code = [one.embedding for one in answer.data]
    likeness = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))
    assert abs(likeness(cat, cat) - 1) < 1e-3 and likeness(cat, kitten) > likeness(cat, code)
    assert answer.usage.prompt_tokens > 10, answer.usage
    check_x_tirami(answer.model_extra["x_tirami"])
    short = client.embeddings.create(model=MODEL, input=texts[0], dimensions=64, encoding_format="float")
    assert len(short.data[0].embedding) == 64
    error = None
    try:
        client.embeddings.create(model=MODEL, input=texts[0], dimensions=4096)
    except openai.BadRequestError as refused:
        error = refused
    assert error is not None and error.param == "dimensions", error


def refusals_are_typed():
    def refused(kind, status, call):
        try:
            call()
        except kind as error:
            assert error.status_code == status, error
            assert error.body["message"] and error.body["type"], error.body
            assert error.request_id, error
            return error
        raise AssertionError(f"expected {kind.__name__}")

    stranger = openai.OpenAI(api_key="tirami_00000000_wrong", max_retries=0)
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list())
    missing = {"model": "no-such-model", "messages": QUESTION}
    refused(
        openai.NotFoundError, 404, lambda: client.chat.completions.create(**missing)
    )
    refused(openai.BadRequestError, 400, lambda: ask([]))
    error = refused(openai.BadRequestError, 400, lambda: ask(QUESTION, temperature=-1))
    assert error.param == "temperature", error.body
    refused(openai.BadRequestError, 400, lambda: ask(QUESTION, max_tokens=-5))
    for keyword, kind in (
        ("minimum", {"type": "number", "minimum": 0.5}),
        (None, {"type": "number", "minimum": 0, "maximum": 1}),
        ("format", {"type": "string", "format": "ipv6"}),
        ("minProperties", {"type": "object", "minProperties": 1}),
        (None, {"type": "array", "items": {"$ref": "#"}}),
    ):
        schema = {"type": "object", "properties": {"a": kind}}
        for strict in (True, False):
            form = {"type": "json_schema", "json_schema": {"name": "a", "strict": strict, "schema": schema}}
            asked = lambda: ask(QUESTION, response_format=form, max_tokens=4)
            if strict and keyword:
                error = refused(openai.BadRequestError, 400, asked)
                message = error.body["message"]
                assert error.param == "response_format", error.body
                assert keyword in message and "#/properties/a" in message, message
            else:
                asked()
    too_long = [{"role": "user", "content": "word " * 200_000}]
    refused(openai.BadRequestError, 400, lambda: ask(too_long))


if __name__ == "__main__":
    for check in (
        models_are_listed,
        a_chat_is_answered_and_metered,
        a_stream_says_the_same_as_one_answer,
        a_stream_without_usage_has_no_usage_chunk,
        a_stop_string_ends_the_answer_before_it,
        a_seed_gives_the_same_text_twice,
        a_token_limit_is_exact,
        tokens_carry_their_log_probabilities,
        sampling_settings_reach_the_engine,
        several_answers_come_at_once,
        tools_are_called_with_valid_arguments,
        texts_become_vectors,
        refusals_are_typed,
    ):
        check()
        print(f"  ok       openai-python {openai.__version__}: {check.__name__}", flush=True)
