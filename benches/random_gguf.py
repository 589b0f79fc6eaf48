#!/usr/bin/env python3
"""Writes a model of random weights in the shape of Llama 3.1 8B or Qwen2.5 0.5B, all linears in Q4_0, with another file's
tokenizer.

Its answers mean nothing; its speed is that of the real one. Needs numpy.

    random_gguf.py TOKENIZER.gguf OUT.gguf [--shape 8b|0.5b] [--layers 32]
"""

import argparse
import struct

import numpy as np

# hidden, ffn, heads, key and value heads, head size, vocabulary, layers, whether the head is the embedding
SHAPES = {"8b": (4096, 14336, 32, 8, 128, 128256, 32, False), "0.5b": (896, 4864, 14, 2, 64, 151936, 24, True)}
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS, TIED = SHAPES["8b"]
U32, F32, STRING, ARRAY = 4, 6, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGML_F32, GGML_Q4_0 = 0, 2
ALIGN = 32


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


class Reader:
    """The metadata of a GGUF file (v2, v3): key -> (type, bytes of the value)."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read(64 << 20)
        self.at = 4
        version, _, n_keys = self.unpack("<IQQ")
        assert self.data[:4] == b"GGUF" and version in (2, 3), path
        self.keys = {}
        for _ in range(n_keys):
            key = self.string().decode()
            (kind,) = self.unpack("<I")
            begin = self.at
            self.skip(kind)
            self.keys[key] = (kind, self.data[begin : self.at])

    def unpack(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        (length,) = self.unpack("<Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            item, n = self.unpack("<IQ")
            for _ in range(n if item == STRING else 0):
                self.string()
            self.at += 0 if item == STRING else n * SIZES[item]
        else:
            self.at += SIZES[kind]


def longer(kind_and_value, pad):
    """An array with `pad(i)` (packed) behind its last item, up to the vocabulary."""
    _, value = kind_and_value
    item, n = struct.unpack_from("<IQ", value)
    assert n <= VOCAB, "the tokenizer has more tokens than the shape"
    return ARRAY, struct.pack("<IQ", item, VOCAB) + value[12:] + b"".join(pad(i) for i in range(n, VOCAB))


def metadata(tokenizer, n_layers):
    keys = {key: value for key, value in Reader(tokenizer).keys.items() if key.startswith("tokenizer.")}
    keys["tokenizer.ggml.tokens"] = longer(keys["tokenizer.ggml.tokens"], lambda i: text(f"<|random_{i}|>"))
    if "tokenizer.ggml.token_type" in keys:
        keys["tokenizer.ggml.token_type"] = longer(keys["tokenizer.ggml.token_type"], lambda _: struct.pack("<i", 1))
    numbers = {
        "block_count": n_layers, "context_length": 8192, "embedding_length": HIDDEN, "feed_forward_length": FFN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM,
        "vocab_size": VOCAB,
    }  # fmt: skip
    keys["general.architecture"] = (STRING, text("llama"))
    keys["general.name"] = (STRING, text("random"))
    keys["general.alignment"] = (U32, struct.pack("<I", ALIGN))
    keys.update({f"llama.{key}": (U32, struct.pack("<I", value)) for key, value in numbers.items()})
    keys["llama.attention.layer_norm_rms_epsilon"] = (F32, struct.pack("<f", 1e-5))
    keys["llama.rope.freq_base"] = (F32, struct.pack("<f", 500_000.0))
    return keys


def tensors(n_layers):
    """Name, shape as ggml counts it (inputs first), type."""
    kv = KV_HEADS * HEAD_DIM
    yield "token_embd.weight", (HIDDEN, VOCAB), GGML_Q4_0
    for layer in range(n_layers):
        for name, shape in [
            ("attn_norm", (HIDDEN,)), ("attn_q", (HIDDEN, HIDDEN)), ("attn_k", (HIDDEN, kv)), ("attn_v", (HIDDEN, kv)),
            ("attn_output", (HIDDEN, HIDDEN)), ("ffn_norm", (HIDDEN,)), ("ffn_gate", (HIDDEN, FFN)),
            ("ffn_up", (HIDDEN, FFN)), ("ffn_down", (FFN, HIDDEN)),
        ]:  # fmt: skip
            yield f"blk.{layer}.{name}.weight", shape, GGML_F32 if len(shape) == 1 else GGML_Q4_0
    yield "output_norm.weight", (HIDDEN,), GGML_F32
    if not TIED:
        yield "output.weight", (HIDDEN, VOCAB), GGML_Q4_0


def n_bytes(shape, kind):
    n = int(np.prod(shape))
    return n * 4 if kind == GGML_F32 else n // 32 * 18


def values(shape, kind, random):
    if kind == GGML_F32:
        return np.ones(shape, np.float32)
    blocks = random.integers(0, 256, (n_bytes(shape, kind) // 18, 18), np.uint8)
    # The scale of a block, f16: about 0.01.
    blocks[:, 0], blocks[:, 1] = 0x1F, 0x21
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("out")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    args = parser.parse_args()
    global HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS, TIED
    HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS, TIED = SHAPES[args.shape]
    n_layers = args.layers or LAYERS
    keys, listed = metadata(args.tokenizer, n_layers), list(tensors(n_layers))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(keys))
    head += b"".join(text(key) + struct.pack("<I", kind) + value for key, (kind, value) in keys.items())
    offset = 0
    for name, shape, kind in listed:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-n_bytes(shape, kind) // ALIGN) * ALIGN
    random = np.random.default_rng(1)
    with open(args.out, "wb") as out:
        out.write(head + b"\0" * (-len(head) % ALIGN))
        for _, shape, kind in listed:
            data = values(shape, kind, random).tobytes()
            out.write(data + b"\0" * (-len(data) % ALIGN))


if __name__ == "__main__":
    main()
