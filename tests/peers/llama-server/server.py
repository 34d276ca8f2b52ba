"""llama.cpp's own server, from a wheel that has it built in.

server.py MODEL THREADS SEQUENCES CONTEXT_TOKENS [embeddings]

Each of the sequences has so many tokens of context; no prompt is kept. With `embeddings` it makes
vectors too, the mean over a text's tokens. Prints `listening PORT`, and
serves until its standard input is closed.
"""

import sys

import xllamacpp

model, threads, sequences, context_tokens = sys.argv[1], *map(int, sys.argv[2:5])

params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = 0
params.cpuparams.n_threads = threads
params.cpuparams_batch.n_threads = threads
params.n_parallel = sequences
params.n_ctx = sequences * context_tokens
params.cont_batching = True
params.cache_prompt = False
params.cache_ram_mib = 0
params.n_gpu_layers = 0
params.use_jinja = True
if "embeddings" in sys.argv[5:]:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN

server = xllamacpp.Server(params)
print("listening", server.listening_address.rsplit(":", 1)[-1].rstrip("/"), flush=True)
sys.stdin.read()
