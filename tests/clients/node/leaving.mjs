// What both programs of openai-node do to leave an answer, and what the node must do then.

import assert from 'node:assert/strict';

// Milliseconds within which the node must have noticed that a client left.
const LEFT_MS = 2_000;
// Without its end tokens the model goes on, for far longer than is waited here.
const ENDLESS = { stream: true, max_completion_tokens: 3000, logit_bias: { 0: -100, 2: -100 } };

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// Begins a stream with `ask`, which adds the options to a question, and leaves it in its middle.
export async function leaveAStream(client, ask) {
  const running = async () => (await client.get('/tirami/status')).engine.running;
  const stream = await ask(ENDLESS);
  const pieces = stream[Symbol.asyncIterator]();
  while (!(await pieces.next()).value.choices[0]?.delta.content);
  await sleep(LEFT_MS);
  assert.equal(await running(), 1, 'the answer ended by itself, so leaving it would show nothing');
  const left = performance.now();
  stream.controller.abort();
  while ((await running()) > 0) {
    assert.ok(performance.now() - left < LEFT_MS, 'the node still answers a client that left');
    await sleep(20);
  }
}
