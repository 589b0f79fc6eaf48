"""Writes the seeds of all targets, each small and of another form. No library is needed.

    python3 make.py
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent


def write(target, name, content):
    folder = HERE / target
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


# GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
PACKING = {U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q"}


def string(text):
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def value(kind, content):
    if kind == ARRAY:
        of, items = content
        return struct.pack("<IQ", of, len(items)) + b"".join(value(of, item) for item in items)
    return string(content) if kind == STRING else struct.pack(PACKING[kind], content)


def gguf(metadata, tensors):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, content in metadata:
        head += string(key) + struct.pack("<I", kind) + value(kind, content)
    data = b""
    for name, dims, block_format, content in tensors:
        head += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", block_format, len(data))
        data += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + data


def model(*more, architecture="llama"):
    key = lambda name: f"{architecture}.{name}"
    return [
        ("general.architecture", STRING, architecture),
        (key("block_count"), U32, 1),
        (key("context_length"), U32, 64),
        (key("embedding_length"), U32, 8),
        (key("feed_forward_length"), U32, 16),
        (key("attention.head_count"), U32, 2),
        (key("attention.head_count_kv"), U32, 1),
        (key("attention.layer_norm_rms_epsilon"), F32, 1e-5),
        *[(key(name), kind, content) for name, kind, content in more],
    ]


F32_FORMAT, Q8_0 = 0, 8
embedding = ("token_embd.weight", [8, 4], F32_FORMAT, struct.pack("<32f", *range(32)))
divisors = ("rope_freqs.weight", [2], F32_FORMAT, struct.pack("<2f", 1, 2))
blocks = ("blk.0.ffn_up.weight", [32, 1], Q8_0, struct.pack("<e32b", 0.5, *range(32)))

write("gguf", "empty", gguf([], []))
write("gguf", "model", gguf(model(), [embedding, divisors, blocks]))
yarn = [
    ("rope.scaling.type", STRING, "yarn"),
    ("rope.scaling.factor", F32, 4.0),
    ("rope.scaling.original_context_length", U32, 32),
    ("attention.sliding_window", U32, 16),
    ("attention.key_length", U32, 4),
    ("attention.causal", BOOL, True),
    ("expert_count", U64, 0),
]
write("gguf", "yarn", gguf(model(*yarn, architecture="qwen3"), [embedding]))

printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
others = iter(range(256, 512))
letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
tokenizer = [
    ("general.alignment", U32, 32),
    ("tokenizer.ggml.model", STRING, "gpt2"),
    ("tokenizer.ggml.pre", STRING, "smollm"),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, [*letters, "ab", "<|im_end|>"])),
    ("tokenizer.ggml.token_type", ARRAY, (U32, [1] * 257 + [3])),
    ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
    ("tokenizer.ggml.eos_token_id", U32, 257),
    ("tokenizer.ggml.add_bos_token", BOOL, False),
    ("tokenizer.chat_template", STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
]
write("gguf", "tokenizer", gguf(tokenizer, []))

# PEFT folders of a model of two layers: hidden 6, q 8, k and v 4, ffn 10, vocabulary 12.

Q = "base_model.model.model.layers.0.self_attn.q_proj."
DOWN = "base_model.model.model.layers.1.mlp.down_proj."


def safetensors(tensors):
    header, data = {}, b""
    for name, dtype, shape in tensors:
        count = 1
        for side in shape:
            count *= side
        values = [(i % 17) / 8 - 1 for i in range(count)]
        if dtype == "BF16":
            content = b"".join(struct.pack("<f", x)[2:] for x in values)
        else:
            content = struct.pack(f"<{count}{'f' if dtype == 'F32' else 'e'}", *values)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def adapter(name, tensors, **settings):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **settings}
    write("adapter", name, json.dumps(config).encode() + b"\0" + safetensors(tensors))


def pair(site, rank, n_out, n_in, dtype="F32"):
    return [
        (f"{site}lora_A.weight", dtype, [rank, n_in]),
        (f"{site}lora_B.weight", dtype, [n_out, rank]),
    ]


FIRST = {"layers_to_transform": [0]}
adapter("plain", pair(Q, 2, 8, 6), **FIRST)
adapter(
    "patterns",
    pair(Q, 3, 8, 6, "F16") + pair(DOWN, 2, 6, 10, "BF16"),
    target_modules=r".*(layers\.0.*q_proj|layers\.1.*down_proj)",
    rank_pattern={"q_proj": 3},
    alpha_pattern={r"layers\.1\..*": 8},
    use_rslora=True,
)
adapter(
    "dora", [*pair(Q, 2, 8, 6), (f"{Q}lora_magnitude_vector", "F32", [8])], use_dora=True, **FIRST
)
adapter("bias", [*pair(Q, 2, 8, 6), (f"{Q}lora_B.bias", "F32", [8])], lora_bias=True, **FIRST)
head = ("base_model.model.lm_head.weight", "F16", [12, 6])
adapter("head", [*pair(Q, 2, 8, 6), head], modules_to_save=["lm_head"], **FIRST)
embedding_pair = [
    ("base_model.model.model.embed_tokens.lora_embedding_A", "F32", [2, 12]),
    ("base_model.model.model.embed_tokens.lora_embedding_B", "F32", [6, 2]),
]
adapter("embedding", embedding_pair, target_modules=["embed_tokens"])

# Bodies of requests.

DIGEST = "0123456789abcdef" * 4
messages = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": None, "tool_calls": []},
]


def request(seed, /, **body):
    write("request", seed, json.dumps(body))


request(
    "chat",
    model="base",
    messages=messages[:2],
    max_completion_tokens=8,
    temperature=0.5,
    top_p=0.9,
    min_p=0.05,
    top_k=20,
    seed=-1,
    n=2,
    stop=["a", "b"],
    logprobs=True,
    top_logprobs=3,
    logit_bias={"5": -100},
    stream=True,
    stream_options={"include_usage": True},
    chat_template_kwargs={"enable_thinking": False},
    response_format={"type": "text"},
    tools=None,
)
request("composition", model="base", prompt="a", adapters=[{"name": "x", "scale": 0.7}, {"name": "y", "generation": DIGEST}])
request("completion", model="m", prompt=[[1, 2], [3]], max_tokens=0, echo=True, logprobs=5, best_of=1, min_tokens=0)
request("texts", model="m", prompt=["a", "b"], stop_token_ids=[1], presence_penalty=-2, adapter_generation=DIGEST)
request("load", lora_name="x", lora_path="a/b", load_inplace=True, expected_generation=DIGEST, base_model_name="m")
request("tenant", name="t", weight=3, priority=255, quotas={"requests_per_minute": 5, "adapters": None})
request("key", name="k", scopes=["infer", "train"], expires=1900000000)

# Chat templates.


GRADER = {
    "type": "multi", "name": "m", "calculate_output": "0.5 * a + min(b, 2 ^ -1)",
    "graders": {
        "a": {"type": "string_check", "name": "a", "operation": "ilike", "input": "{{sample.output_json.x[0]}}", "reference": "{{ item.y }}"},
        "b": {"type": "text_similarity", "name": "b", "evaluation_metric": "rouge_l", "input": "{{sample.output_text}}", "reference": "{{item.z.w}}"},
    },
}
request("grader", grader=GRADER, item={"y": "k", "z": {"w": "a b"}}, model_sample='{"x": ["K"]}')
request(
    "job", model="m", training_file="file-1", seed=7,
    method={"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {"compute_multiplier": 0.5, "eval_interval": 3}}},
)


def chat_template(name, template, /, **chat):
    write("chat_template", name, template.encode() + b"\0" + json.dumps(chat).encode())


call = {"type": "function", "function": {"name": "f", "arguments": '{"a": [1, 2.5, null]}'}}
chat_template(
    "chatml",
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{% if not loop.last %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}",
    messages=messages[:2],
)
chat_template(
    "tools",
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif -%}\n"
    "{% for m in messages %}{% generation %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endgeneration %}{% endfor %}",
    messages=[{"role": "assistant", "content": None, "tool_calls": [call]}],
    tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
)
chat_template(
    "methods",
    "{% set ns = namespace(n=0, s='a-b') %}{% macro show(x, y=1) %}{{ x.split('-')[::-1] | join(',') | upper }}{{ y }}{% endmacro %}"
    "{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + loop.index0 * 2 // 3 %}{% if loop.index > 5 %}{% break %}"
    "{% endif %}{% endfor %}{{ show(ns.s) }}{{ ns.n }}{{ strftime_now('%d %B %Y') }}{{ mood.items() | list }}"
    "{{ 'abc'[1:].startswith('b') is true }}{{ range(3) | map('string') | list }}{{ nothing is defined }}",
    messages=messages,
    extra={"mood": {"a": True, "b": 1.5}},
)
chat_template("refused-raised", "{{ raise_exception('no ' ~ messages | length) }}", messages=[])

# Training rows; the first byte says as which format they are read, "0" as the one they seem to be.


def training_rows(name, which, *rows):
    write("training_rows", name, which + "\n".join(json.dumps(row) for row in rows) + "\n")


tool_row = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **call}]},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "assistant", "content": "b"},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}
one = {"messages": [{"role": "user", "content": "mail a@b.example"}, {"role": "assistant", "content": "no"}]}
preference = {
    "input": {"messages": [{"role": "user", "content": "q"}]},
    "preferred_output": [{"role": "assistant", "content": "a"}],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
training_rows("supervised", "0", one, {**one, "user": "u", "rater": "r"})
training_rows("tools", "1", one, tool_row)
training_rows("preference", "2", preference, {"prompt": "q", "chosen": "a", "rejected": "b"})
training_rows("kto", "3", {"prompt": "q", "completion": "a", "label": True})
training_rows("reinforcement", "4", {"messages": [{"role": "user", "content": "q"}], "answer": {"x": 1}})
training_rows("text", "5", {"text": "IBAN DE89 3704 0044 0532 0130 00, tel. +49 30 1234567, sk-0123456789abcdefghij"})
training_rows("classification", "6", {"text": "a text", "label": "x"}, {"text": "b", "label": 3})
training_rows("regression", "7", {"text": "a text", "score": 0.5})
