"""What a program written for openai-python does, against a real node with a real model.

`cargo xtask test` starts the node and sets OPENAI_BASE_URL, OPENAI_API_KEY and CLIENT_MODEL.
"""

import os

import openai

MODEL = os.environ["CLIENT_MODEL"]
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LONGER = [{"role": "user", "content": "Describe a lighthouse in three sentences."}]

client = openai.OpenAI(max_retries=0, timeout=120)


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
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage, chunks[-1]
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
        refusals_are_typed,
    ):
        check()
        print(f"  ok       openai-python {openai.__version__}: {check.__name__}", flush=True)
