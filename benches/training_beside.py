#!/usr/bin/env python3
"""Serving with and without a training job on the same cores.

Finds the rate of requests that saturates a server of its own (closed loop, as many clients as places in a batch), then
serves half of it (or --rate) in turns: without a job, with one. Prints medians over rounds, with least and most, as
Markdown; --json writes every round. A round during which other processes used more than BUSY of the machine is said to be
noisy, and counts all the same.

usage: training_beside.py PLEACH [--model NAME|GGUF] [--rounds 3] [--seconds 60] [--rate R] [--json FILE] [-- SERVE FLAGS]
Needs Python 3.9, nothing else.
"""
import argparse, http.client, json, os, re, shutil, signal, socket, statistics, subprocess, tempfile, time

BUSY = float(os.environ.get("BUSY", "0.10"))
PROMPT, OUTPUT = "32..192", "32..96"
ITL_RATIO_MAX, SHARE_MIN = 1.5, 0.8
WORDS = "the a cat dog sat ran on under over mat tree house of with and then who saw it home".split()


def call(port, method, path, body=None, kind="application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    data = json.dumps(body) if isinstance(body, (dict, list)) else body
    connection.request(method, path, data, {"content-type": kind} if data else {})
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {response.status} {text[:300]}")
    return text


def rows(n):
    """Chats of about a hundred tokens; always the same."""
    state, lines = 1, []
    for _ in range(n):
        words = []
        for _ in range(60):
            state = (state * 1103515245 + 12345) % (1 << 31)
            words.append(WORDS[(state >> 16) % len(WORDS)])
        messages = [{"role": "user", "content": " ".join(words[:20])}, {"role": "assistant", "content": " ".join(words[20:])}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines)


def new_file(port, content):
    border = "border"
    parts = [('name="purpose"', "fine-tune"), ('name="file"; filename="rows.jsonl"', content)]
    body = "".join(f"--{border}\r\ncontent-disposition: form-data; {head}\r\n\r\n{text}\r\n" for head, text in parts)
    text = call(port, "POST", "/v1/files", body + f"--{border}--\r\n", f"multipart/form-data; boundary={border}")
    return json.loads(text)["id"]


def metrics(port):
    """Seconds since start, of steps and of trainings, and the bound of now."""
    text = call(port, "GET", "/metrics")
    names = ["pleach_step_seconds_total", "pleach_training_seconds_total", "pleach_training_itl_budget_seconds",
             "pleach_undisturbed_itl_p99_seconds"]
    values = [float(re.search(rf"^{name} (\S+)$", text, re.M)[1]) for name in names]
    return [time.perf_counter()] + values


class Server:
    def __init__(self, options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.home = tempfile.mkdtemp(prefix="pleach-bench-")
        command = [options.pleach, "serve", "--port", str(self.port), "--database", f"{self.home}/db",
                   "--blobs", f"{self.home}/blobs", "--no-prefix-cache"]
        command += ["--model", options.model] if options.model else []
        self.process = subprocess.Popen(command + options.flags, stderr=open(f"{self.home}/log", "w"))
        for _ in range(600):
            try:
                self.model = json.loads(call(self.port, "GET", "/v1/models"))["data"][0]["id"]
                return
            except (OSError, RuntimeError):
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended: {open(f'{self.home}/log').read()[-800:]}")
                time.sleep(0.2)
        raise SystemExit("the server does not answer")

    def begin(self):
        body = {"model": self.model, "training_file": self.file, "seed": 7,
                "hyperparameters": {"n_epochs": 50, "batch_size": 1}}
        job = json.loads(call(self.port, "POST", "/v1/fine_tuning/jobs", body))["id"]
        while self.job(job)["status"] != "running":
            time.sleep(0.2)
        return job

    def job(self, job):
        return json.loads(call(self.port, "GET", f"/v1/fine_tuning/jobs/{job}"))

    def cancel(self, job):
        call(self.port, "POST", f"/v1/fine_tuning/jobs/{job}/cancel", {})
        time.sleep(3)

    def trained(self, job):
        """Tokens per second of single steps, from the job's events."""
        events = json.loads(call(self.port, "GET", f"/v1/fine_tuning/jobs/{job}/events?limit=1000"))["data"]
        found = [event["data"]["tokens_per_second"] for event in events if "tokens_per_second" in (event["data"] or {})]
        # The first says what came before as well.
        return statistics.median(found[:-1] or found or [0.0])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


def bench(options, server, *load):
    command = [options.pleach, "bench", "--url", f"http://127.0.0.1:{server.port}", "--prompt-tokens", PROMPT,
               "--output-tokens", OUTPUT, "--json", "-", *load]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def cpu():
    """Processor time of the machine: busy, all."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def own_cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def measure(options, server, rate, with_job):
    job = server.begin() if with_job else None
    if with_job:
        time.sleep(2)
    before, busy, own = metrics(server.port), cpu(), own_cpu(server.process.pid)
    report = bench(options, server, "--rate", f"{rate:.3f}", "--duration", str(options.seconds), "--seed", str(options.seed))
    after, busy_after, own_after = metrics(server.port), cpu(), own_cpu(server.process.pid)
    wall, steps, training = (after[i] - before[i] for i in range(3))
    total = busy_after[1] - busy[1]
    others = (busy_after[0] - busy[0] - (own_after - own)) / total
    result = {
        "with_job": with_job, "noisy": others > BUSY, "others": others, "failed": report["overall"]["n_failed"],
        "itl_p50": report["overall"]["itl_ms"]["p50"], "itl_p99": report["overall"]["itl_ms"]["p99"],
        "ttft_p50": report["overall"]["ttft_ms"]["p50"], "ttft_p99": report["overall"]["ttft_ms"]["p99"],
        "output": report["throughput"]["output_tokens_per_s"], "steps": steps / wall, "training": training / wall,
        "of_left": training / (wall - steps), "budget_ms": 1000 * after[3], "undisturbed_ms": 1000 * after[4],
    }
    if job:
        result["trained"] = server.trained(job)
        server.cancel(job)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pleach")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    server = Server(options)
    try:
        server.file = new_file(server.port, rows(100))
        rate = options.rate
        if not rate:
            full = bench(options, server, "--concurrency", "32", "--duration", str(options.seconds / 2))
            rate = full["throughput"]["requests_per_s"] / 2
            print(f"saturated at {2 * rate:.2f} requests/s, {full['throughput']['output_tokens_per_s']:.0f} output tokens/s")
        job = server.begin()
        time.sleep(options.seconds / 2)
        alone = server.trained(job)
        server.cancel(job)
        rounds = []
        for n in range(options.rounds):
            for with_job in [False, True] if n % 2 == 0 else [True, False]:
                rounds.append(measure(options, server, rate, with_job))
    finally:
        server.end()
    show = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
    sides = [[r for r in rounds if r["with_job"] is with_job] for with_job in (False, True)]
    print(f"\n{rate:.2f} requests/s, prompts {PROMPT}, outputs {OUTPUT}; noisy rounds: {sum(r['noisy'] for r in rounds)}"
          f" of {len(rounds)} (others up to {max(r['others'] for r in rounds):.0%}); failed requests:"
          f" {sum(r['failed'] for r in rounds)}\n")
    print("| | without a job | with one |\n|---|---|---|")
    for name, key in [("ITL P50, ms", "itl_p50"), ("ITL P99, ms", "itl_p99"), ("TTFT P50, ms", "ttft_p50"),
                      ("TTFT P99, ms", "ttft_p99"), ("output tokens/s", "output"), ("steps' share of the time", "steps"),
                      ("training's share of the time", "training"), ("training's share of what steps left", "of_left"),
                      ("P99 without training that the server told, ms", "undisturbed_ms"), ("its bound, ms", "budget_ms")]:
        print(f"| {name} |" + "".join(f" {show([r[key] for r in side])} |" for side in sides))
    beside = show([r["trained"] for r in sides[1]])
    print(f"| trained tokens/s | {alone:.0f} (nothing served) | {beside} |")
    ratio = lambda key: statistics.median([r[key] for r in sides[1]]) / statistics.median([r[key] for r in sides[0]])
    share = statistics.median([r["of_left"] for r in sides[1]])
    print(f"\nITL: P50 {ratio('itl_p50'):.2f}, P99 {ratio('itl_p99'):.2f} times those without (bound {ITL_RATIO_MAX}); "
          f"share of what is left: {share:.2f} (bound {SHARE_MIN})")
    if options.json:
        json.dump({"rate": rate, "alone": alone, "rounds": rounds}, open(options.json, "w"), indent=1)


if __name__ == "__main__":
    main()
