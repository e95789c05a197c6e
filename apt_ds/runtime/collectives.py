"""What several processes do together. The only module that imports torch.distributed.

Every function also works in a single process where no process group exists.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as td

from apt_ds.config.errors import RankError
from apt_ds.runtime import launch_variables
from apt_ds.runtime.profiler import timed

T = TypeVar("T")
Store = td.Store
NODE_RANK = "APT_DS_LOCAL_RANK"  # the rank on this node, where LOCAL_RANK is the index of a device instead
BROKEN = (td.DistNetworkError, td.DistStoreError)  # what is raised where the store's process is gone


def ready() -> bool:
    """True once a process group exists."""
    return td.is_available() and td.is_initialized()


def rank() -> int:
    """Global rank. It comes from the environment while there is no process group yet."""
    return td.get_rank() if ready() else launch_variables.number("RANK")


def world_size() -> int:
    """Number of processes. It comes from the environment while there is no process group yet."""
    return td.get_world_size() if ready() else launch_variables.number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Rank on this node."""
    return launch_variables.number(NODE_RANK, launch_variables.number("LOCAL_RANK"))


def waits_for_lost_peers() -> bool:
    """Whether a collective waits for ever where a peer has died. NCCL's kernels do. Gloo raises an error."""
    return ready() and "nccl" in str(td.get_backend())


def is_main() -> bool:
    """True on the one rank that prints and writes."""
    return rank() == 0


@timed("reduce")
def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks in place and return it. Collective."""
    if ready() and td.get_world_size() > 1:
        td.all_reduce(tensor)
    return tensor


def from_main(tensor: torch.Tensor) -> torch.Tensor:
    """Give all ranks rank 0's values of `tensor`, in place, and return it. Collective."""
    if ready() and td.get_world_size() > 1:
        td.broadcast(tensor, src=0)
    return tensor


def barrier() -> None:
    """Wait until all ranks are here. Collective."""
    if ready() and td.get_world_size() > 1:
        td.barrier()


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in rank order, on every rank. Collective. For small objects only."""
    if not ready() or td.get_world_size() == 1:
        return [value]
    values: list[T | None] = [None] * td.get_world_size()
    td.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def to_main(own: dict[str, torch.Tensor], device: torch.device) -> Iterator[tuple[int, str, torch.Tensor]]:
    """(rank, name, tensor on the host) of every rank's tensors, one at a time, on rank 0. Nothing on other ranks.

    Collective: exhaust it on every rank. device: where tensors travel.
    """
    announced = gather_objects([(name, value.dtype, value.shape) for name, value in own.items()])
    for source, listed in enumerate(announced):
        for name, dtype, shape in listed:
            if source == rank() == 0:
                yield source, name, own[name].cpu()
            elif is_main():
                value = torch.empty(shape, dtype=dtype, device=device)
                td.recv(value, src=source)
                yield source, name, value.cpu()
            elif source == rank():
                td.send(own[name].to(device).contiguous(), dst=0)


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 and hand its (small, picklable) result to all ranks. Collective.

    An exception of rank 0 is raised on every rank, so that none waits for one that has left.
    """
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if ready() and td.get_world_size() > 1:
        td.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def on_each_rank(action: Callable[[], T]) -> T:
    """Run `action` on every rank, and return its result there. Collective.

    An exception on one rank is raised on all.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    for reported in gather_objects(failure):
        if reported is not None:
            raise reported
    return cast(T, result)


def on_each_node(action: Callable[[], T]) -> T | None:
    """Run `action` on the first rank of every node. The others wait. Collective.

    An exception on one node is raised on every rank of all nodes.

    Returns:
        What `action` returned, on the first rank of every node. None on the others.
    """
    return on_each_rank(lambda: action() if local_rank() == 0 else None)


def from_node(make: Callable[[], bytes]) -> bytes:
    """What `make` returns, made by the first rank of every node and read by the node's others. Collective.

    An exception on one node is raised on every rank of all nodes.
    """
    if world_size() == 1:
        return make()
    content, path = b"", ""
    failure: Exception | None = None
    if local_rank() == 0:
        try:
            content = make()
            with tempfile.NamedTemporaryFile(prefix="apt_ds_", delete=False) as file:
                file.write(content)
            path = file.name
        except Exception as error:
            failure = error
    places = gather_objects((path, failure))
    for _, reported in places:
        if reported is not None:
            raise reported
    if local_rank():
        content = Path(places[rank() - local_rank()][0]).read_bytes()
    barrier()
    if local_rank() == 0:
        Path(path).unlink()
    return content


def free_port() -> int:
    """A port nobody listens on at the moment, below those the system lends to connections: it may lend one any time."""
    while True:
        port = secrets.choice(range(10_000, 32_768))
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
        return port


def digest(*parts: object) -> str:
    """Short hash of arrays, tensors and anything with a stable repr."""
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy()
        hasher.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return hasher.hexdigest()[:16]


def agree(what: str, hash_: str) -> None:
    """Compare a decision's hash across ranks before anyone acts on it. Collective.

    Raises:
        RankError: on all ranks, naming those that differ from rank 0.
    """
    hashes = gather_objects(hash_)
    odd = [r for r, h in enumerate(hashes) if h != hashes[0]]
    if odd:
        raise RankError(f"ranks disagree on {what}: rank {odd} differs from rank 0 ({hashes}); stopping all ranks")


def mailbox(timeout: float) -> Store | None:
    """A connection of its own to the store the group was made through. None for a single process.

    The group's own connection is busy while a collective waits. timeout: seconds one request may take.
    """
    if world_size() == 1:
        return None
    place = os.environ["MASTER_ADDR"], launch_variables.number("MASTER_PORT")
    limit = timedelta(seconds=timeout)
    store = td.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=limit)
    return td.PrefixStore(f"apt_ds{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)


def shut_down() -> None:
    """Leave the process group, so that the interpreter ends without warnings."""
    if ready():
        td.destroy_process_group()
