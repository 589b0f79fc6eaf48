#!/usr/bin/env python3
"""Time from feedback to the first token of a promoted generation, over HTTP, with nothing but the standard library.

    cargo build --release
    python3 benches/learning_loop.py --rows ROWS.jsonl [--examples 64] [--pleach target/release/pleach] [-- SERVE-FLAGS]

The name begins with the adapter in `--adapter`, a folder, or at the base. `--probes N` asks candidates the last N prompts of
the file instead of general questions: for a task whose answers are to be unlike the base's. ROWS.jsonl has chats `{"messages": [user, assistant], "group"?: "…"}`. Each prompt is asked of the server, which keeps it;
the row's answer is given as a demonstration, each of `--users` users in turn. Then a round is started and watched. It
prints one JSON object: seconds of each state, the verdict, and when the promoted generation gave its first token.
"""
import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request


def call(base, method, path, body=None, timeout=120):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--name", default="mood")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--probes", type=int, default=0)
    parser.add_argument("--pleach", default="target/release/pleach")
    parser.add_argument("--policy", default="{}", help="JSON that goes over the policy of this script")
    parser.add_argument("--json")
    parser.add_argument("serve", nargs="*", help="flags of `pleach serve`, after --")
    arguments = parser.parse_args()
    with open(arguments.rows, encoding="utf-8") as rows:
        rows = [json.loads(line) for line in rows]
    probes = [row["messages"][0]["content"] for row in rows[len(rows) - arguments.probes:]]
    rows = rows[: arguments.examples]
    home = tempfile.mkdtemp(prefix="pleach-loop-")
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [arguments.pleach, "serve", "--port", str(port), "--database", f"{home}/db.sqlite",
               "--blobs", f"{home}/blobs", *(["--adapter-root", os.path.dirname(os.path.abspath(arguments.adapter))] if arguments.adapter else []),
               *arguments.serve]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PLEACH_LOG": os.environ.get("PLEACH_LOG", "warn")})
    try:
        report = run(base, rows, probes, arguments, server)
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(home, ignore_errors=True)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            out.write(text + "\n")


def run(base, rows, probes, arguments, server):
    for _ in range(600):
        try:
            models = call(base, "GET", "/v1/models")
            break
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                sys.exit(f"the server ended: {server.stderr.read()}")
            time.sleep(0.1)
    else:
        sys.exit("the server does not answer")
    model = models["data"][0]["id"]
    name = arguments.name
    policy = {"is_on": True, "train_when": {"examples": 10**6}, "rollout": {"canary": []},
              **json.loads(arguments.policy)}
    if probes:
        policy["probes"] = probes
    if arguments.adapter:
        call(base, "PUT", f"/v1/adapters/{name}", {"path": os.path.abspath(arguments.adapter)})
    else:
        policy["begins_at_base"] = True
    call(base, "PUT", f"/v1/adapters/{name}/policy", policy)
    begun = time.monotonic()
    for index, row in enumerate(rows):
        chat = {"model": name, "messages": row["messages"][:-1], "max_tokens": 4, "store": True,
                "temperature": 0, "safety_identifier": f"user-{index % arguments.users}"}
        completion = call(base, "POST", "/v1/chat/completions", chat)
        call(base, "POST", "/v1/feedback",
             {"inference_id": completion["id"], "metric_name": "demonstration",
              "value": row["messages"][-1]["content"], "user": f"user-{index % arguments.users}"})
    posted = time.monotonic()
    started = call(base, "POST", f"/v1/adapters/{name}/rounds", {})
    states, state, since = {}, started["state"], time.monotonic()
    while True:
        found = call(base, "GET", f"/v1/adapters/{name}/rounds/{started['id']}")
        now = time.monotonic()
        if found["state"] != state:
            states[state] = round(states.get(state, 0) + now - since, 2)
            state, since = found["state"], now
        if state in ("promoted", "refused", "vetoed", "rolled_back", "failed", "skipped", "cancelled"):
            break
        time.sleep(0.2)
    ended = time.monotonic()
    answer = call(base, "POST", "/v1/chat/completions",
                  {"model": name, "messages": rows[0]["messages"][:-1], "max_tokens": 1, "temperature": 0})
    first = time.monotonic()
    return {"model": model, "examples": len(rows), "state": state, "seconds_of_states": states,
            "feedback_s": round(posted - begun, 2), "round_s": round(ended - posted, 2),
            "posted_to_first_token_s": round(first - posted, 2),
            "is_new_generation": answer.get("pleach_generation") == found.get("candidate"),
            "round": found}


main()
