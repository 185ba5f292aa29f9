"""Labels of many texts; a service that is busy says when to come back."""

import os
import time

import httpx

TEXTS = ["A moving, beautifully acted film.", "The plot has holes a bus could drive through."]

key = os.environ.get("HOTSWAP_API_KEY", "none")
url = os.environ.get("HOTSWAP_URL", "http://127.0.0.1:8000")
with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
    for _ in range(5):
        answer = client.post("/v1/predict", json={"adapter": "sentiment", "inputs": TEXTS})
        if answer.status_code not in (429, 503):
            break
        time.sleep(float(answer.headers.get("Retry-After", 1)))
    answer.raise_for_status()

told = answer.json()
print(f"{told['adapter']['name']}@{told['adapter']['version']}")
for text, output in zip(TEXTS, told["outputs"], strict=True):
    # A text that cannot be answered says so in its place, and costs the others nothing.
    print(
        f"{output['label']} {output['score']:.2f}" if "label" in output else output["error"]["detail"], text, sep="\t"
    )
