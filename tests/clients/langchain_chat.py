"""LangChain: ``python langchain_chat.py URL MODEL`` prints a JSON object of what it was told."""

import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0)
turns = [SystemMessage("Be brief."), HumanMessage("Is the film dull?")]
answer = chat.invoke(turns)
text = OpenAI(base_url=url, api_key="none", model=model, max_retries=0, temperature=0, max_tokens=12)
print(
    json.dumps(
        {
            "chat": answer.content,
            "model": answer.response_metadata["model_name"],
            "tokens": answer.usage_metadata["output_tokens"],
            "streamed": "".join(piece.content for piece in chat.stream(turns)),
            "many": [each.content for each in chat.batch(["A film.", "A play."])],
            "text": text.invoke("Review: A moving film.\nSentiment:"),
        }
    )
)
