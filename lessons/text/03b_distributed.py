# %% [markdown]
# # 03b. Several processes, one model

# %%
#| default_exp distributed

# %%
#| export
from collections.abc import Iterable
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.workshop import UserError, ranks


# %%
#| export
def init_from_env(
    device: torch.device | str = "cpu",  # where this process computes
) -> None:
    """Join the processes that `torchrun` started; alone, do nothing.

    CPU tensors travel by gloo and CUDA tensors by NCCL."""
    if ranks()[2] == 1 or dist.is_initialized(): return
    device = torch.device(device)
    if device.type == "cuda": torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def cleanup() -> None:
    "Leave the group, if one was joined: what the environment says does not matter."
    if dist.is_initialized(): dist.destroy_process_group()


@contextmanager
def session(device: torch.device | str = "cpu"):
    "A block in which the processes of `torchrun` work together; they part at its end, also after an error."
    init_from_env(device)
    try: yield
    finally: cleanup()


# %%
#| export
def average_tensors(
    tensors: Iterable[Tensor],  # floating point, the same shapes on every rank; changed in place
    bucket: int = 2**25,        # numbers that travel together
) -> None:
    "Replace tensors by their mean over all ranks: few large messages, in flight at the same time. Alone, nothing happens."
    if not dist.is_initialized(): return
    flights = []
    for group in _buckets(tensors, bucket):
        flat = torch.cat([t.reshape(-1) for t in group])
        flights.append((group, flat, dist.all_reduce(flat, async_op=True)))
    for group, flat, flight in flights:
        flight.wait()
        _unpack(flat.div_(dist.get_world_size()), group)


def _buckets(tensors: Iterable[Tensor], size: int) -> list[list[Tensor]]:
    "Tensors of one dtype and device, in order, cut into groups of at least `size` numbers."
    groups: list[list[Tensor]] = []
    for t in tensors:
        last = groups[-1] if groups else []
        alike = last and (last[0].dtype, last[0].device) == (t.dtype, t.device)
        if alike and sum(x.numel() for x in last) < size: last.append(t)
        else: groups.append([t])
    return groups


@torch.no_grad()
def _unpack(flat: Tensor, tensors: list[Tensor]) -> None:
    "Copy a flat tensor back into the tensors that it was made of."
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors])): t.copy_(part.view_as(t))


# %%
#| export
def average_gradients(
    params: Iterable,  # parameters with gradients
) -> None:
    "Replace each gradient by its mean over all ranks. Do it before clipping: a clipped mean is not a mean of clips."
    average_tensors([p.grad for p in params if p.grad is not None])


def gather_objects(
    thing,     # anything small that can be pickled
) -> list:     # one of each rank, in order, on every rank
    "Everybody's `thing`, everywhere."
    if not dist.is_initialized(): return [thing]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


def any_rank(
    flag: bool,  # of this rank
) -> bool:       # the same on every rank
    "Whether the flag is set on any rank. Travels between CPUs, so that no GPU is waited for."
    if not dist.is_initialized(): return flag
    seen = torch.tensor(float(flag))
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen)


# %%
#| export
def owners(
    sizes: list[int],  # numbers in each parameter
    world: int,        # ranks
) -> list[int]:        # the rank that owns each
    "Share parameters out: the largest first, each to the rank that has least so far."
    load, owner = [0] * world, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = min(range(world), key=lambda r: (load[r], r))
        load[owner[i]] += sizes[i]
    return owner


# %%
#| export
class ShardedOptimizer:
    """Each rank keeps the optimizer state of its own parameters, updates those, and sends them to the others.

    Whole parameters are owned, so any number and any shape will do (ZeRO stage 1, Rajbhandari et al. 2020).
    Average the gradients over the ranks before `step`."""

    def __init__(self,
        optimizer,  # one whose step takes `allowed`, and updates each parameter by itself; fresh
    ):
        if not dist.is_initialized(): raise UserError("a sharded optimizer needs init_from_env() first, under torchrun")
        self.rank, self.world, self.optimizer = dist.get_rank(), dist.get_world_size(), optimizer
        self.layout = [list(group["params"]) for group in optimizer.param_groups]      # of all ranks
        self.params = [p for group in self.layout for p in group]
        self.owner = [(r + k) % self.world for k, group in enumerate(self.layout)      # each group starts elsewhere
                      for r in owners([p.numel() for p in group], self.world)]
        mine = {id(p) for p, r in zip(self.params, self.owner) if r == self.rank}
        for group in optimizer.param_groups: group["params"] = [p for p in group["params"] if id(p) in mine]

    @property
    def param_groups(self) -> list[dict]:
        "The groups with their settings; \"params\" holds only what this rank owns."
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        "Forget all gradients, also of parameters that other ranks own."
        for p in self.params:
            if set_to_none: p.grad = None
            elif p.grad is not None: p.grad.zero_()

    @torch.no_grad()
    def step(self, allowed: Tensor | None = None) -> None:
        "Update what this rank owns, then give every rank everything. `allowed` as for the optimizer inside."
        self.optimizer.step(allowed)
        flights = []
        for rank in range(self.world):
            owned = [p for p, r in zip(self.params, self.owner) if r == rank]
            for group in _buckets(owned, 2**25):
                flat = torch.cat([p.detach().reshape(-1) for p in group])
                flights.append((rank, group, flat, dist.broadcast(flat, src=rank, async_op=True)))
        for rank, group, flat, flight in flights:
            flight.wait()
            if rank != self.rank: _unpack(flat, group)

    def state_dict(self) -> dict:
        """The state of all ranks in the form of an unsharded optimizer, on rank 0; elsewhere only the groups.

        Every rank must call it. It loads into any number of ranks, or into the optimizer without shards."""
        state = {i: dict(self.optimizer.state.get(p, {})) for i, p in enumerate(self.params)}
        layouts = gather_objects({i: {k: tuple(v.shape) for k, v in s.items()} for i, s in state.items() if s})
        whole: dict[int, dict] = {}
        for rank, layout in enumerate(layouts):
            for i, shapes in layout.items():
                for key, shape in shapes.items():
                    value = self._from(rank, state[i].get(key), shape, self.params[i].device)
                    if self.rank == 0: whole.setdefault(i, {})[key] = value.cpu()
        return {"state": dict(sorted(whole.items())), "param_groups": self._groups()}

    def _from(self, rank: int, value: Tensor | None, shape: tuple, device: torch.device) -> Tensor:
        "One fp32 tensor of the state, sent by the rank that has it."
        if self.rank != rank: value = torch.empty(shape, device=device)
        dist.broadcast(value, src=rank)
        return value

    def _groups(self) -> list[dict]:
        "The groups as torch numbers them: parameters counted through all groups."
        numbers = iter(range(len(self.params)))
        return [{**{k: v for k, v in group.items() if k != "params"}, "params": [next(numbers) for _ in layout]}
                for group, layout in zip(self.param_groups, self.layout)]

    def load_state_dict(self, found: dict) -> None:
        "Take this rank's part of a whole state. `ValueError` when it has other groups."
        if [len(g["params"]) for g in found["param_groups"]] != [len(g) for g in self.layout]:
            raise ValueError("the stored optimizer has other groups of parameters")
        for group, stored in zip(self.param_groups, found["param_groups"]):
            group.update({k: v for k, v in stored.items() if k != "params"})
        for i, (p, owner) in enumerate(zip(self.params, self.owner)):
            if owner == self.rank and i in found["state"]:
                self.optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in found["state"][i].items()}
