// The rows of openai-node, told as `../conformance/matrix.py` tells those of the Python clients.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { VERSION } from 'openai/version';

import { leaveAStream } from './leaving.mjs';

const model = process.env.CLIENT_MODEL;
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const user = (content) => [{ role: 'user', content }];
const QUESTION = 'What is the capital of France? Answer in one sentence.';
const LONGER = 'Describe a lighthouse in three sentences.';
const TEXTS = ['The cat sleeps on the sofa.', 'A kitten is sleeping on the couch.', 'fn main() { 40 + 2 }'];

const ask = (text, options = {}) =>
  client.chat.completions.create({ model, messages: user(text), ...options });

const CITY = {
  type: 'object',
  properties: {
    city: { type: 'string', maxLength: 20 },
    unit: { type: 'string', enum: ['celsius', 'fahrenheit'] },
  },
  required: ['city', 'unit'],
  additionalProperties: false,
};
const WEATHER = { type: 'function', function: { name: 'weather', parameters: CITY } };
const TOOLS = { tools: [WEATHER], tool_choice: 'required', parallel_tool_calls: false, seed: 3 };

function checkCity(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value).sort(), ['city', 'unit']);
  assert.ok(value.city.length <= 20 && ['celsius', 'fahrenheit'].includes(value.unit));
}

async function refused(kind, status, call) {
  await assert.rejects(call, (error) => {
    assert.equal(error.constructor, kind, `${error}`);
    assert.equal(error.status, status);
    assert.ok(error.message);
    return true;
  });
}

const calls = {
  async chat() {
    const answer = await ask(QUESTION, { temperature: 0, max_completion_tokens: 40 });
    assert.match(answer.choices[0].message.content, /Paris/);
    assert.equal(answer.choices[0].finish_reason, 'stop');
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  },
  async stream() {
    const options = { temperature: 0, max_completion_tokens: 40 };
    const whole = await ask(LONGER, options);
    let text = '';
    let usage;
    const streaming = { ...options, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await ask(LONGER, streaming)) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    for (const name of ['prompt_tokens', 'completion_tokens', 'total_tokens']) {
      assert.equal(usage[name], whole.usage[name]);
    }
  },
  async tools() {
    const { message, finish_reason } = (await ask('What is the weather in Paris?', TOOLS)).choices[0];
    assert.equal(finish_reason, 'tool_calls');
    assert.equal(message.tool_calls[0].function.name, 'weather');
    checkCity(message.tool_calls[0].function.arguments);
  },
  async 'tools streamed'() {
    const messages = user('What is the weather in Paris?');
    const runner = client.chat.completions.stream({ model, messages, ...TOOLS });
    const [call] = (await runner.finalMessage()).tool_calls;
    assert.equal(call.function.name, 'weather');
    checkCity(call.function.arguments);
  },
  async json_schema() {
    const schema = {
      type: 'object',
      properties: { city: { type: 'string' }, population: { type: 'integer' } },
      required: ['city', 'population'],
      additionalProperties: false,
    };
    const response_format = { type: 'json_schema', json_schema: { name: 'city', schema, strict: true } };
    const options = { response_format, max_completion_tokens: 200, temperature: 0 };
    const answer = await ask('Paris has two million people. Give city and population.', options);
    const value = JSON.parse(answer.choices[0].message.content);
    assert.ok(typeof value.city === 'string' && Number.isInteger(value.population));
  },
  async logprobs() {
    const options = { temperature: 0, max_tokens: 6, logprobs: true, top_logprobs: 3 };
    const { logprobs, message } = (await ask(QUESTION, options)).choices[0];
    assert.equal(logprobs.content.map((one) => one.token).join(''), message.content);
    assert.ok(logprobs.content.every((one) => one.logprob <= 0 && one.top_logprobs.length === 3));
  },
  async n() {
    const answer = await ask(LONGER, { n: 3, seed: 7, max_tokens: 8 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: TEXTS });
    const [cat, kitten, code] = answer.data.map((one) => one.embedding);
    const likeness = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
    assert.equal(cat.length, 576);
    assert.ok(Math.abs(likeness(cat, cat) - 1) < 1e-3);
    assert.ok(likeness(cat, kitten) > likeness(cat, code));
    const short = await client.embeddings.create({ model, input: TEXTS[0], dimensions: 64 });
    assert.equal(short.data[0].embedding.length, 64);
  },
  async completions() {
    const options = { model, prompt: 'The capital of France is', max_tokens: 8, temperature: 0 };
    const answer = await client.completions.create(options);
    assert.match(answer.choices[0].text, /Paris/);
    let text = '';
    for await (const piece of await client.completions.create({ ...options, stream: true })) {
      text += piece.choices[0]?.text ?? '';
    }
    assert.equal(text, answer.choices[0].text);
  },
  async models() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    assert.ok(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).object, 'model');
  },
  async 'bad key'() {
    const stranger = new OpenAI({ apiKey: 'tirami_00000000_wrong', maxRetries: 0 });
    await refused(OpenAI.AuthenticationError, 401, () => stranger.models.list().then());
  },
  async budget() {
    const poor = new OpenAI({ apiKey: process.env.BUDGET_API_KEY, maxRetries: 0 });
    const request = { model, messages: user(QUESTION), max_tokens: 4 };
    await refused(OpenAI.PermissionDeniedError, 403, () => poor.chat.completions.create(request));
  },
  async cancel() {
    await leaveAStream(client, (options) => ask(LONGER, options));
  },
};

for (const [call, run] of Object.entries(calls)) {
  let detail = '';
  const passed = await run().then(
    () => true,
    (error) => ((detail = `${error.name}: ${error.message}`.slice(0, 600)), false),
  );
  console.log(JSON.stringify({ client: 'openai-node', version: VERSION, call, passed, detail }));
}
