"""Completions and responses as a program written for openai-python uses them, parsed strictly.

`cargo xtask test` starts the node and sets OPENAI_BASE_URL, OPENAI_API_KEY and CLIENT_MODEL.
"""

import json
import os

import openai

MODEL = os.environ["CLIENT_MODEL"]
QUESTION = "What is the capital of France? Answer in one sentence."
LONGER = "Describe a lighthouse in three sentences."
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "description": "Tells the weather of a city.", "parameters": CITY, "strict": True}

# Every field of every answer has the type that the client declares for it.
client = openai.OpenAI(max_retries=0, timeout=120, _strict_response_validation=True)
# The client declares that a piece of a continued text always says why it ended, which none does.
loose = openai.OpenAI(max_retries=0, timeout=120)


def complete(prompt, **options):
    chosen = loose if options.get("stream") else client
    return chosen.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, **options})


def respond(asked, **options):
    return client.responses.create(model=MODEL, input=asked, **{"temperature": 0, **options})


def a_text_is_continued():
    answer = complete("The capital of France is", max_tokens=8, logprobs=2)
    (choice,) = answer.choices
    assert "Paris" in choice.text and choice.finish_reason == "length", answer
    likely = choice.logprobs
    assert "".join(likely.tokens) == choice.text and likely.text_offset[0] == 0, likely
    assert all(token in top for token, top in zip(likely.tokens, likely.top_logprobs)), likely
    assert answer.usage.completion_tokens == 8 and answer.model_extra["x_tirami"]["trm_cost"] > 0
    options = {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(complete("The capital of France is", **options))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == choice.text
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in (chunks[-1].usage, answer.usage)]
    assert counts[0] == counts[1], chunks[-1]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def several_texts_are_continued_at_once():
    texts = ["1, 2, 3,", "a, b, c,"]
    answer = complete(texts, max_tokens=4, n=2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3], answer
    alone = [complete(text, max_tokens=4).choices[0].text for text in texts]
    assert [answer.choices[0].text, answer.choices[2].text] == alone, answer
    echoed = complete(texts[0], max_tokens=4, echo=True).choices[0].text
    assert echoed == texts[0] + alone[0], echoed
    try:
        complete("def f(", suffix="return 1")
    except openai.BadRequestError as error:
        assert error.param == "suffix", error.body
    else:
        raise AssertionError("this model has no tokens for a gap")


def a_response_is_the_same_whole_and_streamed():
    whole = respond(LONGER, max_output_tokens=24)
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 24 and whole.model_extra["x_tirami"]["trm_cost"] > 0
    with client.responses.stream(model=MODEL, input=LONGER, temperature=0, max_output_tokens=24) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text, text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text
    answer = respond(QUESTION, max_output_tokens=40, metadata={"a": "b"})
    assert "Paris" in answer.output_text and answer.status == "completed", answer
    assert answer.metadata == {"a": "b"}
    include = ["message.output_text.logprobs"]
    likely = respond(QUESTION, max_output_tokens=6, top_logprobs=2, include=include).output[0].content[0]
    assert likely.logprobs and all(len(one.top_logprobs) == 2 for one in likely.logprobs), likely


def a_response_goes_on_from_another():
    first = respond("My name is Ada. Say hello to me.", max_output_tokens=24, store=True)
    second = respond("What is my name?", previous_response_id=first.id, max_output_tokens=24)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.total_tokens, (first, second)
    assert client.responses.retrieve(second.id).output_text == second.output_text
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.role for item in items] == ["user", "assistant", "user"], items
    client.responses.delete(first.id)
    for call in (
        lambda: client.responses.retrieve(first.id),
        lambda: respond("And?", previous_response_id=first.id),
    ):
        try:
            call()
        except (openai.NotFoundError, openai.BadRequestError) as error:
            assert error.code in ("unknown_response", "previous_response_not_found"), error.body
        else:
            raise AssertionError("it was deleted")


def a_response_calls_functions():
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    first = respond("What is the weather in Paris?", max_output_tokens=200, **options)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert list(json.loads(call.arguments)) == ["city"] and call.name == "weather", call
    events = list(respond("What is the weather in Paris?", max_output_tokens=200, stream=True, **options))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments, deltas
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain, 12 degrees."}
    after = client.responses.create(
        model=MODEL, previous_response_id=first.id, input=[result], max_output_tokens=24)
    assert after.status in ("completed", "incomplete") and after.output_text, after
    schema = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    formed = respond("Name a city.", text={"format": schema}, max_output_tokens=60)
    assert list(json.loads(formed.output_text)) == ["city"], formed


if __name__ == "__main__":
    for check in (
        a_text_is_continued,
        several_texts_are_continued_at_once,
        a_response_is_the_same_whole_and_streamed,
        a_response_goes_on_from_another,
        a_response_calls_functions,
    ):
        check()
        print(f"  ok       openai-python {openai.__version__}: {check.__name__}", flush=True)
