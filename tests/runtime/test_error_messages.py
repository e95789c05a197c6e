"""What libraries raise where memory runs out or a rank is lost, as one line with an exit status."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as td

from apt_ds.config.errors import LostRank, UserError
from apt_ds.runtime import exit_status, heartbeat
from apt_ds.runtime.error_messages import translate_error
from apt_ds.runtime.watchdog import Watchdog

HINT = "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was not enabled by user."
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:{line}, {what}, NCCL version 2.27.5\n"
UNHANDLED = NCCL.format(line=77, what="unhandled cuda error (run with NCCL_DEBUG=INFO for details)")
CALL = UNHANDLED + "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
REMOTE = NCCL.format(line=94, what="remote process exited or there was a network error")
REMOTE += "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
SOCKET = "Last error:\nsocketProgress: Connection closed by remote peer node2<51159>"
SEARCH = "Search for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more.\n"
ABORTED = "NCCL communicator was aborted on rank 0. Original reason for failure was: Watchdog caught a timeout"

OUT_OF_MEMORY: dict[str, Exception] = {
    "torch allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    "host allocator": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    "python": MemoryError(),
    "cudaMalloc": torch.AcceleratorError(
        f"CUDA error: out of memory\n{SEARCH.format(name='cudaErrorMemoryAllocation')}{HINT}"
    ),
    "cudaHostAlloc before AcceleratorError": RuntimeError(f"CUDA error: out of memory\n{HINT}"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "NCCL": td.DistBackendError(CALL + "Cuda failure 'out of memory'"),
    "NCCL with a number": td.DistBackendError(CALL + "Cuda failure 2 'out of memory'"),
    "NCCL calloc": td.DistBackendError(CALL + "Failed to CUDA calloc 8388608 bytes"),
    "NCCL calloc async": td.DistBackendError(CALL + "Failed to CUDA calloc async 1920 bytes"),
    "NCCL host": td.DistBackendError(CALL + "Failed to CUDA host alloc 4194304 bytes"),
}
LOST: dict[str, Exception] = {
    "NCCL peer": td.DistBackendError(REMOTE + SOCKET),
    "NCCL aborted": td.DistBackendError(ABORTED),
    "gloo": RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]"),
    "store": td.DistNetworkError("failed to recv, got 0 bytes"),
}
DEFECTS: dict[str, Exception] = {
    "shapes": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "device assert": torch.AcceleratorError(
        f"CUDA error: device-side assert triggered\n{SEARCH.format(name='cudaErrorAssert')}{HINT}"
    ),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, ...)`"),
}


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """The watchdog of a single process. It finds nobody lost, at once. No thread runs."""
    monkeypatch.setattr(heartbeat.CURRENT, "phase", "step 7: update")
    watchdog = Watchdog(20)
    watchdog.period = 0.001
    return watchdog


def ended(error: Exception, dog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> int:
    """The status with which a run of a command ends that raises what the error is translated to."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    def run() -> None:
        raise translate_error(error, dog)

    monkeypatch.setattr(exit_status, "leave", leave)
    with pytest.raises(SystemExit) as end:
        exit_status.main(run)
    return int(str(end.value.code))


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY.keys())
def test_memory_is_a_line_with_advice(
    error: Exception, dog: Watchdog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(translate_error(error, dog), UserError)
    assert ended(error, dog, monkeypatch) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: out of memory in step 7: update: lower --per_device_train_batch_size")
    assert "--gradient_checkpointing" in line and "zero3_offload.json" in line


@pytest.mark.parametrize("error", LOST.values(), ids=LOST.keys())
def test_a_lost_rank_is_a_line_of_its_own(
    error: Exception, dog: Watchdog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(translate_error(error, dog), LostRank)
    assert ended(error, dog, monkeypatch) == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert "in step 7: update: " in line and "--resume_from_checkpoint last" in line


def test_a_kernel_that_is_not_deterministic_is_named(dog: Watchdog) -> None:
    error = translate_error(
        RuntimeError(
            "histc_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or ..."
        ),
        dog,
    )
    assert isinstance(error, UserError) and str(error).startswith("--deterministic: histc_cuda has no deterministic")


@pytest.mark.parametrize("error", DEFECTS.values(), ids=DEFECTS.keys())
def test_a_defect_stays_one(
    error: Exception, dog: Watchdog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert translate_error(error, dog) is error
    assert ended(error, dog, monkeypatch) == 1
    assert "Traceback" in capfd.readouterr().err
