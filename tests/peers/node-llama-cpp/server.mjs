// A chat server around node-llama-cpp as its users write one: a pool of sequences in one context,
// which the library decodes together. Greedy answers, streamed; no prompt is kept.
//
// node server.mjs MODEL THREADS SEQUENCES CONTEXT_TOKENS

import http from "node:http";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [, , modelPath, threads, sequences, contextSize] = process.argv;
const llama = await getLlama({
  gpu: false,
  build: "never",
  usePrebuiltBinaries: true,
  progressLogs: false,
  logLevel: LlamaLogLevel.error,
  maxThreads: Number(threads),
});
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const context = await model.createContext({
  contextSize: Number(contextSize),
  sequences: Number(sequences),
  threads: Number(threads),
});
const free = Array.from({ length: Number(sequences) }, () => context.getSequence());
const waiting = [];

const take = () =>
  free.length > 0 ? free.pop() : new Promise((resolve) => waiting.push(resolve));
const give = (sequence) => {
  const next = waiting.shift();
  if (next) next(sequence);
  else free.push(sequence);
};

// What the model's own template makes of a chat.
const SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
const render = (messages) => {
  const all = messages[0].role === "system" ? messages : [{ role: "system", content: SYSTEM }, ...messages];
  const turns = all.map(({ role, content }) => `<|im_start|>${role}\n${content}<|im_end|>\n`);
  return turns.join("") + "<|im_start|>assistant\n";
};

const answer = async ({ messages, max_tokens: most }, response) => {
  const prompt = model.tokenize(render(messages), true);
  const sequence = await take();
  let count = 0;
  try {
    await sequence.clearHistory();
    response.writeHead(200, { "content-type": "text/event-stream" });
    for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
      if (model.isEogToken(token) || response.destroyed) break;
      const content = model.detokenize([token]);
      const choices = [{ index: 0, delta: { content }, finish_reason: null }];
      response.write(`data: ${JSON.stringify({ choices })}\n\n`);
      if (++count >= most) break;
    }
  } finally {
    give(sequence);
  }
  const usage = { prompt_tokens: prompt.length, completion_tokens: count };
  response.end(`data: ${JSON.stringify({ choices: [], usage })}\n\ndata: [DONE]\n\n`);
};

const server = http.createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  try {
    await answer(JSON.parse(Buffer.concat(parts)), response);
  } catch (error) {
    console.error(error);
    response.destroy();
  }
});
server.listen(0, "127.0.0.1", () => console.log(`listening ${server.address().port}`));
