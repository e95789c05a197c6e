"""Memory of a rank before the fact: what a model needs (`memory_trace.py`) and a DeepSpeed configuration in, bytes out.

Pure arithmetic. Device bytes are those in use; what the allocator keeps besides and the CUDA context come on top.
On the CPU both columns are one memory, the process's resident set. There glibc keeps much of what is freed, up to as
much again; MALLOC_MMAP_THRESHOLD_=131072 in the environment has it returned, for some time. Buffers of the
kernels that oneDNN keeps are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from apt_ds.analysis.memory_trace import Footprint
from apt_ds.models.export.write import SHARD_BYTES
from apt_ds.training.checkpoint import ShardWriter

LIVE, PERSISTENT = 1_000_000_000, 100_000  # DeepSpeed's defaults, in elements
MASTER, MOMENTS = 4, 8  # bytes per trained element
MOMENTS_IN_8_BITS = 2 + 8 / 256
CODE = 47 << 20  # what DeepSpeed's first engine loads
FINGERPRINT = 3 * 8 << 18  # int64 pieces of `fingerprint.fingerprint`


class Bytes(NamedTuple):
    """On the device and on the host."""

    device: int = 0
    host: int = 0

    def plus(self, *others: Bytes) -> Bytes:
        """The sum."""
        return Bytes(self.device + sum(o.device for o in others), self.host + sum(o.host for o in others))


class Layout(NamedTuple):
    """A run's own part. item: bytes of a weight; stored: bytes of one in the model's files.

    kept: fraction of the weights that a cut leaves; moments: bytes of Adam's per trained element, 0 where there are
    none before the cut; on_cpu: whether the device is the host.
    """

    world: int
    item: int
    stored: int
    kept: float = 1.0
    moments: float = MOMENTS
    on_cpu: bool = False


@dataclass(frozen=True)
class Estimate:
    """parts: what lives through a training step; phases: what each phase needs at its most, `parts` included."""

    parts: dict[str, Bytes] = field(default_factory=dict)
    phases: dict[str, Bytes] = field(default_factory=dict)

    def peak(self) -> Bytes:
        """The most of any phase, on the device and on the host."""
        found = self.phases.values()
        return Bytes(max(p.device for p in found), max(p.host for p in found))

    def total(self) -> int:
        """The most of any phase where device and host are one memory."""
        return max(p.device + p.host for p in self.phases.values())


def estimate(model: Footprint, config: dict[str, Any], layout: Layout) -> Estimate:
    """Bytes per rank of the phases of a run. config: resolved, as `load_config` gives it.

    A base of few bits is read whole by every rank and sharded by the engine; a product, a cut and what is written
    dequantize one weight at a time.
    """
    zero = config.get("zero_optimization", {})
    stage, item, world = int(zero.get("stage", 0)), layout.item, layout.world
    aside = "offload_optimizer" in zero
    total = sum(w.numel for w in model.weights)
    trained = sum(w.numel for w in model.weights if w.trained)
    scales, unpacked = sum(w.scales for w in model.weights), max(w.full for w in model.weights)
    share = -(-trained // world) if stage else trained

    def held(bytes_: int, away: bool = False) -> Bytes:
        return Bytes(0, bytes_) if away else Bytes(bytes_)

    own = -(-total // world) if stage == 3 else total
    own_trained = -(-trained // world) if stage == 3 else trained
    params_aside = stage == 3 and "offload_param" in zero
    master = MASTER * share if stage else 0
    parts = {
        "frozen weights": held((own - own_trained) * item, params_aside).plus(Bytes(scales)),
        "trained weights": held(own_trained * item, params_aside),
        "gradients": _gradients(zero, stage, trained, share, item),
        "optimizer": held(master + round(layout.moments * share), aside),
        "gathered weights": Bytes(_gathered(model, zero, world, layout.on_cpu) * item if stage == 3 else 0),
        "activations": Bytes(model.activations + unpacked * item),
    }
    weights = parts["frozen weights"].plus(parts["trained weights"])
    engine = weights.plus(parts["optimizer"], parts["gathered weights"], Bytes(0, CODE))
    whole = max(model.largest, unpacked) * item
    read = weights if not unpacked else Bytes(total * item + scales)
    parameters = sum(w.full or w.numel for w in model.weights)
    thin = [w for w in model.weights if w.full] or list(model.weights)
    # what goes was held as the projections are
    gone = (1 - layout.kept) * parameters * sum(w.numel for w in thin) / sum(w.full or w.numel for w in thin)
    left = round((total - gone) * item * own / total)
    state = Bytes(0, (MASTER + (MOMENTS if layout.moments else 0)) * trained)
    # the first rank's, until a file is full
    waiting = Bytes(0, min(state.host, ShardWriter.limit))
    phases = {
        "loading": _loading(read, parameters * layout.stored, stage, layout.on_cpu),
        "fingerprint": read.plus(Bytes(FINGERPRINT)),
        "step": engine.plus(parts["gradients"], parts["activations"]),
        "evaluation": engine.plus(Bytes(model.evaluation + unpacked * item)),
        "saving": engine.plus(waiting),
        # a weight of few bits is cut in fp32
        "rebuild": weights.plus(state, Bytes(max(2 * whole, 8 * unpacked), CODE)),
        # no more than one file of the written model is in memory
        "writing": held(left, params_aside).plus(
            Bytes(whole, min(round(parameters * layout.kept * item), SHARD_BYTES) + CODE)
        ),
    }
    return Estimate(parts, phases)


def _gradients(zero: dict[str, Any], stage: int, trained: int, share: int, item: int) -> Bytes:
    """Gradients, the bucket they are reduced in, and their fp32 copy at the step."""
    bucket = zero.get("reduce_bucket_size", trained)
    bucket = min(trained, bucket) if isinstance(bucket, int) else trained
    buckets = (2 if zero.get("overlap_comm", stage == 3) else 1) * bucket * item
    if stage == 0:
        return Bytes(2 * trained * item)
    kept = share * item
    if "offload_optimizer" in zero:
        return Bytes(buckets + kept, MASTER * share)
    return Bytes(buckets + kept + MASTER * share)


def _gathered(model: Footprint, zero: dict[str, Any], world: int, on_cpu: bool) -> int:
    """Most elements that ZeRO-3 holds whole at a time."""
    # alone, a rank's share is the whole, and used as it is but for what is at hand
    if world == 1 and (on_cpu or "offload_param" not in zero):
        return 2 * model.largest
    threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENT))
    always = sum(w.numel for w in model.weights if w.numel <= threshold)
    rest = sum(w.numel for w in model.weights) - always
    live = int(zero.get("stage3_max_live_parameters", LIVE))
    near = int(zero.get("stage3_max_reuse_distance", LIVE))
    ahead = int(zero.get("stage3_prefetch_bucket_size", 0))
    # what is used again within the reuse distance stays, at most so much that max_live is kept
    return always + min(rest, max(model.largest + ahead, min(live, near)))


def _loading(weights: Bytes, files: int, stage: int, on_cpu: bool) -> Bytes:
    """The weights on their way: the files are mapped on the host, and what is read goes where it belongs."""
    copied = 0 if stage == 3 or on_cpu else weights.device
    return weights.plus(Bytes(0, files + copied))
