"""vLLM's CPU worker, told to take a step's new requests in the order of their adapters."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class HotswapCpuWorker(CPUWorker):
    """Named by our platform. What arrives together is computed together, and one product serves all of an adapter."""

    def execute_model(self, scheduler_output: Any) -> Any:
        scheduler_output.scheduled_new_reqs.sort(
            key=lambda new: new.lora_request.lora_int_id if new.lora_request else 0
        )
        return super().execute_model(scheduler_output)
