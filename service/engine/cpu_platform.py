"""vLLM's CPU platform with our LoRA, the C kernels that it leaves unused, and one process where that suffices."""

from __future__ import annotations

import os
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform

from service.engine import launch
from service.engine.plugin import SWITCH

KERNELS = "hotswap"


class HotswapCpuPlatform(CpuPlatform):
    """Named by :func:`service.engine.plugin.cpu_platform`; vLLM asks it in every process."""

    @classmethod
    def get_punica_wrapper(cls) -> str:
        if os.environ.get(SWITCH) == "grouped":
            return "service.engine.cpu_lora.GroupedLoRA"
        default: str = super().get_punica_wrapper()
        return default

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        super().check_and_update_config(vllm_config)
        parallel = vllm_config.parallel_config
        if os.environ.get(SWITCH) == "grouped":
            parallel.worker_cls = "service.engine.cpu_worker.HotswapCpuWorker"
        # vLLM keeps a worker process of its own because OpenMP must be configured before it starts; ours was.
        if parallel.world_size == 1 and launch.threads_are_set():
            parallel.distributed_executor_backend = "uni"
            if launch.may_fork():
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    @classmethod
    def import_ir_kernels(cls) -> None:
        super().import_ir_kernels()
        _register_norms()

    @classmethod
    def get_default_ir_op_priority(cls, vllm_config: Any) -> Any:
        from vllm.config.kernel import IrOpPriorityConfig

        cls.import_ir_kernels()
        norms = [KERNELS, "native"]
        return IrOpPriorityConfig.with_default(["native"], rms_norm=norms, fused_add_rms_norm=norms)


def _register_norms() -> None:
    """Offer vLLM the RMS norms of its own CPU library: 5 us where its PyTorch ones take 60 (16 rows of 576)."""
    from vllm import ir

    if KERNELS in ir.ops.rms_norm.impls:
        return

    def fits(x: torch.Tensor, weight: torch.Tensor | None, variance_size: int | None) -> bool:
        return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()

    there = hasattr(torch.ops._C, "rms_norm") and hasattr(torch.ops._C, "fused_add_rms_norm")

    @ir.ops.rms_norm.register_impl(
        KERNELS,
        supported=there,
        supports_args=lambda x, weight, epsilon, variance_size=None: fits(x, weight, variance_size),
    )
    def rms_norm(
        x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, epsilon)
        return out

    @ir.ops.fused_add_rms_norm.register_impl(
        KERNELS,
        supported=there,
        supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: (
            fits(x, weight, variance_size) and x_residual.is_contiguous()
        ),
        inplace=True,
    )
    def fused_add_rms_norm(
        x: torch.Tensor,
        x_residual: torch.Tensor,
        weight: torch.Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual
