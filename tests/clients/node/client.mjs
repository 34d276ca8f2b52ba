// What a program written for openai-node does, against a real node with a real model.
//
// `cargo xtask test` starts the node and sets OPENAI_BASE_URL, OPENAI_API_KEY and CLIENT_MODEL.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { VERSION } from 'openai/version';

import { leaveAStream } from './leaving.mjs';

const model = process.env.CLIENT_MODEL;
const question = [{ role: 'user', content: 'What is the capital of France? Answer in one sentence.' }];
const longer = [{ role: 'user', content: 'Describe a lighthouse in three sentences.' }];
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });

const ask = (messages, options = {}) =>
  client.chat.completions.create({ model, messages, ...options });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  return {
    chunks,
    pieces: choices.map((choice) => choice.delta.content ?? ''),
    finish: choices.at(-1).finish_reason,
  };
}

function checkTirami(info) {
  assert.ok(info.trm_cost > 0 && info.effective_balance > 0 && info.flops > 0);
  assert.equal(info.trade_id.length, 64);
  assert.equal(info.provider.length, 64);
  assert.ok(info.route.reason);
}

async function modelsAreListed() {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model));
  assert.equal((await client.models.retrieve(model)).object, 'model');
}

async function aChatIsAnsweredAndMetered() {
  const answer = await ask(question, { temperature: 0, max_completion_tokens: 40 });
  assert.match(answer.choices[0].message.content, /Paris/);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  assert.ok(prompt_tokens > 0 && completion_tokens > 0);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
  checkTirami(answer.x_tirami);
  assert.ok(answer._request_id);
}

async function aStreamSaysTheSameAsOneAnswer() {
  const options = { temperature: 0, max_completion_tokens: 48 };
  const whole = await ask(longer, options);
  const streaming = { ...options, stream: true, stream_options: { include_usage: true } };
  const { chunks, pieces, finish } = await collect(await ask(longer, streaming));
  assert.ok(pieces.filter((piece) => piece).length > 10, 'the answer came in one piece');
  assert.equal(pieces.join(''), whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
  assert.deepEqual(chunks.at(-1).choices, []);
  for (const name of ["prompt_tokens", "completion_tokens", "total_tokens"]) {
    assert.equal(chunks.at(-1).usage[name], whole.usage[name]);
  }
  checkTirami(chunks.at(-1).x_tirami);
}

async function aStopStringEndsTheAnswerBeforeIt() {
  const options = { temperature: 0, max_completion_tokens: 48 };
  const whole = (await ask(longer, options)).choices[0].message.content;
  const stop = whole.split(/\s+/)[6];
  const cut = await ask(longer, { ...options, stop });
  assert.equal(cut.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
  assert.equal(cut.choices[0].finish_reason, 'stop');
}

async function aSeedGivesTheSameTextTwice() {
  const options = { temperature: 1, seed: 7, max_completion_tokens: 32 };
  const [first, second] = [await ask(longer, options), await ask(longer, options)];
  assert.equal(first.choices[0].message.content, second.choices[0].message.content);
}

async function severalAnswersComeWithTheirLogProbabilities() {
  const options = { n: 2, seed: 7, max_completion_tokens: 6, logprobs: true, top_logprobs: 2 };
  const answer = await ask(longer, options);
  assert.equal(answer.choices.length, 2);
  assert.equal(answer.x_tirami.trade_ids.length, 2);
  const texts = ['', ''];
  for await (const chunk of await ask(longer, { ...options, stream: true })) {
    texts[chunk.choices[0].index] += chunk.choices[0].delta.content ?? '';
  }
  for (const { index, message, logprobs } of answer.choices) {
    assert.equal(texts[index], message.content);
    assert.ok(logprobs.content.every((one) => one.logprob <= 0 && one.top_logprobs.length === 2));
  }
}

async function toolsAreCalledWithValidArguments() {
  const parameters = {
    type: 'object',
    properties: { n: { type: 'integer', minimum: 1, maximum: 9 } },
    required: ['n'],
    additionalProperties: false,
  };
  const tools = [{ type: 'function', function: { name: 'roll', parameters } }];
  const options = { tools, tool_choice: 'required', parallel_tool_calls: false, seed: 3 };
  const { message, finish_reason } = (await ask(question, options)).choices[0];
  assert.equal(finish_reason, 'tool_calls');
  const { n } = JSON.parse(message.tool_calls[0].function.arguments);
  assert.ok(Number.isInteger(n) && n >= 1 && n <= 9);
  const runner = client.chat.completions.stream({ model, messages: question, ...options });
  const [call] = (await runner.finalMessage()).tool_calls;
  assert.equal(call.function.arguments, message.tool_calls[0].function.arguments);
  const result = { role: 'tool', tool_call_id: message.tool_calls[0].id, content: 'six' };
  const next = await ask([...question, message, result], { tools, max_completion_tokens: 8 });
  assert.ok(next.choices[0].finish_reason);
}

async function leavingAStreamFreesTheNode() {
  await leaveAStream(client, (options) => ask(longer, options));
}

async function refusalsAreTyped() {
  const refused = (kind, status, call) =>
    assert.rejects(call, (error) => {
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.status, status);
      assert.ok(error.type && error.message && error.requestID);
      return true;
    });
  const stranger = new OpenAI({ apiKey: 'tirami_00000000_wrong', maxRetries: 0 });
  await refused(OpenAI.AuthenticationError, 401, () => stranger.models.list().then());
  await refused(OpenAI.NotFoundError, 404, () => ask(question, { model: 'no-such-model' }));
  await refused(OpenAI.BadRequestError, 400, () => ask([]));
  await refused(OpenAI.BadRequestError, 400, () => ask(question, { temperature: 'hot' }));
}

for (const check of [
  modelsAreListed,
  aChatIsAnsweredAndMetered,
  aStreamSaysTheSameAsOneAnswer,
  aStopStringEndsTheAnswerBeforeIt,
  aSeedGivesTheSameTextTwice,
  severalAnswersComeWithTheirLogProbabilities,
  toolsAreCalledWithValidArguments,
  leavingAStreamFreesTheNode,
  refusalsAreTyped,
]) {
  await check();
  console.log(`  ok       openai-node ${VERSION}: ${check.name}`);
}
