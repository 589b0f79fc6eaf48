"""Drives a running server with the real `openai` client. The test `e2e::openai_client` starts both.

usage: openai_client.py URL API_KEY BASE FIXTURES
The server serves BASE with the adapters `pirate` and `extract` of FIXTURES/adapters, with float32 activations.
"""

import json
import math
import pathlib
import sys
import unittest

import openai

URL, API_KEY, BASE, FIXTURES = sys.argv[1:]
ADAPTERS = ["extract", "pirate"]
BREAD = [{"role": "user", "content": "How do I bake bread?"}]
PIRATE_ON_BREAD = "Arrr, boil water, add flour and yeast, then kne them down and bake it like any cook."
# Reference log-probabilities are rounded to 6 digits; the models' tolerance on logits is 5e-4.
LOGPROB_TOLERANCE = 1e-3

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=API_KEY, max_retries=0, timeout=60)


def fixture(name):
    return json.loads(pathlib.Path(FIXTURES, name).read_text(encoding="utf-8"))


def chat(model=BASE, messages=BREAD, **options):
    """A greedy chat, unless told otherwise."""
    return client.chat.completions.create(**{"model": model, "messages": messages, "temperature": 0, **options})


def complete(model=BASE, prompt="Once upon a time,", **options):
    """A greedy completion, unless told otherwise."""
    return client.completions.create(**{"model": model, "prompt": prompt, "temperature": 0, **options})


class Models(unittest.TestCase):
    def test_list_has_the_base_and_its_adapters(self):
        cards = {card.id: card for card in client.models.list()}
        self.assertEqual(sorted(cards), sorted([BASE, *ADAPTERS]))
        self.assertIsNone(cards[BASE].parent)
        self.assertEqual(cards[BASE].max_model_len, 8192)
        for name in ADAPTERS:
            self.assertEqual(cards[name].parent, BASE)

    def test_retrieve(self):
        for name in [BASE, *ADAPTERS]:
            card = client.models.retrieve(name)
            self.assertEqual((card.id, card.object, card.owned_by), (name, "model", "pleach"))

    def test_retrieve_of_an_unknown_one(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client.models.retrieve("nobody")
        self.assertEqual(caught.exception.code, "model_not_found")


class Reference(unittest.TestCase):
    """Greedy answers equal those of transformers and PEFT."""

    def check(self, row, prompt, model):
        options = {"max_tokens": len(row["greedy_ids"])}
        extra = {"ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False}
        if "messages" in prompt:
            answer = chat(model, prompt["messages"], logprobs=True, extra_body=extra, **options)
            choice = answer.choices[0]
            text, logprobs = choice.message.content, [entry.logprob for entry in choice.logprobs.content]
        else:
            answer = complete(model, prompt["text"], logprobs=0, extra_body=extra, **options)
            choice = answer.choices[0]
            text, logprobs = choice.text, choice.logprobs.token_logprobs
        self.assertEqual(choice.token_ids, row["greedy_ids"])
        self.assertEqual(text, row["greedy_text"])
        self.assertEqual(answer.usage.prompt_tokens, row["n_prompt"])
        for found, expected in zip(logprobs, row["greedy_logprobs"], strict=True):
            self.assertAlmostEqual(found, expected, delta=LOGPROB_TOLERANCE)

    def test_answers_of_base_and_adapters(self):
        prompts = {prompt["name"]: prompt for prompt in fixture("reference/inputs/adapter_prompts.json")}
        rows = fixture("reference/adapter_expected.json")["rows"]
        self.assertEqual(len(rows), 12)
        for row in rows:
            adapter = row["adapter"]
            for model in [BASE] if adapter is None else [adapter, f"{BASE}:{adapter}"]:
                with self.subTest(row["name"], model=model):
                    self.check(row, prompts[row["prompt"]], model)


class Chat(unittest.TestCase):
    def test_shape(self):
        answer = chat("pirate")
        choice = answer.choices[0]
        self.assertEqual(choice.message.content, PIRATE_ON_BREAD)
        self.assertEqual((choice.message.role, choice.finish_reason, choice.index), ("assistant", "stop", 0))
        self.assertEqual((answer.object, answer.model), ("chat.completion", "pirate"))
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        self.assertTrue(answer.system_fingerprint)
        usage = answer.usage
        # The end token counts.
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (36, 23, 59))

    def test_generation_is_named(self):
        digests = {model: chat(model, max_tokens=1).pleach_generation for model in [BASE, *ADAPTERS]}
        self.assertIsNone(digests[BASE])
        for name in ADAPTERS:
            self.assertRegex(digests[name], "^[0-9a-f]{64}$")
        self.assertNotEqual(digests["pirate"], digests["extract"])
        self.assertEqual(chat(f"{BASE}:pirate", max_tokens=1).pleach_generation, digests["pirate"])

    def test_stream_with_usage(self):
        with chat("pirate", stream=True, stream_options={"include_usage": True}) as stream:
            chunks = list(stream)
        *parts, last = chunks
        self.assertEqual(parts[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in parts), PIRATE_ON_BREAD)
        self.assertEqual([chunk.choices[0].finish_reason for chunk in parts[-2:]], [None, "stop"])
        self.assertTrue(all(chunk.usage is None for chunk in parts))
        self.assertEqual((last.choices, last.usage.completion_tokens, last.usage.total_tokens), ([], 23, 59))
        self.assertEqual(len({(chunk.id, chunk.created, chunk.pleach_generation) for chunk in chunks}), 1)
        self.assertGreater(len(parts), 10)

    def test_stream_without_usage(self):
        chunks = list(chat(max_tokens=3, stream=True))
        self.assertTrue(all(chunk.usage is None and chunk.choices for chunk in chunks))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_two_choices(self):
        options = {"temperature": 1, "n": 2, "seed": 7, "max_tokens": 12}
        answer = chat(**options)
        whole = {choice.index: choice.message.content for choice in answer.choices}
        self.assertEqual(sorted(whole), [0, 1])
        self.assertNotEqual(whole[0], whole[1])
        self.assertEqual(answer.usage.completion_tokens, 24)
        streamed = {0: "", 1: ""}
        for chunk in chat(stream=True, **options):
            choice = chunk.choices[0]
            streamed[choice.index] += choice.delta.content or ""
        self.assertEqual(streamed, whole)

    def test_logprobs(self):
        choice = chat(max_tokens=8, logprobs=True, top_logprobs=4).choices[0]
        self.assertEqual(len(choice.logprobs.content), 8)
        joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        self.assertEqual(joined.decode(), choice.message.content)
        for entry in choice.logprobs.content:
            top = [other.logprob for other in entry.top_logprobs]
            self.assertEqual(len(top), 4)
            self.assertEqual(top, sorted(top, reverse=True))
            # Greedy: the chosen token is the likeliest.
            self.assertEqual((entry.token, entry.logprob), (entry.top_logprobs[0].token, top[0]))
            self.assertLess(sum(map(math.exp, top)), 1 + 1e-5)

    def test_logprobs_in_a_stream_equal_the_whole(self):
        whole = chat(max_tokens=8, logprobs=True).choices[0].logprobs.content
        streamed = []
        for chunk in chat(max_tokens=8, logprobs=True, stream=True):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        self.assertEqual(streamed, whole)

    def test_stop_strings(self):
        # "flour and yeast" is three tokens: the first string ends inside one of them.
        for stop, text in [("flour and y", "Arrr, boil water, add "), (["zzz", " boil"], "Arrr,")]:
            choice = chat("pirate", stop=stop).choices[0]
            self.assertEqual((choice.message.content, choice.finish_reason), (text, "stop"))
            streamed = [part.choices[0].delta.content or "" for part in chat("pirate", stop=stop, stream=True)]
            self.assertEqual("".join(streamed), text)

    def test_seed(self):
        def sampled(seed):
            return chat(temperature=1.2, seed=seed, max_tokens=16).choices[0].message.content

        self.assertEqual(sampled(3), sampled(3))
        self.assertGreater(len({sampled(seed) for seed in range(4)}), 1)

    def test_cached_tokens(self):
        messages = [{"role": "user", "content": "A prompt that nobody sent before. " * 12}]
        first, second = (chat(messages=messages, max_tokens=4) for _ in range(2))
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 32)
        self.assertLess(second.usage.prompt_tokens_details.cached_tokens, second.usage.prompt_tokens)
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)
        # Another adapter makes other keys and values.
        other = chat("pirate", messages=messages, max_tokens=4)
        self.assertEqual(other.usage.prompt_tokens_details.cached_tokens, 0)

    def test_more_fields(self):
        # The likeliest token alone is what greedy takes, at any temperature.
        greedy = chat(max_tokens=10).choices[0].message.content
        choice = chat(temperature=2, max_tokens=10, extra_body={"top_k": 1}).choices[0]
        self.assertEqual(choice.message.content, greedy)
        # pirate ends after 23 tokens, of which the last is the end.
        answer = chat("pirate", max_tokens=40, extra_body={"min_tokens": 30, "return_token_ids": True})
        self.assertGreaterEqual(answer.usage.completion_tokens, 30)
        self.assertEqual(len(answer.choices[0].token_ids), answer.usage.completion_tokens)
        self.assertEqual(len(answer.prompt_token_ids), answer.usage.prompt_tokens)
        answer = chat("pirate", max_tokens=40, extra_body={"ignore_eos": True})
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (40, "length"))
        self.assertEqual(chat(max_completion_tokens=5).usage.completion_tokens, 5)

    def test_logit_bias(self):
        greedy = chat(max_tokens=1, extra_body={"return_token_ids": True}).choices[0].token_ids
        banned = {str(greedy[0]): -100}
        other = chat(max_tokens=1, logit_bias=banned, extra_body={"return_token_ids": True}).choices[0].token_ids
        self.assertNotEqual(other, greedy)


class Completions(unittest.TestCase):
    def test_text_lists_and_tokens(self):
        texts = ["Once upon a time,", "The capital of France is"]
        alone = [complete(prompt=text, max_tokens=8, extra_body={"return_token_ids": True}) for text in texts]
        ids = [answer.choices[0].prompt_token_ids for answer in alone]
        expected = [answer.choices[0].text for answer in alone]
        self.assertEqual(alone[0].object, "text_completion")
        for prompt in [texts, ids]:
            choices = complete(prompt=prompt, max_tokens=8).choices
            self.assertEqual([choice.text for choice in choices], expected)
        self.assertEqual(complete(prompt=ids[0], max_tokens=8).choices[0].text, expected[0])

    def test_stream_logprobs_and_echo(self):
        whole = complete(max_tokens=8, logprobs=3).choices[0]
        chunks = list(complete(max_tokens=8, logprobs=3, stream=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), whole.text)
        logprobs = whole.logprobs
        self.assertEqual("".join(logprobs.tokens), whole.text)
        self.assertEqual(len(logprobs.token_logprobs), 8)
        self.assertTrue(all(len(top) == 3 for top in logprobs.top_logprobs))
        self.assertEqual(logprobs.text_offset[0], 0)
        echoed = complete(max_tokens=8, echo=True).choices[0]
        self.assertEqual(echoed.text, "Once upon a time," + whole.text)


class Errors(unittest.TestCase):
    """Each is the exception that the client has for it."""

    def test_unknown_model(self):
        for call in (chat, complete):
            with self.assertRaises(openai.NotFoundError) as caught:
                call("nobody")
            error = caught.exception
            self.assertEqual((error.code, error.param, error.type), ("model_not_found", "model", "invalid_request_error"))

    def test_invalid_values_name_the_field(self):
        values = {"temperature": 3, "top_p": -1, "n": 0, "max_tokens": 0, "presence_penalty": 9, "messages": []}
        for param, value in values.items():
            with self.subTest(param), self.assertRaises(openai.BadRequestError) as caught:
                chat(**{param: value})
            self.assertEqual((caught.exception.code, caught.exception.param), ("invalid_value", param))
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertEqual((caught.exception.code, caught.exception.param), ("unsupported_parameter", "tools"))

    def test_too_long_prompt(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(messages=[{"role": "user", "content": "word " * 9000}])
        self.assertEqual((caught.exception.code, caught.exception.param), ("context_length_exceeded", "messages"))

    def test_wrong_key(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            client.with_options(api_key="another").models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_request_id(self):
        answer = client.chat.completions.with_raw_response.create(
            model=BASE, messages=BREAD, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
        )
        self.assertEqual(answer.headers["x-request-id"], "mine-1")
        self.assertTrue(chat(max_tokens=1)._request_id)
        with self.assertRaises(openai.NotFoundError) as caught:
            chat("nobody")
        self.assertTrue(caught.exception.request_id)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
