"""What `transformers` makes of a Hugging Face folder: the logits of some ids, one JSON list of rows in f32; what ends an
answer; and the ids of a conversation that awaits its next answer."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder, ids, messages = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
stop = GenerationConfig.from_pretrained(folder).eos_token_id
tokenizer = AutoTokenizer.from_pretrained(folder)
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
print(
    json.dumps(
        {
            "logits": logits.flatten().tolist(),
            "stop": stop if isinstance(stop, list) else [stop],
            "chat": tokenizer(text, add_special_tokens=False)["input_ids"],
        }
    )
)
