#!/usr/bin/env python3
"""The steps of benches/train_step.rs with transformers and PEFT: supervised fine-tuning, all linears, AdamW.

usage: peft_sft.py MODEL_FOLDER [--threads 2] [--rank 16] [--batch 4] [--length 256] [--steps 5] [--dtype float32|bfloat16|autocast]
MODEL_FOLDER is a Hugging Face folder, for the default model the one that tests/fixtures/reference/scripts/convert.py
writes. Needs torch, transformers and peft. Run it and the other on the same quiet machine, one after the other.
"""
import argparse, resource, time

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser()
p.add_argument("model")
for name, default in (("threads", 2), ("rank", 16), ("batch", 4), ("length", 256), ("steps", 5)):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "autocast"], help="autocast: float32 weights, bfloat16 products")
p.add_argument("--cpu-time", action="store_true", help="processor time of the process instead of the wall clock")
p.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
a = p.parse_args()
clock = time.process_time if a.cpu_time else time.perf_counter
torch.set_num_threads(a.threads)
torch.manual_seed(1)
base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16 if a.dtype == "bfloat16" else torch.float32, attn_implementation=a.attention)
linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(base, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, target_modules=linears, task_type="CAUSAL_LM"))
model.train()
params = [q for q in model.parameters() if q.requires_grad]
optimizer = torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0)
vocab = model.config.vocab_size


def step(index):
    ids = torch.tensor([[(n * 7919 + i * 104729) % vocab for i in range(a.length)]
                        for n in range(index * a.batch, (index + 1) * a.batch)])
    first = a.length // 8
    # Only the rows that predict a target go through the head, as in the other program.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.dtype == "autocast"):
        hidden = model.base_model.model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[:, first - 1:]
        logits = model.base_model.model.lm_head(hidden).float()
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, first:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    return float(loss.detach())


step(0)
times = []
for s in range(1, a.steps + 1):
    begun = clock()
    step(s)
    times.append(clock() - begun)
median = sorted(times)[len(times) // 2]
rows = a.batch * (a.length - 1)
print(f"{a.dtype}, {a.attention}, {a.threads} threads, rank {a.rank}: {rows / median:.0f} tokens/s (median step {median:.3f} s), "
      f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
