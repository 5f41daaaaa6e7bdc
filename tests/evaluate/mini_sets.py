"""Released question files in miniature, real little media, and checkpoints that follow a script."""

from __future__ import annotations

import json
import threading
import wave
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
from PIL import Image

MODALITIES = ("image", "audio", "video", "points")
KEYS = {"image": "vision", "audio": "audio", "video": "video", "points": "point"}
HOLES = {"image": "image", "audio": "audio", "video": "video", "points": "point"}
SUFFIX = {"image": "png", "audio": "wav", "video": "gif", "points": "npy"}


def write_media(folder, count=2):
    """``<modality>-<i>.<suffix>`` of every modality."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (2, 2), (10 * i, 0, 0)).save(folder / f"image-{i}.png")
        with wave.open(str(folder / f"audio-{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(np.full(8, i, "<i2").tobytes())
        frames = [Image.new("L", (2, 2), value) for value in (0, 100 + i)]
        frames[0].save(folder / f"video-{i}.gif", save_all=True, append_images=frames[1:])
        np.save(folder / f"points-{i}.npy", np.full((4, 3), i, np.float32))


def turn(modalities, options=("a dog", "a car", "rain", "music"), question="What do all inputs share?"):
    shown = [f"{m}: <{HOLES[m]}>\n" for m in modalities]
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False)]
    return "".join(shown) + "\n".join([question, *lines])


def record(key, modalities=MODALITIES, *, medium=0, text=None, folder="media", **changes):
    inputs = {KEYS[m]: [f"{folder}/{m}-{medium}.{SUFFIX[m]}"] for m in modalities}
    turns = [{"from": "human", "value": text or turn(modalities)}, {"from": "gpt", "value": None}]
    return {"id": key, "conversations": turns, "modal_inputs": inputs} | changes


def answered(key, answer, **changes):
    turns = [{"from": "human", "value": "..."}, {"from": "gpt", "value": answer}]
    return {"id": key, "conversations": turns} | changes


def write_json(path, data):
    path.write_text(json.dumps(data))
    return path


def write_mcub(folder, gold="ABCDB", modalities=MODALITIES, name="MCUB-4.json"):
    """Questions 0, 1, ...; the shared answer file holds more than this file asks, in another order."""
    write_media(folder / "media")
    rows = [record(f"q{i}", modalities, medium=i % 2) for i in range(len(gold))]
    answers = [answered(f"q{i}", letter) for i, letter in enumerate(gold)] + [answered("other", "D")]
    write_json(folder / "MCUB-answer.json", answers[::-1])
    return write_json(folder / name, rows)


class Scripted:
    """A checkpoint that writes what its script says for the question's number, and remembers what it was asked."""

    sampling_rate = 16000
    processor = tokenizer = None
    experts = "auto"
    served = ()

    def __init__(self, outputs, modalities=MODALITIES, folder="scripted", stop_after=None):
        self.outputs, self.modalities, self.folder, self.stop_after = iter(outputs), modalities, folder, stop_after
        self.prompts, self.media = [], []

    def answer(self, prompts, media, *, max_new_tokens, domains=()):
        if self.stop_after is not None and len(self.prompts) >= self.stop_after:
            raise KeyboardInterrupt
        assert max_new_tokens > 0
        self.prompts += prompts
        self.media.append(media)
        return [next(self.outputs) for _ in prompts], [{} for _ in prompts]


@contextmanager
def chat_server(reply):
    """A chat endpoint on the loopback: ``reply(prompt)`` is a text, or (status, headers, body) to answer otherwise."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "token": self.headers.get("Authorization"), **body})
            made = reply(body["messages"][0]["content"])
            if isinstance(made, str):
                made = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": made}}]}))
            status, headers, text = made
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
