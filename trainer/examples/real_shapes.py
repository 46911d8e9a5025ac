"""The parts of real_shapes.rs in transformers: python real_shapes.py FOLDER PART, one JSON line."""

import json
import resource
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW_TOKENS, ROUNDS = 256, 16, 3
ROWS, OWN, ANSWER = 4, 96, 32
PROMPTS, SHORTEST, LONGEST, TOKENS = 16, 24, 144, 12
folder, part = sys.argv[1:]
started = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
found = {"load s": time.perf_counter() - started}


def ids(n, seed):
    return [(at * 7919 + seed * 104729) % 50000 for at in range(n)]


def generate():
    prefill, decode = [], []
    prompt = torch.tensor([ids(PROMPT, 1)])
    with torch.no_grad():
        for _ in range(ROUNDS):
            started = time.perf_counter()
            out = model(prompt, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            prefill.append(PROMPT / (time.perf_counter() - started))
            started = time.perf_counter()
            for _ in range(NEW_TOKENS - 1):
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            decode.append((NEW_TOKENS - 1) / (time.perf_counter() - started))
    return {"prefill tokens/s": statistics.median(prefill), "decode tokens/s": statistics.median(decode)}


def answers():
    rows = [ids(SHORTEST + at * (LONGEST - SHORTEST) // (PROMPTS - 1), at) for at in range(PROMPTS)]

    def per_second(batches):
        started = time.process_time()
        for batch in batches:
            longest = max(map(len, batch))
            tokens = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            new = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
            model.generate(tokens, attention_mask=mask, **new)
        return PROMPTS / (time.process_time() - started)

    batched, alone = per_second([rows]), per_second([[row] for row in rows])
    return {"batched prompts/s": batched, "alone prompts/s": alone, "batched / alone": batched / alone}


def train(bf16):
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rows = [ids(OWN, row) + ids(ANSWER, 200 + row) for row in range(ROWS)]
    tokens = torch.tensor(rows)
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state[:, OWN - 1 :]
            logits = model.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, OWN:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - started)
    step = statistics.median(times[1:])
    return {"step s": step, "tokens/s": ROWS * (OWN + ANSWER - 1) / step}


if part == "generate":
    found = generate()
elif part == "answers":
    found = answers()
elif part != "load":
    found = train(part.endswith("bf16"))
found["peak GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps(found))
