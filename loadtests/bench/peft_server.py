"""The server people write first: transformers, PEFT's ``set_adapter``, FastAPI, and a lock around the model."""

from __future__ import annotations

import argparse
import threading
from contextlib import nullcontext
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import PeftModel
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Load(BaseModel):
    name: str
    folder: str


class Ask(BaseModel):
    adapter: str | None
    prompt: list[int]
    labels: list[int] = []
    max_tokens: int = 1


def make_app(model_folder: str) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()

    def chosen(adapter: str | None) -> Any:
        if adapter is None:
            return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
        model.set_adapter(adapter)
        return nullcontext()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/load")
    def load(asked: Load) -> dict[str, bool]:
        nonlocal model
        with lock:
            if isinstance(model, PeftModel):
                model.load_adapter(asked.folder, adapter_name=asked.name)
            else:
                model = PeftModel.from_pretrained(model, asked.folder, adapter_name=asked.name).eval()
        return {"ok": True}

    @app.post("/classify")
    def classify(asked: Ask) -> dict[str, list[float]]:
        with lock, torch.inference_mode(), chosen(asked.adapter):
            logits = model(input_ids=torch.tensor([asked.prompt]), logits_to_keep=1).logits[0, -1]
        return {"scores": logits[asked.labels].tolist()}

    @app.post("/generate")
    def generate(asked: Ask) -> dict[str, Any]:
        ids = torch.tensor([asked.prompt])
        with lock, torch.inference_mode(), chosen(asked.adapter):
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked.max_tokens, do_sample=False
            )
        answer = out[0, ids.shape[1] :]
        return {"text": tokenizer.decode(answer, skip_special_tokens=True), "tokens": len(answer)}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(make_app(options.model), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
