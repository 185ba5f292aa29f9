"""LiteLLM: ``python litellm_chat.py URL MODEL`` prints a JSON object of what it was told."""

import json
import sys

import litellm

url, model = sys.argv[1:]
named = {"model": f"openai/{model}", "api_base": url, "api_key": "none", "num_retries": 0}
turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the film dull?"}]
answer = litellm.completion(messages=turns, **named)
stream = litellm.completion(messages=turns, stream=True, **named)
text = litellm.text_completion(
    prompt="Review: A moving film.\nSentiment:", **{**named, "model": f"text-completion-openai/{model}"}
)
try:
    litellm.completion(messages=turns, **{**named, "model": "openai/nobody"})
    refused = "nothing"
except litellm.NotFoundError:
    refused = "NotFoundError"
print(
    json.dumps(
        {
            "chat": answer.choices[0].message.content,
            "model": answer.model,
            "tokens": answer.usage.completion_tokens,
            "streamed": "".join(piece.choices[0].delta.content or "" for piece in stream),
            "text": text.choices[0].text,
            "refused": refused,
        }
    )
)
