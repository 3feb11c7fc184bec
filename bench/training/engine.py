"""How a run is carried out: precision, micro batches, processes, recomputing, compiling.

Accelerate wraps, scales and averages; what is computed is `bench.training.loop`'s alone. Several processes
of one run, as `accelerate launch` or `torchrun` start them, each hold a copy of the weights and do their
share; the main one writes records, checkpoints and tables.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from bench.config import Device, RunConfig, RunSpec, Training
from bench.types import BenchError, raise_of_machine, unknown

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

PARTNER_ENDED = (
    "another process of this run ended; its own message says why. Finished work is kept: start the same "
    "command again."
)
_PROJECT = "bps-bench"  # in trackers
_PATIENCE = timedelta(days=7)  # others wait while the main process encodes or scores
_BROKEN = ("gloo", "NCCL", "ProcessGroup", "Connection closed", "Connection reset")
_COMPILED = "BasicTransformerBlock"  # as in diffusers' regional compilation
_SHARED_BYTES = 1 << 29  # of a base's weights, which every process holds
_EXECUTION = ("micro_batch", "gradient_checkpointing", "compile", "fused", "track")  # of RunConfig
_SHARDING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


def carried_out(config: RunConfig) -> dict[str, Any]:
    """Return what of how training is carried out is not at its default, as plain values for a record."""
    plain = RunConfig()
    return {n: getattr(config, n) for n in _EXECUTION if getattr(config, n) != getattr(plain, n)}


def launched() -> int:
    """Return how many processes the launcher started, by its environment; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def count_threads() -> int:
    """Return how many threads compute on this machine in all processes of the launch."""
    import torch

    return torch.get_num_threads() * max(1, _number("LOCAL_WORLD_SIZE", 1))


def speaks() -> bool:
    """Whether this process is the one that talks to the user."""
    return launched() == 1 or _number("RANK", 0) == 0


def count_processes(spec: RunSpec) -> int:
    """Return among how many processes of one thread this machine's cores are to share a run.

    One for each core that torch would use, fewer where the batch is not divisible; 1 on a GPU, under a
    launcher, and where each would hold a large base. Evidence: docs/speed.md.
    """
    import torch

    base, size = Path(spec.suite.base or ""), spec.config.micro_batch or 1
    held = sum(path.stat().st_size for path in base.glob("*/*.safetensors"))
    if "WORLD_SIZE" in os.environ or spec.device != "cpu" or not 0 < held < _SHARED_BYTES:
        return 1
    counts = range(torch.get_num_threads(), 0, -1)
    return next((count for count in counts if spec.suite.training.batch % (size * count) == 0), 1)


def _number(variable: str, default: int) -> int:
    """Return what a launcher says in an environment variable; BenchError where it is no such number."""
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BenchError(
            f"{variable} is '{text}' in the environment; a launcher sets it to a number. Unset it, or start "
            "the processes with accelerate launch or torchrun."
        )
    return int(text)


def find_device(name: str) -> str:
    """Return "cpu" or "cuda" for auto, cpu or cuda; BenchError where there is no such device."""
    if name not in get_args(Device):
        raise unknown("device", name, get_args(Device))
    if name != "cpu":
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if name == "cuda":
            raise BenchError("--device cuda: torch sees no CUDA device here. Use --device cpu.")
    return "cpu"


def join(device: str) -> PartialState:
    """Join the processes of this launch, once, and return who this one is among them, also alone.

    device: "cpu" (gloo) or "cuda" (NCCL). BenchError where `accelerate launch --cpu` started one of several.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    if launched() > 1:
        for variable in ("RANK", "LOCAL_RANK"):
            _number(variable, 0)
        return PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    several = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if several and os.environ.get("ACCELERATE_USE_CPU") == "True":  # whatever --num_processes says
        raise BenchError(
            "accelerate launch --cpu started one process only; it leaves several to MPI. Use "
            "`accelerate launch --multi_gpu --num_processes N --no_python bench run --device cpu ...` or "
            "`torchrun --nproc-per-node N --no-python bench run --device cpu ...`."
        )
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier work, on another device
    return PartialState(cpu=device == "cpu")


def gathered(processes: PartialState, numbers: Sequence[float]) -> np.ndarray:
    """Return the n numbers of each of P processes, [P,n] float64, the same everywhere."""
    if processes.num_processes == 1:
        return np.array([numbers], dtype=np.float64)
    import torch
    from accelerate.utils import gather

    return gather(torch.tensor([numbers], dtype=torch.float64, device=processes.device)).cpu().numpy()


def leave() -> None:
    """Part from the others at the end of a command; of one that failed the launcher ends the others."""
    if launched() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def partner_ended(error: BaseException) -> bool:
    """Whether an error says that another process of this launch is gone."""
    import torch

    if launched() == 1 or not isinstance(error, RuntimeError):
        return False
    broken = isinstance(error, torch.distributed.DistError)
    return broken or any(word in str(error) for word in _BROKEN)


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in a precision; none for fp32.

    Casts of weights are not kept: one made without gradients would hide the weight from later ones.
    """
    if precision == "fp32":
        return nullcontext()
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(torch.device(device).type, dtype=dtype, cache_enabled=False)


def micro_batches(batch: int, *, micro: int | None = None, count: int = 1, index: int = 0) -> list[range]:
    """Return the places within a batch that a process takes, a range a micro batch.

    count, index: of the processes; they take equal shares in order, so their mean gradient is the batch's.
    BenchError where shares or micro batches would differ in size.
    """
    share, odd = divmod(batch, count)
    size = micro or share
    if odd or size > share or share % size:
        raise BenchError(
            f"a batch of {batch} images cannot be divided among {count} process(es) in micro batches of "
            f"{micro or 'equal size'}. Choose --micro-batch and the number of processes so that their "
            "product divides the batch."
        )
    first = index * share
    return [range(start, start + size) for start in range(first, first + share, size)]


def check_execution(config: RunConfig, training: Training, *, device: str, count: int = 1) -> None:
    """Raise BenchError for what this machine or launch of `count` processes cannot do."""
    if training.precision == "fp16" and device == "cpu":
        raise BenchError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32.")
    if training.precision == "bf16" and device != "cpu":
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise BenchError("this GPU has no bf16. Use --precision fp16 or fp32.")
    asked = [name for name in _SHARDING if os.environ.get(name, "").lower() == "true"]
    if asked:
        raise BenchError(
            f"{asked[0]} is set: only plain data parallelism is supported. Choose multi-GPU in "
            "`accelerate config`, or give --multi_gpu to accelerate launch."
        )
    micro_batches(training.batch, micro=config.micro_batch, count=count)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in config.track:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS)
        if name not in map(str, get_available_trackers()):
            raise BenchError(f"--track {name}: the package is not installed. Run `pip install {name}`.")
    if config.compile:
        _check_compiler(device)


def _check_compiler(device: str) -> None:
    """Compile a trifle: the one way to know that compilers and drivers work together."""
    import torch

    try:
        torch.compile(lambda x: (x + 1).relu())(torch.ones(8, device=device))
    except Exception as error:  # torch raises many kinds
        raise_of_machine(error)
        reason = str(error).strip().splitlines()[0]
        raise BenchError(
            f"--compile: torch.compile does not work here ({reason}). It needs a C++ compiler on a "
            "CPU and Triton on a GPU; run without --compile."
        ) from error


@contextmanager
def rebuilt(denoiser: Any, config: RunConfig) -> Iterator[None]:
    """Recompute and compile inside the denoiser as asked while open, and leave it as it was.

    Raises BenchError where the denoiser has nothing to recompute or compile.
    """
    modules = list(denoiser.modules())
    models = [m for m in modules if getattr(m, "_supports_gradient_checkpointing", False)]
    blocks = [m for m in modules if type(m).__name__ == _COMPILED]
    if config.gradient_checkpointing and not models:
        raise BenchError(
            "--gradient-checkpointing: this method has no diffusers model that can recompute its "
            "blocks. Run without it, or with a smaller --micro-batch."
        )
    if config.compile and not blocks:
        raise BenchError("--compile: this method has no transformer blocks. Run without it.")
    with ExitStack() as undone:
        for model in models if config.gradient_checkpointing else ():
            model.enable_gradient_checkpointing()
            undone.callback(model.disable_gradient_checkpointing)
        for block in blocks if config.compile else ():
            block.compile()
            undone.callback(setattr, block, "_compiled_call_impl", None)
        yield


class Engine:
    """A denoiser and its optimiser under accelerate: gradients of a batch, clipping, steps, logs.

    loss: (step, places within the batch) -> scalar; it calls the denoiser. optimiser: a plain one.
    training: of which batch and precision count. folder: where trackers write.
    """

    def __init__(
        self,
        denoiser: Any,
        optimiser: Any,
        *,
        loss: Callable[..., torch.Tensor],
        training: Training,
        device: str = "cpu",
        config: RunConfig = RunConfig(),
        folder: Path | None = None,
    ) -> None:
        from accelerate import Accelerator, utils
        from accelerate.state import AcceleratorState

        self.processes = join(device)
        count, index = self.processes.num_processes, self.processes.process_index
        self.parts = micro_batches(training.batch, micro=config.micro_batch, count=count, index=index)
        plugin = utils.GradientAccumulationPlugin(num_steps=len(self.parts), sync_with_dataloader=False)
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision="no" if training.precision == "fp32" else training.precision,
            cpu=device == "cpu",
            device_placement=False,
            dynamo_backend="no",
            log_with=list(config.track) or None,
            project_dir=folder,
            gradient_accumulation_plugin=plugin,
            kwargs_handlers=[
                utils.AutocastKwargs(cache_enabled=False),  # see `autocast`
                utils.DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # not copied for exchange
            ],
        )
        module = _as_module(denoiser, loss)
        self.silent: list[Any] = []
        if count > 1:
            # DDP must not see parameters that no example gives a gradient (dead ones). Of torch's ways to
            # find them one warns where there are none, the other fails with micro batches: so one is tried.
            with self.accelerator.autocast():
                tried = module(0, self.parts[0].start, self.parts[0].start + 1)
            tried.backward()
            self.silent = [p for p in module.parameters() if p.requires_grad and p.grad is None]
            module.zero_grad(set_to_none=True)
        for parameter in self.silent:
            parameter.requires_grad_(False)
        self.module = self.accelerator.prepare_model(module)
        for parameter in self.silent:
            parameter.requires_grad_(True)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self.scaler = self.accelerator.scaler

    def backward(self, step: int) -> float:
        """Leave the batch's mean gradient in the parameters; return its mean loss: of all processes alike."""
        losses = []
        for places in self.parts:
            with self.accelerator.accumulate(self.module):
                loss = self.module(step, places.start, places.stop)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        if any(p.grad is not None for p in self.silent):
            raise BenchError(
                f"a parameter without gradient at the start got one at step {step}: which parameters "
                "train depends on the examples, and processes would drift apart. Use one process."
            )
        mean = sum(float(loss) for loss in losses) / len(losses)
        return float(gathered(self.processes, [mean]).mean())

    def descend(self, parameters: Sequence[Any], *, clip: float) -> float:
        """Clip to a norm, step and forget the gradients; return the norm before clipping.

        One that is not finite leaves the weights untouched; it is returned as 0 while fp16's loss scale is
        sought.
        """
        norm = float(self.accelerator.clip_grad_norm_(parameters, clip))
        finite = math.isfinite(norm)
        searching = self.scaler is not None and self.scaler.get_scale() > 1
        if not finite and not searching:
            return norm
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm if finite else 0.0

    def begin_log(self, name: str, settings: dict[str, Any]) -> None:
        """Tell the trackers the run's name and settings (plain values)."""
        self.accelerator.init_trackers(_PROJECT, settings, init_kwargs=_named(name))

    def log(self, step: int, **values: float) -> None:
        """Tell the trackers values of a step; does nothing without any."""
        if self.accelerator.trackers:
            self.accelerator.log(values, step=step)

    def close(self) -> None:
        """End the trackers. The processes stay joined: sampling comes next."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def report(
    kinds: Sequence[str], name: str, *, folder: Path, step: int, said: dict[str, float], sheet: Path
) -> None:
    """Tell the trackers of a run's end, in a run of its name: final numbers and a sheet of pictures.

    kinds: of trackers. folder: where they write.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    from bench.data.picture import decode, picture_bytes  # Pillow, which lists need not load

    for kind in kinds:
        known = LOGGER_TYPE_TO_CLASS[kind]
        where = (folder,) if known.requires_logging_directory else ()
        tracker = known(_PROJECT, *where, **_named(name).get(kind, {}))
        tracker.start()
        tracker.log(said, step=step)
        if hasattr(tracker, "log_images"):
            pixels = decode(picture_bytes(sheet)).pixels
            form = {"dataformats": "NHWC"} if kind == "tensorboard" else {}
            pictures = pixels if kind in ("aim", "clearml") else pixels[None]  # others take several
            tracker.log_images({"samples": pictures}, step=step, **form)
        elif hasattr(tracker, "log_artifact"):
            tracker.log_artifact(str(sheet))
        tracker.finish()


def _named(name: str) -> dict[str, dict[str, str]]:
    return {"wandb": {"name": name, "group": name}, "mlflow": {"run_name": name}}


def _as_module(denoiser: Any, loss: Callable[..., torch.Tensor]) -> Any:
    """Return a module whose forward is the loss: DDP sees one call, whatever the denoiser does."""
    import torch

    class Objective(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, step: int, first: int, last: int) -> torch.Tensor:
            return loss(step=step, places=range(first, last))

    return Objective()
