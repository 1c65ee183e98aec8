"""Many runs of one recipe on one task as one program: a member is a seed and a learning rate.

The members' parameters and states have a leading axis, over which the step is vmapped and which is split over the devices;
counts of calls stay scalars (`optchain.sweep`), so that an accumulation within, or a refresh of SOAP, stays a branch. No device needs anything of
another's. A member's numbers follow from its seed and its rate alone.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optchain
from optchain.core import arguments
from optchain.core.sweep import member_axes
from optchain.core.trees import Tree
from optchain.race.entrant import Entrant, evaluated
from optchain.race.group import Group
from optchain.race.task import Shape, Task
from optchain.race.unfinished import Unfinished

AXIS = "members"
LARGEST_SEED = 2**32 - 1


class StoppedError(Exception):
    """A group was asked to stop. Its work so far is on disk if it was given a folder."""


class Program:
    """The compiled program of a recipe on a task, for groups of `width` members.

    Args:
      task: what to train.
      entrant: the recipe.
      width: how many members a group has at most. The program has as many more, that nobody looks at, as make it a multiple of
        the devices.
      shape: the schedule, unless the recipe has its own.
      devices: over which the members are split.

    Raises:
      ValueError: a loss or a held-out loss that is no real number.
    """

    def __init__(self, task: Task, entrant: Entrant, width: int, shape: Shape, devices: Sequence[Any] | None = None):
        devices = list(devices or jax.local_devices())
        self.task, self.entrant, self.width, self.shape = task, entrant, width, shape
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.params: Any = task.shapes()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.params)
        entrant.check_for(zeros)
        self.rates = entrant.rates(zeros, task.steps)
        self._settable = entrant.settable_rates(zeros)
        state = jax.eval_shape(entrant.tx.init, zeros)
        # Of Optax's counts it is not known whether they are the same for all members: where nothing accumulates each has its own.
        apart = entrant.calls == 1 and entrant.has_optax_links
        self._axes = jax.tree.map(lambda _: 0, state) if apart else member_axes(state)
        self._compiled: tuple[Callable[..., Any], Callable[..., Any], float] | None = None

    @functools.cached_property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @functools.cached_property
    def state_bytes(self) -> int:
        """Of one member's state."""
        state = jax.eval_shape(self.entrant.tx.init, self.params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all that a member's numbers follow from, besides its seed and its factor. See `Task.digest`."""
        key = jax.eval_shape(jax.random.key, 0)
        params, state = jax.eval_shape(lambda key: self._fresh(self.task.init(key)), key)
        numbers = (params, state, key, jnp.float32(1), jnp.int32(0))
        step = jax.jit(self._member()).trace(*numbers).lower(lowering_platforms=("cpu",)).as_text()
        return hashlib.sha256(f"{self.task.digest()} {step}".encode()).hexdigest()[:16]

    def run(
        self,
        seeds: Sequence[int],
        factors: Sequence[float],
        *,
        folder: Path | None = None,
        advance: Callable[[int, float], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Group:
        """Trains the members of these seeds and factors, side by side.

        Args:
          seeds: of the parameters and the batches, one a member; at most as many as the program is wide.
          factors: by which the member's learning rates are multiplied.
          folder: where a group that is not done yet is kept; one that is there already goes on.
          advance: is called with the steps done and the mean held-out loss, at every evaluation.
          stop: is asked at every evaluation; if it says so the group is saved, and `StoppedError` raised.

        Raises:
          ValueError: more members than the program is wide; a seed or a factor out of range; a folder that holds another group, or
            a damaged one.
        """
        count = len(seeds)
        if not 0 < count == len(factors) <= self.width:
            raise ValueError(f"give 1 to {self.width} seeds, and a factor each; got {count} and {len(factors)}")
        seeds = [arguments.check_integer("a seed", seed, minimum=0, maximum=LARGEST_SEED) for seed in seeds]
        for factor in factors:
            arguments.check_number("a factor", factor, arguments.POSITIVE)
        about = {"seeds": seeds, "factors": [float(factor) for factor in factors]}
        saved = None if folder is None else Unfinished(Path(folder), lambda: {**about, "program": self.digest})
        done, curves, seconds = (0, [], []) if saved is None else saved.state()
        keys = self._put(jax.vmap(jax.random.key)(self._padded(jnp.array(seeds, jnp.uint32))))
        shares = self._put(self._padded(jnp.array(factors, jnp.float32)))
        arrays = self._begin(keys)
        step_chunk, evaluate, compile_seconds = self._compile(arrays, keys, shares)
        length = self.task.steps // self.task.evaluations

        if done and saved is not None:
            arrays = self._all(saved.restore(self._first(arrays, count)))
        else:
            curves = [evaluate(*arrays)[:count].tolist()]
        while done < self.task.evaluations:
            began = time.perf_counter()
            arrays = jax.block_until_ready(step_chunk(*arrays, keys, shares, jnp.int32(done * length)))
            seconds.append(time.perf_counter() - began)
            done += 1
            curves.append(evaluate(*arrays)[:count].tolist())
            if advance is not None:
                advance(done * length, float(np.mean(curves[-1])))
            if done == self.task.evaluations:
                break
            stops = stop()
            if saved is not None and (stops or saved.is_due()):
                saved.save(done, self._first(arrays, count), curves, seconds)
            if stops:
                raise StoppedError
        held_out = np.array(curves).T
        return Group(
            list(seeds),
            [float(factor) for factor in factors],
            [length * n for n in range(done + 1)],
            [[_number(x) for x in row] for row in held_out],
            _digests(self._first(arrays, count)[0]),
            1000 * float(np.median(seconds)) / (length * self._padded_width),
            compile_seconds,
        )

    # The members -----------------------------------------------------------------------------------------------------

    def _member(self) -> Callable[..., tuple[Tree, Any]]:
        """A step of one member: a batch, in as many parts as the recipe accumulates calls."""
        task, entrant, calls = self.task, self.entrant, self.entrant.calls

        def member(params: Tree, state: Any, key: jax.Array, factor: jax.Array, count: jax.Array) -> tuple[Tree, Any]:
            batch = task.batch(jax.random.fold_in(_batches(key), count))
            step = optchain.make_step(task.loss, entrant.scaled_by(factor))
            share = factor if entrant.has_schedule else factor * self.shape(count)

            def call(carry: tuple[Tree, Any], part: Tree) -> tuple[Tree, Any]:
                params, state = carry
                state = optchain.set_hyperparams(state, {key: rate * share for key, rate in self._settable.items()})
                return step(params, state, part)[:2]

            if calls == 1:
                return call((params, state), batch)
            parts = jax.tree.map(lambda leaf: _split(leaf, calls, entrant.name), batch)
            return jax.lax.scan(lambda carry, part: (call(carry, part), None), (params, state), parts)[0]

        return member

    def _fresh(self, params: Tree) -> tuple[Tree, Any]:
        """The parameters to train of those that the task made, and their state."""
        return self.entrant.narrowed(params), self.entrant.tx.init(params)

    def _begin(self, keys: jax.Array) -> tuple[Tree, Any]:
        def begin(keys: jax.Array) -> tuple[Tree, Any]:
            params = jax.vmap(lambda key: self.task.init(jax.random.fold_in(key, 0)))(keys)
            return jax.vmap(self._fresh, out_axes=(0, self._axes))(params)

        return jax.jit(begin, out_shardings=self._shardings)(keys)

    def _compile(self, arrays: Any, keys: jax.Array, factors: jax.Array) -> Any:
        if self._compiled is not None:
            return self._compiled
        members = jax.vmap(self._member(), in_axes=(0, self._axes, 0, 0, None), out_axes=(0, self._axes))
        length = self.task.steps // self.task.evaluations

        def chunk(params: Tree, state: Any, keys: jax.Array, factors: jax.Array, first: jax.Array) -> tuple[Tree, Any]:
            def step(carry: tuple[Tree, Any], count: jax.Array) -> tuple[tuple[Tree, Any], None]:
                return members(*carry, keys, factors, count), None

            return jax.lax.scan(step, (params, state), first + jnp.arange(length))[0]

        def evaluate(params: Tree, state: Any) -> jax.Array:
            def loss(params: Tree, state: Any) -> jax.Array:
                return self.task.held_out_loss(evaluated(params, state))

            return jax.vmap(loss, in_axes=(0, self._axes))(params, state)

        split, both = P(AXIS), (P(AXIS), self._specs)
        began = time.perf_counter()
        over = functools.partial(jax.shard_map, mesh=self.mesh, check_vma=False)  # each device's members are its own
        stepped = over(chunk, in_specs=(*both, split, split, P()), out_specs=both)
        looked = over(evaluate, in_specs=both, out_specs=split)
        stepped = jax.jit(stepped, donate_argnums=(0, 1)).lower(*arrays, keys, factors, jnp.int32(0)).compile()
        looked = jax.jit(looked).lower(*arrays).compile()
        self._compiled = (stepped, looked, time.perf_counter() - began)
        return self._compiled

    @property
    def _specs(self) -> Any:
        return jax.tree.map(lambda axis: P() if axis is None else P(AXIS), self._axes, is_leaf=lambda n: n is None)

    @property
    def _shardings(self) -> Any:
        place = functools.partial(NamedSharding, self.mesh)
        return place(P(AXIS)), jax.tree.map(place, self._specs, is_leaf=lambda n: isinstance(n, P))

    @property
    def _padded_width(self) -> int:
        return -(-self.width // self.mesh.size) * self.mesh.size

    def _padded(self, array: jax.Array) -> jax.Array:
        """An array of all members from that of the first ones. The others are like the first, and nobody looks at them."""
        return jnp.concatenate([array, jnp.repeat(array[:1], self._padded_width - len(array), axis=0)])

    def _first(self, arrays: tuple[Tree, Any], count: int) -> tuple[Tree, Any]:
        """What is kept of parameters and states: the first members. The others depend on the number of devices."""

        def first(axis: int | None, tree: Any) -> Any:
            return tree if axis is None else jax.tree.map(lambda leaf: leaf[:count], tree)

        return first(0, arrays[0]), jax.tree.map(first, self._axes, arrays[1], is_leaf=lambda n: n is None)

    def _all(self, arrays: tuple[Tree, Any]) -> tuple[Tree, Any]:
        """The parameters and states of all members, where they belong, from those of the first."""

        def all_of(axis: int | None, tree: Any) -> Any:
            return tree if axis is None else jax.tree.map(self._padded, tree)

        padded = all_of(0, arrays[0]), jax.tree.map(all_of, self._axes, arrays[1], is_leaf=lambda n: n is None)
        return jax.device_put(padded, self._shardings)

    def _put(self, array: jax.Array) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, P(AXIS)))


def _batches(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 1)


def _split(leaf: jax.Array, calls: int, name: str) -> jax.Array:
    if jnp.ndim(leaf) == 0:
        raise ValueError(f"{name} takes a batch in {calls} parts, and an array of it has no axis of examples")
    if leaf.shape[0] % calls:
        raise ValueError(f"{name} takes a batch in {calls} parts, and it has {leaf.shape[0]} examples")
    return leaf.reshape(calls, leaf.shape[0] // calls, *leaf.shape[1:])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _digests(params: Tree) -> list[str]:
    members = zip(*jax.tree.leaves(jax.device_get(params)), strict=True)
    return [hashlib.sha256(b"".join(leaf.tobytes() for leaf in member)).hexdigest()[:16] for member in members]
