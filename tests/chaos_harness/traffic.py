"""Members who ask for all that a pool does, and note what they were told."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from fixtures_pool import Member

from worker.engines.emulator import token_of, word

EMULATOR, TINY = "emulator-small", "tiny"
PROMPTS = [
    (f"seat {number}: <think>ok</think>", 100 + number) for number in range(6)
]  # of the tiny model, and seeds
TOKENS = 32
STORED_TOKENS = 30
BATCH_LINES = 12
EXAMPLES = 24
CALM_S = 0.3  # after a refusal


def said(seed: int, tokens: int) -> str:
    """What the emulator answers: its words follow from the seed, whoever serves it and how often it begins."""
    return "".join(f" {word(token_of(seed, 0, position))}" for position in range(tokens))


@dataclass
class Notes:
    """What all members saw; filled by several threads."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    batches: list[tuple[Member, str, dict[str, str]]] = field(
        default_factory=list
    )  # whose, id, text by custom_id
    finetunes: list[tuple[Member, str]] = field(default_factory=list)
    stored: list[tuple[Member, str, int]] = field(default_factory=list)  # whose, id, seed
    torch: list[tuple[str, int, str]] = field(default_factory=list)  # prompt, seed, whole answer
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def blame(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


class Asker(threading.Thread):
    """One member at work until told to stop, by the official client."""

    def __init__(self, member: Member, seed: int, notes: Notes) -> None:
        super().__init__(name=f"{member.name}, {seed}", daemon=True)
        self.member, self.rng, self.notes = member, random.Random(seed), notes
        self.over = threading.Event()

    def run(self) -> None:
        ways: list[tuple[Callable[[openai.OpenAI], str], int]] = [
            (self.stream, 10), (self.whole, 4), (self.leave, 3), (self.stored, 3), (self.tiny, 6), (self.embed, 2),
            (self.batch, 1), (self.finetune, 1),
        ]  # fmt: skip
        with self.member.openai() as client:
            while not self.over.is_set():
                (way,) = self.rng.choices([way for way, _ in ways], [weight for _, weight in ways])
                try:
                    self.notes.note(f"{way.__name__}: {way(client)}")
                except (openai.APIError, httpx2.HTTPError) as error:
                    code = getattr(error, "code", None) or type(error).__name__
                    self.notes.note(f"{way.__name__}: {code}")
                    self.over.wait(CALM_S)
                except Exception as error:
                    self.notes.blame(f"{way.__name__}: {error!r}")

    def stream(self, client: openai.OpenAI, leave_after: int = 1 << 30) -> str:
        """The text is the right one, or as much of it as came before the stream ended."""
        seed, tokens = self.rng.randrange(1 << 31), self.rng.randint(1, 120)
        text, ended = "", ""
        try:
            with client.chat.completions.create(
                model=EMULATOR,
                messages=[{"role": "user", "content": "go on"}],
                max_tokens=tokens,
                seed=seed,
                stream=True,
            ) as stream:
                for number, chunk in enumerate(stream):
                    for choice in chunk.choices:
                        text += choice.delta.content or ""
                        ended = choice.finish_reason or ended
                    if number >= leave_after:
                        return "left"
        finally:
            right = said(seed, tokens)
            if not right.startswith(text) or (ended and text != right):
                self.notes.blame(f"seed {seed}, {tokens} tokens: {text!r} is not of {right!r} ({ended})")
        return ended or "cut off"

    def leave(self, client: openai.OpenAI) -> str:
        """In the middle of an answer."""
        return self.stream(client, leave_after=self.rng.randint(0, 20))

    def whole(self, client: openai.OpenAI) -> str:
        seed = self.rng.randrange(1 << 31)
        answer = client.chat.completions.create(
            model=EMULATOR, messages=[{"role": "user", "content": "go on"}], max_tokens=20, seed=seed
        )
        if answer.choices[0].message.content != said(seed, 20):
            self.notes.blame(f"seed {seed}: {answer.choices[0].message.content!r}")
        return answer.choices[0].finish_reason

    def stored(self, _client: openai.OpenAI) -> str:
        """A job whose answer is fetched later: it outlives restarts."""
        seed = self.rng.randrange(1 << 31)
        messages = [{"role": "user", "content": "later"}]
        body = {"model": EMULATOR, "messages": messages, "max_tokens": STORED_TOKENS, "seed": seed}
        made = self.member.api("POST", "/pool/v1/jobs", json={"kind": "chat", "request": body})
        if made.status_code != 202:
            return str(made.json()["error"]["code"])
        with self.notes.lock:
            self.notes.stored.append((self.member, made.json()["id"], seed))
        return "accepted"

    def tiny(self, client: openai.OpenAI) -> str:
        """Of a real model, in fp32: the same text each time, within the sampler's margin."""
        prompt, seed = self.rng.choice(PROMPTS)
        answer = client.completions.create(
            model=TINY, prompt=prompt, max_tokens=TOKENS, temperature=0.7, seed=seed
        )
        with self.notes.lock:
            self.notes.torch.append((prompt, seed, answer.choices[0].text))
        return "stop"

    def embed(self, client: openai.OpenAI) -> str:
        return "stop" if client.embeddings.create(model=EMULATOR, input=["a", "b"]).data else "none"

    def batch(self, client: openai.OpenAI) -> str:
        lines, right = [], {}
        for number in range(BATCH_LINES):
            seed = self.rng.randrange(1 << 31)
            body = {
                "model": EMULATOR,
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 8,
                "seed": seed,
            }
            lines.append(
                {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            )
            right[f"n{number}"] = said(seed, 8)
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        uploaded = client.files.create(file=("in.jsonl", data), purpose="batch")
        made = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        with self.notes.lock:
            self.notes.batches.append((self.member, made.id, right))
        return "accepted"

    def finetune(self, client: openai.OpenAI) -> str:
        turns = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes indeed"}]
        data = (json.dumps({"messages": turns}) + "\n").encode() * EXAMPLES
        uploaded = client.files.create(file=("x.jsonl", data), purpose="fine-tune")
        method: Any = {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}},
        }
        made = client.fine_tuning.jobs.create(
            model=EMULATOR, training_file=uploaded.id, method=method, seed=3
        )
        with self.notes.lock:
            self.notes.finetunes.append((self.member, made.id))
        return "accepted"
