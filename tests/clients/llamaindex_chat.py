"""LlamaIndex: ``python llamaindex_chat.py URL MODEL`` prints a JSON object of what it was told."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model = sys.argv[1:]
# What it is not told it sends all the same: a temperature of 0.1.
named = {
    "model": model,
    "api_base": url,
    "api_key": "none",
    "context_window": 2048,
    "temperature": 0.0,
    "max_retries": 0,
}
llm = OpenAILike(is_chat_model=True, **named)
turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Is the film dull?")]
answer = llm.chat(turns)
plain = OpenAILike(is_chat_model=False, **named)
print(
    json.dumps(
        {
            "chat": answer.message.content,
            "model": answer.raw.model,
            "tokens": answer.raw.usage.completion_tokens,
            "streamed": "".join(piece.delta or "" for piece in llm.stream_chat(turns)),
            "text": plain.complete("Review: A moving film.\nSentiment:").text,
        }
    )
)
