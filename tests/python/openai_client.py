"""Drives a running server with the real `openai` client. The test `e2e::openai_client` starts both.

usage: openai_client.py URL API_KEY BASE FIXTURES
The server serves BASE with the adapters `pirate` and `extract` of FIXTURES/adapters, with float32 activations.
"""

import hashlib
import json
import math
import pathlib
import sys
import time
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


def rows(n, question="What do you say about {}?", answers=("Arrr, {}!", "Aye, {}, matey!", "Shiver me timbers: {}!")):
    """A file of so many rows to learn from."""
    lines = []
    for index in range(n):
        subject = f"the {['sea', 'bread', 'rum', 'map', 'crew', 'wind'][index % 6]} number {index}"
        answer = answers[index % len(answers)].format(subject)
        messages = [{"role": "user", "content": question.format(subject)}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    return "".join(lines).encode()


class Files(unittest.TestCase):
    def test_a_file_comes_and_goes(self):
        content = rows(10)
        file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        self.assertEqual((file.object, file.bytes, file.filename), ("file", len(content), "rows.jsonl"))
        self.assertEqual((file.purpose, file.status), ("fine-tune", "processed"))
        self.assertEqual(client.files.content(file.id).read(), content)
        self.assertIn(file.id, [found.id for found in client.files.list(purpose="fine-tune", limit=1)])
        self.assertEqual(client.files.retrieve(file.id), file)
        self.assertTrue(client.files.delete(file.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client.files.retrieve(file.id)

    def test_a_bad_line_is_told(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client.files.create(file=("rows.jsonl", rows(3) + b"{}\n"), purpose="fine-tune")
        self.assertEqual(caught.exception.code, "invalid_file")
        self.assertIn("line 4", str(caught.exception))

    def test_an_upload_in_parts(self):
        content = rows(40)
        done = client.uploads.upload_file_chunked(
            file=content, filename="big.jsonl", bytes=len(content), mime_type="application/jsonl",
            purpose="fine-tune", part_size=1000, md5=hashlib.md5(content).hexdigest(),
        )
        self.assertEqual((done.status, done.file.bytes), ("completed", len(content)))
        self.assertEqual(client.files.content(done.file.id).read(), content)
        client.files.delete(done.file.id)
        begun = client.uploads.create(bytes=9, filename="a", mime_type="b", purpose="fine-tune")
        self.assertEqual(client.uploads.cancel(begun.id).status, "cancelled")


class Kept(unittest.TestCase):
    def test_completions_are_kept_listed_changed_and_deleted(self):
        answer = chat("pirate", store=True, metadata={"topic": "bread", "run": "1"}, max_tokens=8)
        streamed = list(chat("pirate", store=True, metadata={"run": "1"}, max_tokens=8, stream=True))
        kept = client.chat.completions.retrieve(answer.id)
        self.assertEqual(kept.choices[0].message.content, answer.choices[0].message.content)
        self.assertEqual((kept.usage, kept.model), (answer.usage, "pirate"))
        self.assertEqual(kept.metadata, {"topic": "bread", "run": "1"})
        found = [found.id for found in client.chat.completions.list(metadata={"run": "1"}, limit=1)]
        self.assertEqual(found, [answer.id, streamed[0].id])
        messages = list(client.chat.completions.messages.list(answer.id))
        self.assertEqual([message.content for message in messages], [BREAD[0]["content"]])
        changed = client.chat.completions.update(answer.id, metadata={"topic": "rye"})
        self.assertEqual(changed.metadata, {"topic": "rye"})
        for id in found:
            self.assertTrue(client.chat.completions.delete(id).deleted)
        with self.assertRaises(openai.NotFoundError):
            client.chat.completions.retrieve(answer.id)

    def test_what_does_not_ask_is_not_kept(self):
        with self.assertRaises(openai.NotFoundError):
            client.chat.completions.retrieve(chat(max_tokens=1).id)

    def test_feedback(self):
        answer = chat(store=True, max_tokens=4, extra_body={"episode_id": "talk"})

        def give(**body):
            return client.post("/feedback", body=body, cast_to=object)["feedback_id"]

        liked = {"inference_id": answer.id, "metric_name": "liked", "value": True, "idempotency_key": "k"}
        self.assertEqual(give(**liked), give(**liked))
        give(inference_id=answer.id, metric_name="demonstration", value="Better words.")
        give(episode_id="talk", metric_name="comment", value="too long")
        with self.assertRaises(openai.NotFoundError):
            give(inference_id="chatcmpl-0", metric_name="liked", value=True)
        found = client.get("/feedback", cast_to=object)["data"]
        self.assertEqual([card["kind"] for card in found], ["boolean", "demonstration", "comment"])
        client.chat.completions.delete(answer.id)
        self.assertEqual(client.get("/feedback", cast_to=object)["data"], [])


class Graders(unittest.TestCase):
    def test_a_grader_is_tried_out(self):
        check = {"type": "string_check", "name": "right", "operation": "like", "input": "{{sample.output_text}}"}
        check["reference"] = "{{item.answer}}"
        graders = client.fine_tuning.alpha.graders
        self.assertEqual(graders.validate(grader=check).grader.operation, "like")
        ran = graders.run(grader=check, item={"answer": "4 km"}, model_sample="It is 4 km.")
        self.assertEqual((ran.reward, ran.metadata.type, ran.metadata.errors.other_error), (1.0, "string_check", False))
        with self.assertRaises(openai.BadRequestError) as caught:
            graders.validate(grader={"type": "python", "name": "p", "source": "def grade(): pass"})
        self.assertEqual(caught.exception.param, "grader.type")


# People who ask the model that a job made, and what their rounds of learning are to be like: quick, and without canaries.
N_PEOPLE = 20
POLICY = {
    "train_when": {"examples": N_PEOPLE, "age_hours": None},
    "method": "supervised",
    "folds": 2,
    "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 4},
    "gate": {
        "examples_min": 8, "groups_min": 4, "kl_max": 20, "length_ratio": [0, 100], "refusals_more_max": 1,
        "latency_ratio_max": 1000,
    },
    "rollout": {"canary": [], "watch_requests": 0},
    "probes": ["Who are you?"],
}


class FineTuning(unittest.TestCase):
    """A whole job: upload, job, events, a model that answers, feedback on its answers, its next version."""

    def next_version(self, name):
        """Gives feedback on answers of the model `name` until that has learned from it, and takes it back."""
        adapter = f"/adapters/{name}"

        def get(path):
            return client.get(path, cast_to=object)

        def asks(person, max_tokens=12, **options):
            messages = [{"role": "user", "content": f"What do you say about harbour number {person}?"}]
            return chat(name, messages=messages, max_tokens=max_tokens, **options)

        before = get(adapter)["generation"]
        old = asks(N_PEOPLE)
        self.assertEqual(old.pleach_generation, before)
        client.put(f"{adapter}/policy", body=POLICY, cast_to=object)
        kept = []
        for person in range(N_PEOPLE):
            answer = asks(person, 2, store=True, safety_identifier=f"person {person}")
            kept.append(answer.id)
            shown = f"Welcome to harbour {person}, dear captain."
            body = {"inference_id": answer.id, "metric_name": "demonstration", "value": shown}
            self.assertTrue(client.post("/feedback", body=body, cast_to=object)["feedback_id"])
        rounds, deadline = [], time.monotonic() + 300
        while not (rounds and rounds[0]["ended_at"]) and time.monotonic() < deadline:
            time.sleep(0.5)
            # It answers all the while.
            self.assertEqual(asks(0, 1).model, name)
            rounds = get(f"{adapter}/rounds")["data"]
        learned = rounds[0]
        self.assertEqual((len(rounds), learned["state"]), (1, "promoted"), learned)
        self.assertEqual((learned["trigger"], learned["data"]["rows"]), ("examples", N_PEOPLE))
        jobs = list(client.fine_tuning.jobs.list(metadata={"round": learned["id"]}))
        self.assertEqual([job.status for job in jobs], ["succeeded"] * 3)

        new = asks(N_PEOPLE)
        self.assertEqual((new.model, new.pleach_generation), (name, learned["candidate"]))
        self.assertNotEqual(new.pleach_generation, before)
        self.assertTrue(new.choices[0].message.content.startswith("Welcome to harbour"), new.choices[0].message)
        self.assertFalse(old.choices[0].message.content.startswith("Welcome to harbour"), old.choices[0].message)
        lineage = get(f"{adapter}/generations/{learned['candidate']}/lineage")
        self.assertEqual((lineage["parent"], lineage["round"]), (before, learned["id"]))
        self.assertTrue(lineage["verdict"]["passed"])
        # The way back is one request; the new version keeps a name of its own.
        client.post(f"{adapter}/rollback", body={}, cast_to=object)
        back = asks(N_PEOPLE)
        self.assertEqual((back.pleach_generation, back.choices), (before, old.choices))
        own = f"ft:{BASE}:shared:{name}:{learned['id'][-8:]}"
        self.assertEqual(chat(own, max_tokens=1).pleach_generation, learned["candidate"])
        self.assertTrue(client.models.delete(own).deleted)
        # Whoever takes an answer back is told what learned from it.
        for id in kept:
            told = client.chat.completions.delete(id).generations
            self.assertIn(learned["candidate"], [learnt["generation"] for learnt in told])
        client.delete(f"{adapter}/policy", cast_to=object)

    def test_a_job_becomes_a_model_that_answers_and_learns(self):
        file = client.files.create(file=("rows.jsonl", rows(24)), purpose="fine-tune")
        # In other words: what is nearly in both files fails the report.
        stories = ["Arrr, once upon a time there was {}."]
        others = rows(6, "Captain, tell us a story of {} that nobody heard before.", stories)
        valid = client.files.create(file=("valid.jsonl", others), purpose="fine-tune")
        settings = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.5, "lora_rank": 4}
        job = client.fine_tuning.jobs.create(
            model=BASE, training_file=file.id, validation_file=valid.id, suffix="sea", seed=7,
            metadata={"by": "test"}, method={"type": "supervised", "supervised": {"hyperparameters": settings}},
        )
        self.assertEqual((job.object, job.status, job.seed), ("fine_tuning.job", "validating_files", 7))
        self.assertEqual(job.method.supervised.hyperparameters.n_epochs, 2)
        self.assertIn(job.id, [found.id for found in client.fine_tuning.jobs.list(metadata={"by": "test"})])
        deadline = time.monotonic() + 300
        while job.status not in ("succeeded", "failed") and time.monotonic() < deadline:
            time.sleep(0.5)
            # It is served beside.
            self.assertEqual(chat(max_tokens=1).usage.completion_tokens, 1)
            job = client.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual((job.status, job.error), ("succeeded", None))
        self.assertRegex(job.fine_tuned_model, f"^ft:{BASE}:shared:sea:[0-9a-f]{{8}}$")
        self.assertGreater(job.trained_tokens, 500)

        events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
        self.assertEqual(events[0].message, "The job has successfully completed")
        self.assertTrue(events[-1].message.startswith("Created fine-tuning job"))
        measured = [event.data for event in reversed(events) if event.type == "metrics"]
        losses = [data["train_loss"] for data in measured if "train_loss" in data]
        self.assertEqual(len(losses), 6)
        self.assertLess(losses[-1], losses[0])
        checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
        self.assertEqual([checkpoint.step_number for checkpoint in checkpoints], [6, 3])
        last, first = checkpoints
        self.assertEqual(last.fine_tuned_model_checkpoint, job.fine_tuned_model)
        self.assertEqual(first.fine_tuned_model_checkpoint, f"{job.fine_tuned_model}:ckpt-step-3")
        for metrics in (last.metrics, first.metrics):
            self.assertTrue(0 < metrics.full_valid_loss < 20 and 0 < metrics.full_valid_mean_token_accuracy <= 1)
        csv = client.files.content(job.result_files[0]).text.splitlines()
        self.assertEqual(csv[0], "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
        self.assertEqual(len(csv), 7)
        self.assertEqual([bool(line.split(",")[3]) for line in csv[1:]], [False, False, True] * 2)

        question = [{"role": "user", "content": "What do you say about the sea number 3?"}]
        base, tuned, half = (
            chat(model, messages=question, max_tokens=12)
            for model in (BASE, job.fine_tuned_model, first.fine_tuned_model_checkpoint)
        )
        self.assertIsNone(base.pleach_generation)
        self.assertNotEqual(tuned.pleach_generation, half.pleach_generation)
        self.assertNotEqual(tuned.choices[0].message.content, base.choices[0].message.content)
        self.assertIn(job.fine_tuned_model, [model.id for model in client.models.list()])
        self.next_version(job.fine_tuned_model)
        for model in (first.fine_tuned_model_checkpoint, job.fine_tuned_model):
            self.assertTrue(client.models.delete(model).deleted)

    def test_a_bad_file_fails_and_says_why(self):
        pairs = [{"prompt": f"q {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(10)]
        pairs = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
        file = client.files.create(file=("pairs.jsonl", pairs), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        deadline = time.monotonic() + 60
        while job.status not in ("succeeded", "failed") and time.monotonic() < deadline:
            time.sleep(0.2)
            job = client.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual((job.status, job.error.code), ("failed", "invalid_training_file"))
        self.assertEqual(job.error.param, "training_file")
        with self.assertRaises(openai.BadRequestError):
            client.fine_tuning.jobs.cancel(job.id)


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
