"""Memory of a rank before a run: bytes from a model's needs (`memory_trace.py`) and a DeepSpeed configuration.

Pure arithmetic, one function for each phase of a run. Device bytes are those in use. What the allocator reserves beyond
them and the CUDA context come on top. Host bytes of an offload include the rounding of pinned memory (`pinned.py`).

On the CPU both columns are one memory, the resident set of the process. There glibc keeps much of what is freed, up to
the same amount again. MALLOC_MMAP_THRESHOLD_=131072 in the environment makes glibc return it, which costs time. Buffers
of the kernels that oneDNN keeps are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from apt_ds.analysis.memory_trace import Footprint
from apt_ds.analysis.pinned import optimizer_rounding, parameter_rounding
from apt_ds.analysis.sharding import MOMENTS, Bytes, Layout, Sharding
from apt_ds.models.export.write import SHARD_BYTES
from apt_ds.training.checkpoint import ShardWriter

LIVE, PREFETCHED, PERSISTENT = 1_000_000_000, 50_000_000, 100_000  # DeepSpeed's defaults, in elements
MASTER = 4  # bytes per trained element
MOMENTS_IN_8_BITS = 2 + 8 / 256
CODE = 47 << 20  # bytes that DeepSpeed's first engine loads
FINGERPRINT = 3 * 8 << 18  # bytes of the int64 pieces of `fingerprint.fingerprint`
FP32 = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank.

    Attributes:
        parts: what exists throughout a training step, by name.
        phases: the peak of each phase of the run, by name. A phase includes the parts that exist in it.
    """

    parts: dict[str, Bytes] = field(default_factory=dict)
    phases: dict[str, Bytes] = field(default_factory=dict)

    def peak(self) -> Bytes:
        """The largest phase on the device, and the largest on the host."""
        phases = self.phases.values()
        return Bytes(max(p.device for p in phases), max(p.host for p in phases))

    def total(self) -> int:
        """The largest phase where device and host are one memory."""
        return max(p.device + p.host for p in self.phases.values())


def estimate(model: Footprint, config: dict[str, Any], layout: Layout) -> Estimate:
    """Bytes per rank of the phases of a run.

    Every rank reads a quantized base whole, and the engine shards it. A product, a cut and the export dequantize one
    weight at a time.

    Args:
        model: what the model needs.
        config: a DeepSpeed configuration, resolved as `load_config` returns it.
        layout: what the run adds.
    """
    sharding = Sharding(model, config.get("zero_optimization", {}), layout)
    parts = step_parts(sharding)
    weights = parts["frozen weights"].plus(parts["trained weights"], Bytes(0, parameter_rounding(sharding)))
    engine = weights.plus(parts["optimizer"], parts["gathered weights"], Bytes(0, CODE + optimizer_rounding(sharding)))
    phases = {
        "loading": loading(sharding, weights),
        "fingerprint": read_weights(sharding, weights).plus(Bytes(FINGERPRINT)),
        "step": engine.plus(parts["gradients"], parts["activations"]),
        "evaluation": engine.plus(Bytes(model.evaluation + sharding.dequantized * layout.item)),
        "saving": saving(sharding, engine),
        "rebuild": rebuild(sharding, weights),
        "writing": writing(sharding),
    }
    if layout.repair:
        phases["repair"] = rebuild(sharding, weights).plus(Bytes(layout.repair))
    return Estimate(parts, phases)


def step_parts(sharding: Sharding) -> dict[str, Bytes]:
    """What exists throughout a training step, by name."""
    layout, zero = sharding.layout, sharding.zero
    master = MASTER * sharding.updated if sharding.stage else 0
    optimizer = master + round(layout.moments * sharding.updated)
    rounding = parameter_rounding(sharding) + optimizer_rounding(sharding)
    parts = {
        "frozen weights": sharding.param_bytes((sharding.own - sharding.own_trained) * layout.item).plus(
            Bytes(sharding.scales)
        ),
        "trained weights": sharding.param_bytes(sharding.own_trained * layout.item),
        "gradients": gradients(sharding),
        "optimizer": Bytes(0, optimizer) if "offload_optimizer" in zero else Bytes(optimizer),
        "gathered weights": Bytes(gathered(sharding) * layout.item if sharding.stage == 3 else 0),
        "activations": Bytes(sharding.model.activations + sharding.dequantized * layout.item),
    }
    return parts | ({"rounding of pinned memory": Bytes(0, rounding)} if rounding else {})


def gradients(sharding: Sharding) -> Bytes:
    """Gradients, the bucket that reduces them, and their fp32 copy for the update."""
    zero, trained, item = sharding.zero, sharding.trained, sharding.layout.item
    if sharding.stage == 0:
        return Bytes(2 * trained * item)
    bucket = zero.get("reduce_bucket_size", trained)
    bucket = min(trained, bucket) if isinstance(bucket, int) else trained
    buckets = (2 if zero.get("overlap_comm", sharding.stage == 3) else 1) * bucket * item
    if sharding.stage == 3:
        # those of a layer that is gathered at once are reduced after all of it
        buckets += round(sharding.model.layer * trained / sharding.total) * item
    own, copy = sharding.updated * item, FP32 * sharding.updated
    return Bytes(buckets + own, copy) if "offload_optimizer" in zero else Bytes(buckets + own + copy)


def gathered(sharding: Sharding) -> int:
    """Largest number of elements that ZeRO-3 gathers at a time."""
    zero, world, largest = sharding.zero, sharding.layout.world, max(sharding.model.largest, sharding.model.layer)
    # one rank stores all weights and uses them in place, except those of a module that is gathered for surgery
    if world == 1 and (sharding.layout.on_cpu or "offload_param" not in zero):
        return 2 * sharding.model.largest
    threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENT))
    persistent = sum(w.numel for w in sharding.model.weights if w.numel <= threshold)
    live = int(zero.get("stage3_max_live_parameters", LIVE))
    reuse_distance = int(zero.get("stage3_max_reuse_distance", LIVE))
    prefetched = zero.get("stage3_prefetch_bucket_size", PREFETCHED)
    if prefetched == "auto":
        prefetched = sharding.model.layer or PREFETCHED
    # A weight stays if it is used again at most `reuse_distance` elements later, up to `live` elements in all. Weights
    # that come ahead of their use stay up to `live` alone. Layers that are gathered at once do not count between two
    # uses of a module outside, which therefore stays
    kept = live if prefetched else min(live, reuse_distance)
    kept += sharding.model.largest if sharding.model.layer else 0
    # several ranks hold a layer that arrives and its weights, which are copies, at the same time
    arriving = max(prefetched, sharding.model.layer) if world > 1 else prefetched
    return persistent + min(sharding.total - persistent, max(largest + arriving, kept))


def read_weights(sharding: Sharding, weights: Bytes) -> Bytes:
    """Weights before the engine exists. A quantized base is whole on every rank."""
    if not sharding.dequantized:
        return weights
    return Bytes(sharding.total * sharding.layout.item + sharding.scales)


def loading(sharding: Sharding, weights: Bytes) -> Bytes:
    """Reading the model: the files are mapped on the host, and the weights are copied to where they belong."""
    weights, layout = read_weights(sharding, weights), sharding.layout
    copied = 0 if sharding.stage == 3 or layout.on_cpu else weights.device
    return weights.plus(Bytes(0, sharding.parameters * layout.stored + copied))


def trained_state(sharding: Sharding) -> Bytes:
    """Master weights and moments of all trained elements, in fp32 on the host."""
    return Bytes(0, (MASTER + (MOMENTS if sharding.layout.moments else 0)) * sharding.trained)


def saving(sharding: Sharding, engine: Bytes) -> Bytes:
    """Writing a checkpoint: the first rank collects at most one file."""
    return engine.plus(Bytes(0, min(trained_state(sharding).host, ShardWriter.limit)))


def rebuild(sharding: Sharding, weights: Bytes) -> Bytes:
    """A cut: weights, the state of trained elements, and one weight before and after. The engine is gone.

    A quantized weight is cut in fp32.
    """
    one_weight = max(2 * sharding.largest, 2 * FP32 * sharding.dequantized)
    return weights.plus(trained_state(sharding), Bytes(one_weight, CODE))


def writing(sharding: Sharding) -> Bytes:
    """Writing the model: the weights that remain, one whole weight, and at most one file of the model."""
    layout, weights = sharding.layout, sharding.model.weights
    # the projections lose weights, and a quantized projection stores less for each
    projections = [w for w in weights if w.full] or list(weights)
    stored_share = sum(w.numel for w in projections) / sum(w.full or w.numel for w in projections)
    removed = (1 - layout.kept) * sharding.parameters * stored_share
    remaining = round((sharding.total - removed) * layout.item * sharding.own / sharding.total)
    file = min(round(sharding.parameters * layout.kept * layout.item), SHARD_BYTES)
    return sharding.param_bytes(remaining).plus(Bytes(sharding.largest, file + CODE))
