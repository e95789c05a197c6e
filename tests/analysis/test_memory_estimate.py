"""The arithmetic of the memory estimate, against figures worked out by hand."""

from __future__ import annotations

from apt_ds.analysis.memory_estimate import CODE, FINGERPRINT, MOMENTS_IN_8_BITS, estimate, loading, rebuild, writing
from apt_ds.analysis.memory_trace import Footprint, Weight
from apt_ds.analysis.sharding import Bytes, Layout, Sharding

MODEL = Footprint((Weight("w", 10_000_000, False), Weight("a", 1_000_000, True)), 5_000, 3_000, 10_000_000)
BF16 = Layout(4, 2, 4)


def test_each_stage_shards_what_it_should() -> None:
    parts = {stage: estimate(MODEL, {"zero_optimization": {"stage": stage}}, BF16).parts for stage in (0, 2, 3)}
    assert parts[0]["optimizer"] == Bytes(8_000_000), "moments of all; there is no master"
    assert parts[2]["optimizer"] == Bytes(12 * 250_000) == parts[3]["optimizer"]
    assert parts[0]["frozen weights"] == parts[2]["frozen weights"] == Bytes(20_000_000)
    assert parts[3]["frozen weights"] == Bytes(5_000_000) and parts[3]["trained weights"] == Bytes(500_000)
    assert parts[2]["gathered weights"] == Bytes(0) and parts[3]["gathered weights"] == Bytes(22_000_000)
    # the bucket, a share of the gradients, their fp32 copy
    assert parts[2]["gradients"] == Bytes(2_000_000 + 500_000 + 1_000_000)
    assert parts[0]["gradients"] == Bytes(2 * 2_000_000)


def test_offload_moves_to_the_host_and_limits_hold() -> None:
    section = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    limits = {
        "stage3_max_live_parameters": 0,
        "stage3_param_persistence_threshold": 1_000_000,
        "stage3_prefetch_bucket_size": 0,
    }
    memory = estimate(MODEL, {"zero_optimization": section | limits}, BF16)
    assert memory.parts["optimizer"] == Bytes(0, 12 * 250_000)
    assert memory.parts["frozen weights"] == Bytes(0, 5_000_000)
    # what persists, and the largest module
    assert memory.parts["gathered weights"] == Bytes(22_000_000)
    far = Footprint((*[Weight(f"w{i}", 1_000_000, False) for i in range(9)], MODEL.weights[1]), 0, 0, 1_000_000)
    limits["stage3_param_persistence_threshold"] = 0
    assert estimate(far, {"zero_optimization": section | limits}, BF16).parts["gathered weights"] == Bytes(2_000_000)
    near = limits | {"stage3_max_live_parameters": 3_000_000}
    assert estimate(far, {"zero_optimization": section | near}, BF16).parts["gathered weights"] == Bytes(6_000_000)


def test_a_layer_is_gathered_at_once_and_what_is_outside_of_layers_stays() -> None:
    section = {"stage": 3, "offload_param": {"device": "cpu"}, "stage3_param_persistence_threshold": 0}
    weights = [Weight(f"w{i}", 1_000_000, False) for i in range(9)]
    model = Footprint((*weights, MODEL.weights[1]), 0, 0, 1_000_000, layer=3_000_000)
    # the layer and copies of its weights; what is live; a file without limits has DeepSpeed's own
    for prefetch, live, reuse, elements in (
        (0, 0, 0, 6_000_000),
        (0, 6_000_000, 9_000_000, 7_000_000),
        (0, 6_000_000, 0, 6_000_000),
        (1, 6_000_000, 0, 7_000_000),
        ("auto", 0, 0, 6_000_000),
        (None, 0, 0, 10_000_000),
    ):
        limits = section | {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": reuse}
        limits |= {} if prefetch is None else {"stage3_prefetch_bucket_size": prefetch}
        gathered = estimate(model, {"zero_optimization": limits}, BF16).parts["gathered weights"]
        assert gathered == Bytes(2 * elements), (prefetch, live, reuse)
    # one rank uses its weights in place
    alone = BF16._replace(world=1)
    assert estimate(model, {"zero_optimization": {"stage": 3}}, alone).parts["gathered weights"] == Bytes(4_000_000)


def test_gradients_of_a_layer_that_is_gathered_at_once_wait_for_all_of_it() -> None:
    trained = tuple(Weight(f"w{i}", 1_000_000, True) for i in range(9))
    model, config = Footprint(trained, 0, 0, 1_000_000, layer=3_000_000), {"stage": 3, "reduce_bucket_size": 1000}
    without = Footprint(trained, 0, 0, 1_000_000)
    more, less = (estimate(each, {"zero_optimization": config}, BF16).parts["gradients"] for each in (model, without))
    assert more.device - less.device == 2 * 3_000_000 and more.host == less.host == 0


def test_a_quantized_base_counts_with_its_codes_and_scales() -> None:
    thin = Weight("w", 10_000_000 // 4, False, full=10_000_000, scales=160_000)
    model = Footprint((thin, MODEL.weights[1]), 5_000, 3_000, 2_500_000)
    estimates = {
        stage: estimate(model, {"zero_optimization": {"stage": stage}}, BF16._replace(kept=0.5)) for stage in (2, 3)
    }
    assert estimates[2].parts["frozen weights"] == Bytes(5_160_000), "half a byte each, and the scales"
    assert estimates[3].parts["frozen weights"] == Bytes(1_250_000 + 160_000), "scales are whole on every rank"
    assert estimates[2].parts["activations"] == Bytes(20_000_000 + 5_000), "one weight as it computes"
    # read whole by every rank, from files in fp32
    assert estimates[3].phases["loading"] == Bytes(7_160_000, 44_000_000)
    assert estimates[2].phases["writing"].host - CODE == 11_000_000, "written in bf16"
    eight = BF16._replace(moments=MOMENTS_IN_8_BITS)
    parts = estimate(MODEL, {"zero_optimization": {"stage": 2}}, eight).parts
    assert parts["optimizer"] == Bytes(4 * 250_000 + round((2 + 1 / 32) * 250_000))


def test_a_phase_counts_all_that_exists_in_it() -> None:
    memory = estimate(MODEL, {"zero_optimization": {"stage": 2}}, BF16._replace(kept=0.5))
    assert memory.phases["step"] == Bytes(sum(part.device for part in memory.parts.values()), CODE)
    assert memory.phases["loading"] == Bytes(22_000_000, 44_000_000 + 22_000_000), "files in fp32, and a copy in bf16"
    assert memory.phases["fingerprint"] == Bytes(22_000_000 + FINGERPRINT)
    assert memory.phases["saving"] == Bytes(22_000_000 + 3_000_000, 12_000_000 + CODE), "what the first rank writes"
    assert memory.phases["rebuild"] == Bytes(22_000_000 + 40_000_000, 12_000_000 + CODE)
    assert memory.phases["writing"] == Bytes(11_000_000 + 20_000_000, 11_000_000 + CODE)
    assert memory.peak() == Bytes(62_000_000, 66_000_000), "of the rebuild and of loading"
    assert memory.total() == 62_000_000 + 12_000_000 + CODE


def test_a_phase_is_what_its_function_gives() -> None:
    """The cut needs one weight before and after it; a quantized weight is cut in fp32."""
    sharding = Sharding(MODEL, {"stage": 2}, BF16)
    assert rebuild(sharding, Bytes(7)) == Bytes(7 + 2 * 20_000_000, 12 * 1_000_000 + CODE)
    quantized = Footprint((Weight("w", 2_500_000, False, 10_000_000, 160_000), MODEL.weights[1]), 0, 0, 2_500_000)
    assert rebuild(Sharding(quantized, {"stage": 2}, BF16), Bytes(7)).device == 7 + 8 * 10_000_000
    assert rebuild(Sharding(MODEL, {"stage": 2}, BF16._replace(moments=0)), Bytes()).host == 4 * 1_000_000 + CODE
    offloaded = Sharding(MODEL, {"stage": 3, "offload_param": {"device": "cpu"}}, BF16._replace(kept=0.5))
    assert writing(offloaded) == Bytes(20_000_000, 11_000_000 // 4 + 11_000_000 + CODE)
    assert loading(Sharding(MODEL, {"stage": 2}, BF16._replace(on_cpu=True)), Bytes(22)) == Bytes(22, 44_000_000)


def test_phases_and_parts_keep_their_names() -> None:
    memory = estimate(MODEL, {"zero_optimization": {"stage": 3}}, BF16)
    assert [*memory.phases] == ["loading", "fingerprint", "step", "evaluation", "saving", "rebuild", "writing"]
    assert memory.phases["step"].device > memory.phases["evaluation"].device > memory.parts["gathered weights"].device
