"""The real clients of an exported folder, for `export/tests/onnx/python.rs`.

    onnx_client.py genai|checker|adapter [NAME] FOLDER EXPECTED.json      FOLDER/out is the export
"""

import json
import os
import re
import sys

import numpy as np

# Below this, f32 itself may choose another token.
MARGIN = 1e-3


def greedy_tokens(og, model, adapters, row):
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(row["ids"]) + len(row["greedy"]), min_length=0)
    generator = og.Generator(model, params)
    if row["adapter"]:
        generator.set_active_adapter(adapters, row["adapter"])
    generator.append_tokens(np.array([row["ids"]], dtype=np.int32))
    tokens = []
    while not generator.is_done() and len(tokens) < len(row["greedy"]):
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def is_beyond_extensions(text):
    """Where onnxruntime-extensions reads the model's own tokenizer.json otherwise than `tokenizers` does: text ends at a
    NUL, only ASCII digits stand alone, and white space before a digit is cut as before a letter."""
    return "\0" in text or any(c.isnumeric() and not c.isascii() for c in text) or re.search(r"\s\s[0-9]", text)


def genai(folder, expected):
    import onnxruntime_genai as og

    model = og.Model(folder)
    tokenizer = og.Tokenizer(model)
    adapters = og.Adapters(model)
    for name in sorted({row["adapter"] for row in expected["rows"] if row["adapter"]}):
        adapters.load(os.path.join(folder, "adapters", name + ".onnx_adapter"), name)
    ends = json.load(open(os.path.join(folder, "genai_config.json")))["model"]["eos_token_id"]
    compared = 0
    for index, row in enumerate(expected["rows"]):
        found = greedy_tokens(og, model, adapters, row)
        assert found, row
        for step, token in enumerate(found):
            wanted = row["greedy"][step]
            if token != wanted:
                assert row["margin"][step] < MARGIN, (index, step, token, wanted, row["margin"][step])
                break
            compared += 1
            # The reference goes on after the end of an answer, onnxruntime-genai does not.
            if token in ends:
                break
    assert compared > 100, compared
    texts = [row for row in expected["tokenization"] if not is_beyond_extensions(row["text"])]
    assert len(texts) >= 50, len(texts)
    for row in texts:
        found = [int(token) for token in tokenizer.encode(row["text"])]
        assert found == row["ids"], (row["text"], found, row["ids"])
    for row in expected["chats"]:
        text = tokenizer.apply_chat_template(
            json.dumps(row["messages"]), add_generation_prompt=row["add_generation_prompt"]
        )
        assert text == row["text"], (text, row["text"])
    print(f"{compared} greedy tokens, {len(texts)} texts, {len(expected['chats'])} chats")


def checker(folder, _):
    import onnx

    path = os.path.join(folder, "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)], model.opset_import
    assert all(not node.domain for node in model.graph.node)


def adapter(folder, expected, name):
    import onnxruntime

    read = onnxruntime.AdapterFormat.read_adapter(os.path.join(folder, "adapters", name + ".onnx_adapter"))
    parameters = {name: value.numpy() for name, value in read.get_parameters().items()}
    assert len(parameters) == 2 * len(expected["factors"]), sorted(parameters)
    for site in expected["factors"]:
        a = np.array(site["a"], np.float32).reshape(site["rank"], -1)
        b = np.array(site["b"], np.float32).reshape(-1, site["rank"])
        np.testing.assert_array_equal(parameters[site["path"] + ".lora_A.weight"], a.T)
        np.testing.assert_array_equal(parameters[site["path"] + ".lora_B.weight"], b.T * np.float32(site["scale"]))


def main():
    what, *names, folder, expected = sys.argv[1:]
    with open(expected) as file:
        values = json.load(file)
    {"genai": genai, "checker": checker, "adapter": adapter}[what](os.path.join(folder, "out"), values, *names)
    print("all checks passed")


if __name__ == "__main__":
    main()
