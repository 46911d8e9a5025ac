"""Times one vanilla training step in PyTorch: python torch_step.py CHECKPOINT_FOLDER BATCH_JSON

Same model, batch, loss (answer tokens only), clipping and AdamW as the trainer's, f32 on the CPU.
"""

import json
import statistics
import sys
import time

import torch
from transformers import LlamaForCausalLM

folder, batch_file = sys.argv[1:]
rows = json.load(open(batch_file))
model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

width = max(len(row["prompt"]) + len(row["answer"]) for row in rows)
ids = torch.zeros(len(rows), width, dtype=torch.long)
labels = torch.full_like(ids, -100)
for i, row in enumerate(rows):
    start, end = len(row["prompt"]), len(row["prompt"]) + len(row["answer"])
    ids[i, :end] = torch.tensor(row["prompt"] + row["answer"])
    labels[i, start:end] = torch.tensor(row["answer"])
kept = labels[:, 1:] != -100


def step():
    hidden = model.model(ids[:, :-1]).last_hidden_state[kept]
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][kept])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


times = []
for round in range(16):
    started = time.perf_counter()
    step()
    if round:
        times.append((time.perf_counter() - started) * 1e3)
print(json.dumps({"median_ms": statistics.median(times), "threads": torch.get_num_threads(), "torch": torch.__version__}))
