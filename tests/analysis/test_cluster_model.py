"""What a step costs on many devices: the formulas against counting by hand, and against what engines send."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from apt_ds.analysis import cluster_model
from apt_ds.analysis.bench.llamas import LLAMAS
from apt_ds.analysis.bench.synthetic import MADE_UP, SIZES, random_base, shape_of
from apt_ds.analysis.benchmark import predict, read_measured
from apt_ds.analysis.cluster_model import Cluster, Load, Shape
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

SHAPE = Shape(blocks=1000, head=100, embeddings=100, adapters=10, attention=6, taps=7, gathers=5)
LOAD = Load(tokens=20, trained=10, context=8, micro_batches=2)
CLUSTER = Cluster(flops=1e6, inside=1e4, between=1e3, latency=0.0)


def test_a_7b_model_has_its_sizes() -> None:
    base = random_base("llama2-7b")
    shape = shape_of(base, base.anatomy, RunConfig())
    assert shape.frozen() == 6_738_149_376  # what the hub's model has, but for norms
    assert shape.adapters == 32 * 2 * 8 * (4096 + 4096)
    assert shape.attention == 32 * 4096 and shape.gathers == 32 + 2
    assert shape.taps == 32 * (4096 + 11008) + 4096 * 65


def test_a_cut_shrinks_what_it_should() -> None:
    base = random_base("tiny")
    sizes = base.anatomy.sizes
    half = base.anatomy.with_sizes(replace(sizes, counts=tuple(n // 2 for n in sizes.counts)))
    whole, cut = (shape_of(base, anatomy, RunConfig()) for anatomy in (base.anatomy, half))
    assert cut.blocks * 2 == whole.blocks and cut.attention * 2 == whole.attention and cut.head == whole.head
    assert cut.adapters == whole.adapters * 3 // 4  # rows go, columns stay


def test_flops_equal_those_counted_by_hand() -> None:
    assert cluster_model.training_flops(SHAPE, LOAD) == 20 * (4000 + 60) + 10 * 400 + 20 * 6 * 8 * 6


def test_bytes_equal_those_counted_by_hand() -> None:
    three = cluster_model.wire_bytes(SHAPE, LOAD, 2, 3)
    assert three == {"gather": 0.5 * 2 * (2 * 2 * 1210 - 2 * 100), "reduce": 0.5 * 2 * 20, "salience": 4.0 * 16}
    two = cluster_model.wire_bytes(SHAPE, LOAD, 2, 2)
    assert two == three | {"gather": 0.5 * 20, "reduce": 2 * three["reduce"]}
    assert cluster_model.wire_bytes(SHAPE, replace(LOAD, scoring=False), 2, 0) == {
        "gather": 0,
        "reduce": 40,
        "salience": 8,
    }
    assert set(cluster_model.wire_bytes(SHAPE, LOAD, 1, 3).values()) == {0}


def test_a_step_lies_between_all_hidden_and_nothing_hidden() -> None:
    alone, node, many = (cluster_model.predict(SHAPE, LOAD, CLUSTER, n, 3) for n in (1, 8, 64))
    assert alone["hidden"] == alone["exposed"] == alone["compute"]
    assert node["compute"] == many["compute"] < many["hidden"] < many["exposed"]
    assert many["wire"] > 9 * node["wire"]  # leaves the node
    text = cluster_model.render(SHAPE, LOAD, CLUSTER)
    assert len(text.splitlines()) == 7 and text.splitlines()[-1].split()[-1] == "gather"


def test_the_reached_arithmetic_is_assumed_or_measured() -> None:
    assumed = cluster_model.assumed(1e15)
    assert assumed.flops == 0.4e15 and assumed.source == "an assumption"
    figures = {"peak_flops": 8e14, "utilisation": {"lora": 0.5, "dense": 0.6, "unscored": 0.7}}
    measured = cluster_model.measured(figures, "train7.json")
    assert measured.flops == pytest.approx(4.8e14) and measured.source == "measured, train7.json"
    del figures["utilisation"]["dense"]
    assert cluster_model.measured(figures, "a").utilisation == 0.7


def test_a_prediction_takes_the_measured_arithmetic(tmp_path: Path) -> None:
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "random"]
    run = resolve([*words, "--model_name_or_path", "random:tiny"])
    path = tmp_path / "train7.json"
    path.write_text(json.dumps({"peak_flops": CLUSTER.flops / 2, "utilisation": {"dense": 0.8}}), encoding="utf8")
    texts = {name: predict(run, CLUSTER, (8,), name) for name in ("", str(path))}
    assert '"utilisation": 0.4, "utilisation is": "an assumption"' in texts[""]
    assert f'"utilisation": 0.8, "utilisation is": "measured, {path}"' in texts[str(path)]
    # half the peak, twice the share
    rows = [text.splitlines()[1:] for text in texts.values()]
    assert rows[0] == rows[1] and len(rows[0]) == 3


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"utilisation": {"lora": 0.5}, "peak_flops": 1}'])
def test_a_file_without_figures_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    if content is not None:
        path.write_text(content, encoding="utf8")
    with pytest.raises(UserError, match=r"^--measured .*figures\.json.*Give a file that benchmark\.py --json wrote$"):
        read_measured(str(path))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_can_be_cut(name: str) -> None:
    hidden = (LLAMAS[name][0] if name in LLAMAS else MADE_UP[name])[0]
    assert random_base(name).anatomy.sizes.hidden == hidden
    base = random_base(f"{name}:3")
    assert base.anatomy.sizes.hidden == hidden and base.config.num_hidden_layers == 3


@pytest.mark.parametrize("name", ["llama2-8b", "llama2-7b:0", "llama2-7b:few", "no/config.json"])
def test_unknown_sizes_are_named(name: str) -> None:
    with pytest.raises(UserError, match="llama2-13b"):
        random_base(name)


@pytest.mark.dist
def test_engines_send_what_the_formulas_say(tmp_path: Path) -> None:
    """Counted at every collective that two ranks start in one scored step, nothing kept between uses."""
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    assert torch.float32.itemsize == 2 * cluster_model.WEIGHT
    for stage, figures in multiprocess.run(
        2, "step_jobs.sent", {"folder": str(tmp_path), "stages": [(2, False), (3, False)]}
    ).items():
        expected = cluster_model.wire_bytes(Shape(**figures["shape"]), Load(**figures["load"]), 2, int(stage))
        # the run is in fp32; norms, which the formula leaves out, and padding of flat buffers are in what was counted
        assert figures["gather"] == pytest.approx(2 * expected["gather"], rel=0.01), (stage, figures)
        assert figures["reduce"] == pytest.approx(2 * expected["reduce"], rel=0.01), (stage, figures)
        assert figures["salience"] == expected["salience"], (stage, figures)
        assert asdict(Load(**figures["load"])) == figures["load"]
