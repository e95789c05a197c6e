"""APT inside the loop of another library: a callback of transformers' `Trainer`, and of all trainers made from it.

In one plain process the model is cut and adapters grow between two steps, as in a run of this package. Under DDP and
DeepSpeed the callback only moves masks, as nothing can rebuild the engine that the loop holds
(`hf_options.cuts_while_training`). `export` then writes a cut copy. A masked model computes what the cut one does.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from apt_ds.config.errors import UserError
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import kept_sizes
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.export.write import export
from apt_ds.models.scope import check_experts
from apt_ds.models.trainables import attach_trainables
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.rules import mask_notice
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives
from apt_ds.training import hf_optimizer, hf_options
from apt_ds.training.hf_cut_copy import cut_copy
from apt_ds.training.hf_micro_batch import announce, take_scores


class AptCallback(TrainerCallback):
    """Prunes a model and grows its adapters while a `Trainer` trains it.

    The callback freezes the model, adds adapters, and trains these and the layers of a task's answer. It must be given
    to the constructor of the Trainer, or `attach` must be called before.

    Attributes:
        pruner: masks, scores and decisions. It exists from the first step on.
        cuts_while_training: whether the loop can go on with a smaller model. Otherwise masks stay until `export`.
    """

    def __init__(self, sparsity: float = 0.3, prune_steps: int = 0, **flags: Any) -> None:
        """Take options of a run by their names.

        Args:
            sparsity: fraction of the prunable parameters to remove.
            prune_steps: optimizer steps of the pruning phase. 0: `pruning_phase`, a fraction of all steps.
            flags: other options of pruning and adapters, such as `prune_every=50` or `adapter_targets="q,v"`.

        Raises:
            UserError: an option that does not exist, or a value that is not allowed.
        """
        self.prune_steps = hf_options.steps_of(prune_steps)
        self.run = hf_options.options(sparsity, flags)
        self.cuts_while_training = False
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._pruner: Pruner | None = None
        self._handle: RemovableHandle | None = None
        self._last_step = self._step = 0
        self._optimizer: torch.optim.Optimizer | None = None  # while a training that cuts is under way
        self._ended = False

    @property
    def pruner(self) -> Pruner:
        """Masks, scores and decisions."""
        if self._pruner is None:
            raise UserError("AptCallback has not seen a training yet: call trainer.train() first")
        return self._pruner

    @property
    def model(self) -> PreTrainedModel:
        """The model with adapters."""
        if self._model is None:
            raise UserError("AptCallback has no model: give it to the Trainer's callbacks, or call attach(model)")
        return self._model

    def attach(self, model: PreTrainedModel) -> None:
        """Freeze a model and add adapters, in place. The Trainer's constructor calls it too.

        Raises:
            UserError: the model or a target is not supported.
        """
        if self._model is not None:
            if self._model is not model:
                raise UserError("AptCallback has another model already: give every Trainer a callback of its own")
            return
        if any(adapter.adapters(model)):
            text = "give a Trainer one AptCallback, and each AptCallback a model of its own"
            raise UserError(f"the model has the adapters of an AptCallback already: {text}")
        task, self.kind = hf_options.task_of(model)
        self.run = self.run.replace(task=task)
        self.base_config: PretrainedConfig = copy.deepcopy(model.config)
        self.anatomy = anatomy_of(model.config, self.kind)
        check_experts(self.run, self.anatomy)
        adapter.check_targets(self.anatomy, self.run.targets)
        architecture_of(model.config).prepare(model, self.anatomy)
        attach_trainables(model, self.anatomy, self.run, self.run.adapter.rank, all_weights=False)
        self._model = model

    # Events of the Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the adapters before the Trainer makes its optimizer."""
        self._tokenizer = kwargs.get("processing_class")
        self.attach(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the Trainer, and put masks and hooks on the model."""
        model = self.model
        hf_options.check_arguments(args, state.global_step)
        if self._pruner is not None:
            raise UserError("AptCallback has pruned already: export the model, and start again from what it wrote")
        self.cuts_while_training = hf_options.cuts_while_training(args)
        self._tokenizer = kwargs.get("processing_class") or self._tokenizer
        self._last_step = state.max_steps
        self.run = hf_options.with_prune_steps(self.run, self.prune_steps, state.max_steps)
        if self.cuts_while_training:
            self._optimizer = hf_optimizer.plain(kwargs["optimizer"])
            hf_optimizer.check(self._optimizer, model)
        else:
            self._only_mask()
        if args.gradient_checkpointing:
            # reentrant checkpoints give no gradient to a layer whose input needs none
            model.enable_input_require_grads()
        self._pruner = Pruner(self.run, self.anatomy, state.max_steps, args.device, writable_sizes(self.base_config))
        self._generator = torch.Generator().manual_seed(self.run.optim.seed)
        if notice := mask_notice(self.run, state.max_steps):
            self._say(notice)
        self.pruner.install_hooks(model, self.pruner.needs_scores(0))
        self._scores = self.pruner.needs_scores(0)
        self._handle = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the adapters by the gradients that the optimizer gets, clipped.

        DeepSpeed has no gradients at this point: accelerate has let the engine take its step in `backward`.
        """
        if self.cuts_while_training and self.pruner.needs_importance(state.global_step):
            layers = [layer for _, layer in adapter.adapters(self.model)]
            importance = torch.stack([hf_optimizer.weight_times_gradient(layer.lora_B) for layer in layers])
            if bool(torch.isfinite(importance).all()):
                self.pruner.growth.update(importance)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an update: take the scores, move the masks, and cut and grow where it is due. Collective."""
        pruner, step = self.pruner, state.global_step
        self._step = step
        if self.cuts_while_training:
            self._optimizer = hf_optimizer.plain(kwargs["optimizer"])
            if step == 1:
                hf_optimizer.check(self._optimizer, self.model)
        if self._scores:
            take_scores(pruner, self.model, kwargs["optimizer"])
        pruner.advance(step)
        plan = pruner.plan(step, self._last_step, self.model)
        self._carry_out(plan, step)
        if self._scores != pruner.needs_scores(step):
            self._scores = not self._scores
            pruner.scorer.install(self.model) if self._scores else pruner.scorer.remove()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the pruning: masks are 0 or 1, and a plain process cuts what they remove. Collective."""
        self._step = state.global_step
        self.finish()

    # What comes out

    def finish(self) -> None:
        """End pruning after a training that Ctrl-C or an error has ended. Collective.

        The end of a training does it too. Not for a training that goes on: it would prune no more.
        """
        pruner, step = self.pruner, self._step
        if self._ended:
            return
        if self._handle is not None:
            self._handle.remove()
        if not pruner.pruning_finished:
            if step < self._last_step:
                self._say(f"training ended at step {step} of {self._last_step}: the budget may not be met")
            # as after the last step, which may have been interrupted itself: masks cannot move any more
            last = max(step, pruner.phase)
            self._carry_out(pruner.plan(last, 0, self.model), last)
        pruner.scorer.remove()
        pruner.agree(step, Plan(keep=pruner.decision))
        self._optimizer, self._ended = None, True

    def export(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write the cut model, adapters merged, as a folder that `from_pretrained` loads. Collective.

        The model of the Trainer stays as it is. Under DDP and DeepSpeed the first rank's host needs memory for the
        whole model.

        Args:
            folder: the folder to write. An existing one is replaced.
            tokenizer: the tokenizer to write. None: the Trainer's.

        Raises:
            UserError: nothing was trained, masks are under way, there is no tokenizer, or the folder cannot be written.
        """
        pruner, model = self.pruner, self.model
        if self.cuts_while_training and not (self._ended or pruner.pruning_finished):
            raise UserError(
                f"AptCallback.export: training is at step {self._step} of {self._last_step}, and masks are under way. "
                "Export after its end. If it was interrupted, call finish() first"
            )
        tokenizer = tokenizer or self._tokenizer
        if tokenizer is None:
            raise UserError("AptCallback.export needs a tokenizer: give tokenizer=, or the Trainer a processing_class")
        generation = model.generation_config if model.can_generate() else None
        anatomy = pruner.anatomy
        if not self.cuts_while_training:
            model, anatomy = cut_copy(model, self.base_config, anatomy, pruner.decision, self.kind, self.run.targets)
        export(model, anatomy, self.base_config, generation, tokenizer, Path(folder), task=self.kind)

    def summary(self) -> dict[str, object]:
        """Kept fraction, sizes and ranks of the model that `export` writes."""
        pruner = self.pruner
        sizes = pruner.anatomy.sizes
        if not self.cuts_while_training:
            sizes = kept_sizes(sizes, pruner.decision)
        return {
            "kept": pruner.anatomy.num_parameters(sizes) / pruner.original,
            "counts": list(sizes.counts),
            "hidden": sizes.hidden,
            "ranks": adapter.ranks(self.model),
        }

    # Parts of a step

    def _only_mask(self) -> None:
        """Leave all shapes as they are until the export."""
        if self.run.adapter.grows:
            self._say("under DDP and DeepSpeed ranks do not grow, as the Trainer's engine keeps its shapes")
        self.run = self.run.replace(defer_cuts=True, rank_growth="none")

    def _say(self, line: str) -> None:
        if collectives.is_main():
            print(f"AptCallback: {line}", file=sys.stderr, flush=True)

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the scorer which tokens count. A forward pass of an evaluation is not scored."""
        if self._scores and model.training and torch.is_grad_enabled():
            announce(self.pruner.scorer, args, kwargs, next(model.parameters()).dtype)
        else:
            self.pruner.scorer.end()

    def _carry_out(self, plan: Plan, step: int) -> None:
        """Cut and grow the model between two steps, and its optimizer with it, where the loop allows this."""
        pruner, model, optimizer = self.pruner, self.model, self._optimizer
        if optimizer is None or not plan:
            return
        pruner.remove_hooks()
        state = hf_optimizer.take(optimizer, model)
        anatomy = surgery.apply_plan(model, pruner.anatomy, plan, state.for_surgery(), self._generator)
        pruner.follow(plan, anatomy, step)
        hf_optimizer.put(optimizer, model, state, carry=self.run.pruning.optimizer_state == "carry")
        self._scores = pruner.needs_scores(step)
        pruner.install_hooks(model, self._scores)
