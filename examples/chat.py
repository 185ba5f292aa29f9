"""An adapter is a model of OpenAI's API: any of its clients will do."""

import os

from openai import OpenAI

url = os.environ.get("HOTSWAP_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("HOTSWAP_API_KEY", "none"))
print("models:", *(model.id for model in client.models.list()))

stream = client.chat.completions.create(
    model="one-line-summary",
    messages=[{"role": "user", "content": "Say in one line what a music player does."}],
    max_tokens=20,
    stream=True,
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)
print()
