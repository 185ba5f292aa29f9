#!/bin/sh
# A label, with the version that gave it.
curl --silent --show-error --fail-with-body "${HOTSWAP_URL:-http://127.0.0.1:8000}/v1/predict" \
  --header "Authorization: Bearer ${HOTSWAP_API_KEY:-none}" --header 'Content-Type: application/json' \
  --data '{"adapter": "sentiment", "input": "A moving, beautifully acted film."}'
