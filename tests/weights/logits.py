"""Logits of a Hugging Face folder as `transformers` computes them: one JSON list of rows, f32, for the ids given."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
stop = GenerationConfig.from_pretrained(folder).eos_token_id
print(json.dumps({"logits": logits.flatten().tolist(), "stop": stop if isinstance(stop, list) else [stop]}))
