"""The options of what a run writes. `option_groups.py` says how an option is declared."""

from __future__ import annotations

from dataclasses import dataclass

from apt_ds.config.option_types import (
    COUNT,
    NOT_NEGATIVE,
    SomeOf,
    choice,
    option,
    split_commas,
)

QUANTIZATIONS = ("none", "fp8", "w4a16", "nf4")
TRACKERS = ("none", "tensorboard", "wandb", "mlflow")
AUTO_FORM, STOCK, ADAPTIVE, PADDED = EXPORT_FORMATS = ("auto", "stock", "adaptive", "padded")
NOT_STOCK = (
    "--export_format stock: no stock class has the sizes that the layers keep. Give padded, which fills them up with "
    "zeros, or adaptive"
)


@dataclass(frozen=True)
class OutputOptions:
    """What a run writes, when it evaluates, saves and resumes."""

    output_dir: str = option("apt_out", "a folder for the model, its checkpoints and logs")
    overwrite_output_dir: bool = option(False, "write into a folder that is not empty")
    logging_steps: int = option(1, "optimizer steps between two log lines", COUNT)
    report: bool = option(True, "compare the model before and after, with generated samples")
    report_samples: int = option(2, "prompts that the report generates from", NOT_NEGATIVE)
    eval_steps: int = option(0, "optimizer steps between two evaluations; 0 or less: only at the ends")
    reference_score: float = option(
        0.0, "score of a reference: records when 97 % of it were first reached; 0: no reference", NOT_NEGATIVE
    )
    save_steps: int = option(500, "optimizer steps between two checkpoints; 0 or less: only when stopped")
    save_total_limit: int = option(0, "checkpoints to keep; 0: all", NOT_NEGATIVE)
    resume_from_checkpoint: str = option("", "checkpoint to continue from: last, or its folder")
    profile: bool = option(False, "print at the end where the time of a step is spent")
    export_format: str = choice(
        ", ".join(EXPORT_FORMATS),
        "form of the written model. stock: a class of transformers; adaptive: sizes by layer and a modelling file; "
        "padded: a stock class, with zeros in place of removed blocks; auto: stock where a class has the sizes, else "
        "adaptive",
    )
    export_quantization: str = choice(
        ", ".join(QUANTIZATIONS),
        "also write a quantized copy of the model, such as model-fp8/, and measure its held-out loss. fp8, w4a16: "
        "compressed-tensors. nf4: as --export_bits 4, for a base of any bits",
    )
    run_report: bool = option(True, "write report.html where plotly is installed (pip install 'apt_ds[report]')")
    export_adapters: bool = option(
        False, "also write the adapters unmerged, as a PEFT folder adapters/, and the cut base that they fit as base/"
    )
    report_to: str = option("none", "experiment trackers that get metrics, sizes and options", SomeOf(TRACKERS))
    run_name: str = option("", "name of the run for the trackers; empty: the name of the output folder")
    logging_dir: str = option("", "folder of the trackers' local files; empty: runs in the output folder")
    push_to_hub: bool = option(False, "upload the written model to the Hugging Face hub at the end of the run")
    hub_model_id: str = option("", "repository to upload to, with or without the user; empty: the output folder's name")
    hub_private_repo: bool = option(False, "make the repository private where the upload makes it")
    hub_token: str = option(
        "",
        "token of the hub, which the run does not record. The deepspeed launcher prints its command line, so prefer "
        "HF_TOKEN; empty: the token of hf auth login or HF_TOKEN",
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names of the trackers, in the order of the option. () for none."""
        return tuple(name for name in split_commas(self.report_to) if name != "none")
