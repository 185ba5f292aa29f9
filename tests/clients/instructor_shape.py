"""instructor: ``python instructor_shape.py URL MODEL`` prints, as JSON, the object that the answer was made to be."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Verdict(BaseModel):
    film: Literal["dull", "moving"]
    sure: bool


url, model = sys.argv[1:]
client = instructor.from_openai(OpenAI(base_url=url, api_key="none", max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
turns = [{"role": "user", "content": "Is the film dull?"}]
verdict, answer = client.chat.completions.create_with_completion(
    # A random model, which would go on with blanks for ever where it always takes the likeliest token.
    model=model,
    messages=turns,
    response_model=Verdict,
    max_retries=0,
    max_tokens=800,
    temperature=1.5,
    seed=1,
)
print(json.dumps({"verdict": verdict.model_dump(), "model": answer.model}))
