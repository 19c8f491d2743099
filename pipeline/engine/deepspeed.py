"""The backbone under DeepSpeed, its optimizer's state and gradients divided among the ranks by ZeRO.

ZeRO (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
arXiv:1910.02054): stage 1 divides the optimizer's state, stage 2 the gradient too. What DeepSpeed does here is just
that. Arithmetic, loss scale and clipping are ours, so that a run is the same under both engines: parameters are
float32, and lower precision is autocast's. Its configuration is made here, from ours.

DeepSpeed is imported when the first backend is built.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as c10d
from torch import Tensor, nn

from pipeline.config.engine import DeepSpeedConfig, Precision
from pipeline.config.errors import UserError
from pipeline.config.optim import OptimizerConfig
from pipeline.engine import optim
from pipeline.engine.loss_scale import LossScale
from pipeline.engine.network import Network

_MOST_BUCKET_ELEMENTS = 50_000_000
"""Of a reduction, 200 MB; DeepSpeed takes the room whether or not there are so many."""
_STEP_SLOT = "step"


class DeepSpeedBackend:
    """Replicates `model` on all ranks and averages its gradients; see `Backend` for the methods.

    Construction is collective: rank 0's parameters are broadcast. From stage 1 on `optimizer_tensors`, `adopt_loaded`
    and `gradient_norm` are collective, and in stage 2 every `backward`.

    Raises:
        UserError: DeepSpeed was set up for another device in this process.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        precision: Precision,
        device: torch.device,
        engine: DeepSpeedConfig,
        compiles: bool = False,
    ) -> None:
        # the usual layout, though the images have channels last: DeepSpeed sends parameters about as they lie in memory
        self.model = model.to(device).to(memory_format=torch.contiguous_format)
        self.loss_scale = LossScale() if precision == "fp16" else None
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = optim.build_optimizer(optimizer, self._parameters)
        self._network = Network(self.model, precision, device, compiles)
        num_elements = sum(p.numel() for p in self._parameters.values())
        settings = _settings(engine.stage, min(num_elements, _MOST_BUCKET_ELEMENTS))
        self._engine = _initialise(self._network, self._optimizer, settings, device)
        # of stages 1 and 2, DeepSpeed's optimizer round ours; ours then holds one flat partition a parameter group
        self._zero = self._engine.optimizer if engine.stage else None
        # before a first step: DeepSpeed links parameters to all of the state once one group of them has been updated
        self.prime_optimizer()

    def forward(self, images: Tensor) -> Tensor:
        # outside of training DeepSpeed's bookkeeping of passes is to see nothing
        call = self._engine if torch.is_grad_enabled() else self._network
        embeddings: Tensor = call(images)
        return embeddings

    @contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        if self.loss_scale is not None:
            gradient = gradient * self.loss_scale.value
        with self._network.products():
            # it takes a scalar only; this one's gradient with respect to the embeddings is `gradient`
            self._engine.backward((embeddings * gradient).sum(), scale_wrt_gas=False)

    def gradient_norm(self) -> Tensor:
        gradients = self._averaged_gradients()
        if self.loss_scale is not None:
            self.loss_scale.unscale(gradients)
        return optim.norm_of(gradients, sharded=self._zero is not None)

    def step(self, lr: float, norm: Tensor, max_norm: float | None) -> None:
        optim.clip_to_norm(self._averaged_gradients(), norm, max_norm)
        optim.set_lr(self._optimizer, lr)
        self._engine.step()

    def zero_grad(self) -> None:
        self._engine.zero_grad()
        if self._zero is not None:
            self._zero.zero_grad(set_to_none=True)
            for partitions in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
                for group in partitions:
                    partitions[group] = None

    def freeze(self, names: frozenset[str]) -> None:
        """Nothing rests under DeepSpeed, which the configuration sees to."""
        assert not names

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """From stage 1 on copies, put together one by one, on the CPU: no rank has room to spare for all of them."""
        if self._zero is None:
            return optim.optimizer_tensors(self._optimizer, self._parameters)
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        for flat, parameters in self._partitions():
            state = self._optimizer.state.get(flat, {})
            for name, parameter in parameters.items():
                for slot, value in state.items():
                    if not isinstance(value, Tensor):
                        continue
                    whole = value.clone() if _is_shared(slot, value) else safe_get_full_optimizer_state(parameter, slot)
                    tensors[f"{name}/{slot}"] = whole.cpu()
        return tensors

    def prime_optimizer(self) -> None:
        optim.prime_optimizer(self._optimizer)
        if self._zero is not None:
            # lets each parameter find its part of the state
            self._zero._lazy_init_hp_params_optimizer_state()

    def adopt_loaded(self, optimizer_tensors: dict[str, Tensor]) -> None:
        """Cut what was read into the ranks' partitions.

        Raises:
            UserError: parameters that ZeRO updates together have had different numbers of updates.
        """
        if self._zero is None:
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()  # a rank's own partition of the parameters is a copy
        for flat, parameters in self._partitions():
            for slot, value in self._optimizer.state.get(flat, {}).items():
                if not isinstance(value, Tensor):
                    continue
                loaded = {name: optimizer_tensors[f"{name}/{slot}"] for name in parameters}
                if _is_shared(slot, value):
                    value.copy_(only_value(loaded))
                    continue
                for name, parameter in parameters.items():
                    safe_set_full_optimizer_state(parameter, loaded[name].to(parameter.device), slot)

    def _partitions(self) -> Iterator[tuple[Tensor, dict[str, nn.Parameter]]]:
        """By parameter group: the flat partition that the optimizer holds, and the parameters that it is a part of."""
        assert self._zero is not None
        names = {id(p): name for name, p in self._parameters.items()}
        for group, members in zip(self._optimizer.param_groups, self._zero.bit16_groups, strict=True):
            (flat,) = group["params"]
            yield flat, {names[id(p)]: p for p in members}

    def _averaged_gradients(self) -> list[Tensor]:
        """This rank's part of the gradient in stages 1 and 2, all of it in stage 0."""
        if self._zero is None:
            return [p.grad for p in self._parameters.values() if p.grad is not None]
        return [g for gradients in self._zero.averaged_gradients.values() for g in gradients]


def _settings(stage: int, bucket_elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Each value that is not a size is here because the default would do something."""
    divided: dict[str, Any] = {}
    if stage:
        divided = {"reduce_bucket_size": bucket_elements, "allgather_bucket_size": bucket_elements}
        divided["compute_grad_norm"] = False  # the trainer asks for it before it decides on the step
    return {
        "train_micro_batch_size_per_gpu": 1,  # it counts samples with this and nothing else
        "gradient_accumulation_steps": 1,  # a head's loss is divided by the global batch already
        "gradient_clipping": 0.0,  # 1.0 unless told otherwise; `step` does it
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, **divided},
    }


def _initialise(
    network: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], device: torch.device
) -> Any:
    """Wrap a network. Collective on all ranks; a single process becomes a group of one."""
    # its accelerator is chosen at import, once and for all
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("LOCAL_RANK", "0")
    if not c10d.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        c10d.init_process_group(backend, store=c10d.HashStore(), rank=0, world_size=1)
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import groups

    if (found := get_accelerator().device_name()) != device.type:
        raise UserError("device", f"DeepSpeed was set up for {found}", device.type, "start a new process")
    _keep_quiet()
    # an operation for inference, which a CPU would need a C++ compiler and half a minute for
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups._WORLD_GROUP = None  # of an earlier run in this process, gone with the process group it was made from
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def _is_shared(slot: str, value: Tensor) -> bool:
    """Whether a value of the optimizer's state is one for a whole partition, as the number of updates is."""
    return slot == _STEP_SLOT or value.ndim == 0


def only_value(loaded: dict[str, Tensor]) -> Tensor:
    """The value of the optimizer's state that all parameters share.

    Raises:
        UserError: they do not.
    """
    values = {float(value) for value in loaded.values()}
    if len(values) > 1:
        raise UserError(
            "engine.stage",
            f"the checkpoint's parameters were updated {sorted(values)} times",
            "the same number for all, since ZeRO counts once for a group",
            "set engine.stage=0 or engine.kind=ddp",
        )
    return next(iter(loaded.values()))


def _keep_quiet() -> None:
    """Keep from the user what DeepSpeed says about decisions that are ours or torch's; everything else is heard."""
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        # torch 2.14 renamed them, DeepSpeed has the old names
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(_is_for_the_user)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    # any optimizer is untested that is not DeepSpeed's own or Adam; ours are tested under it
    return "ZeRO with an untested optimizer" not in record.getMessage()
