#!/usr/bin/env python3
"""pleach beside llama.cpp's server: same model, same adapters, same loads, in turns on one machine.

Loads: one client (512 prompt tokens, 128 greedy ones), and eight clients at once (128 + 64) with no adapter, one
adapter, and eight adapters. Prompts are random token ids, no prompt is sent twice, end tokens are ignored, prompt caches
are off. Each server gets the same requests; servers take turns, ROUNDS times; a round is thrown away if other processes
used more than BUSY of the machine meanwhile. Medians and their ratios are printed as Markdown and written as JSON.

usage: llama_cpp.py --pleach target/release/pleach --llama-server PATH --model MODEL.gguf
                    [--peft DIR ... --gguf-lora FILE ...] [--threads 2] [--rounds 3] [--json FILE]
Eight PEFT folders and the same eight adapters converted for llama.cpp (its convert_lora_to_gguf.py), in one order.
Needs Python 3.9, nothing else.
"""
import argparse, concurrent.futures, http.client, json, os, platform, random, signal, socket, statistics, subprocess, time

BUSY = float(os.environ.get("BUSY", "0.10"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status} {text[:300]}")
    return json.loads(text)


def stream(port, path, body):
    """Seconds until the first token and between the first and the last one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("POST", path, json.dumps(dict(body, stream=True)), {"content-type": "application/json"})
    response = connection.getresponse()
    first = last = None
    for line in response:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            last = time.perf_counter()
            first = first or last
    return first - begun, last - first


class Pleach:
    name = "pleach"

    def __init__(self, options):
        self.port = free_port()
        command = [options.pleach, "serve", "--model", options.model, "--port", str(self.port), "--threads",
                   str(options.threads), "--no-prefix-cache", "--max-batch", "32"]
        for i, folder in enumerate(options.peft):
            command += ["--adapter", f"a{i}={folder}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.base = None

    def body(self, prompt, n, adapter):
        self.base = self.base or models(self.port)[0]
        return "/v1/completions", dict(model=self.base if adapter is None else f"a{adapter}", prompt=prompt, max_tokens=n,
                                       temperature=0, ignore_eos=True)


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, options):
        self.port = free_port()
        command = [options.llama_server, "-m", options.model, "-t", str(options.threads), "-tb", str(options.threads),
                   "-c", "8192", "-np", "8", "-fa", "off", "--no-webui", "--host", "127.0.0.1", "--port", str(self.port),
                   "--cache-ram", "0"]
        if options.gguf_lora:
            command += ["--lora", ",".join(options.gguf_lora), "--lora-init-without-apply"]
        self.lora = bool(options.gguf_lora)
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def body(self, prompt, n, adapter):
        body = dict(prompt=prompt, n_predict=n, temperature=0, ignore_eos=True, cache_prompt=False)
        if self.lora:
            # An empty list would mean every adapter at scale 1; one entry sets all others to 0.
            body["lora"] = [{"id": adapter or 0, "scale": 0.0 if adapter is None else 1.0}]
        return "/completion", body


def models(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/models")
    return [m["id"] for m in json.loads(connection.getresponse().read())["data"]]


def wait_until_healthy(server):
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if server.process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with {server.process.returncode}")
        time.sleep(0.1)
    raise RuntimeError(f"{server.name} does not answer")


def cpu_ticks():
    with open("/proc/stat") as f:
        return [int(v) for v in f.readline().split()[1:9]]


def process_ticks(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def foreign_share(before, after, own):
    total = sum(after) - sum(before)
    idle = (after[3] + after[4]) - (before[3] + before[4])
    return max(0.0, (total - idle - own) / max(1, total))


def measure(server, load, seed):
    rng = random.Random(seed)
    prompt = lambda n: [rng.randrange(300, 8000) for _ in range(n)]
    before, own = cpu_ticks(), process_ticks(server.process.pid)
    result = {}
    if load == "1 client":
        path, body = server.body(prompt(512), 128, None)
        first, rest = stream(server.port, path, body)
        result = {"prefill_tok_s": 512 / first, "decode_tok_s": 127 / rest}
    else:
        pick = {"8 clients, base": lambda i: None, "8 clients, 1 adapter": lambda i: 1, "8 clients, 8 adapters": lambda i: i}[load]
        bodies = [server.body(prompt(128), 64, pick(i)) for i in range(8)]
        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda b: post(server.port, *b), bodies))
        result = {"output_tok_s": 8 * 64 / (time.perf_counter() - begun)}
    used = process_ticks(server.process.pid) - own
    return result, foreign_share(before, cpu_ticks(), used)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pleach", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peft", nargs="*", default=[])
    parser.add_argument("--gguf-lora", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    loads = ["1 client", "8 clients, base"]
    if options.peft:
        loads += ["8 clients, 1 adapter", "8 clients, 8 adapters"]
    samples, thrown_away = {}, 0
    for round_ in range(options.rounds * 4):
        if all(len(samples.get((s, l), [])) >= options.rounds for s in ("pleach", "llama.cpp") for l in loads):
            break
        for make in (Pleach, LlamaCpp):
            server = make(options)
            try:
                wait_until_healthy(server)
                measure(server, loads[0], 1)
                for index, load in enumerate(loads):
                    result, foreign = measure(server, load, 100 * round_ + index)
                    if foreign > BUSY:
                        thrown_away += 1
                        continue
                    samples.setdefault((server.name, load), []).append(result)
            finally:
                server.process.send_signal(signal.SIGTERM)
                server.process.wait()
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    report = {"cpu": cpu, "threads": options.threads, "thrown_away": thrown_away, "loads": {}}
    print(f"{cpu}, {options.threads} threads; {thrown_away} busy runs thrown away\n")
    print("| load | measure | pleach | llama.cpp | ratio | runs |\n|---|---|---|---|---|---|")
    for load in loads:
        ours, theirs = samples.get(("pleach", load), []), samples.get(("llama.cpp", load), [])
        for key in (ours or theirs or [{}])[0]:
            a, b = (statistics.median(r[key] for r in runs) if runs else float("nan") for runs in (ours, theirs))
            print(f"| {load} | {key} | {a:.1f} | {b:.1f} | {a / b:.2f} | {len(ours)}, {len(theirs)} |")
            report["loads"].setdefault(load, {})[key] = {"pleach": [r[key] for r in ours], "llama.cpp": [r[key] for r in theirs]}
    if options.json:
        with open(options.json, "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
