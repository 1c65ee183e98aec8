"""The table that the contract tests run over: one row per public transformation and preset.

A new transformation gets every test of this folder by one row here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optchain as oc
from optchain.testing import Subject as Row


def only_matrices(params: Any) -> Any:
    """A mask that is a plain function."""
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


def constant_rate() -> float:
    """A learning rate that is read on the host."""
    return 0.05


HALVED = oc.schedules.PiecewiseConstantDecay([1], [0.1, 0.05])
# One object, not one a call: two of Optax's closures are never equal.
OPTAX_TRACE = optax.trace(0.9)
OPTAX_ADAM = optax.scale_by_adam(b1=0.8)


def _body(**options: Any) -> oc.Transformation:
    return oc.chain(
        oc.clip_by_global_norm(0.5),
        oc.scale_by_adam(**options),
        oc.scale_by_learning_rate(),
        oc.decay_weights(0.1),
        learning_rate=0.1,
    )


ROWS = [
    Row("clip_by_value", lambda: oc.clip_by_value(0.5), refuses_complex=True),
    Row("clip_by_norm", lambda: oc.clip_by_norm(0.5)),
    Row("clip_by_global_norm", lambda: oc.clip_by_global_norm(0.5)),
    Row("clip_by_global_norm_array", lambda: oc.clip_by_global_norm(jnp.array(0.5))),
    Row("zclip", lambda: oc.zclip(1.0, 0.5, 2)),
    Row("adagc", lambda: oc.adagc(1.01, 0.5, 2, max_norm=0.5)),
    Row("clip_by_block_rms", lambda: oc.clip_by_block_rms(0.5)),
    Row("adaptive_grad_clip", lambda: oc.adaptive_grad_clip(0.5, jnp.array(0.1))),
    Row("adaptive_grad_clip_axis", lambda: oc.masked(oc.adaptive_grad_clip(0.5, axis=[0, -1]), only_matrices)),
    Row("centralize_gradients", lambda: oc.centralize_gradients()),
    Row("add_noise", lambda: oc.add_noise(0.01, seed=3), zero_is_fixed_point=False),
    Row("scale_by_adam", lambda: oc.scale_by_adam()),
    Row("scale_by_adam_amsgrad", lambda: oc.scale_by_adam(0.5, amsgrad=True)),
    Row("scale_by_adam_torch", lambda: oc.scale_by_adam(epsilon=1e-3, epsilon_hat=False)),
    Row("scale_by_adam_bfloat16", lambda: oc.scale_by_adam(moment_dtype="bfloat16")),
    Row("scale_by_adam_arrays", lambda: oc.scale_by_adam(jnp.array(0.9), half_schedule, jnp.array(1e-3))),
    Row("scale_by_ademamix", lambda: oc.scale_by_ademamix(beta_3=jnp.array(0.99), epsilon=1e-3)),
    Row("scale_by_ademamix_warmup", lambda: oc.scale_by_ademamix(beta_3=0.99, warmup_steps=3)),
    Row("apply_momentum", lambda: oc.apply_momentum(0.9)),
    Row("apply_momentum_dampening", lambda: oc.apply_momentum(0.9, dampening=0.5)),
    Row("apply_momentum_nesterov", lambda: oc.apply_momentum(0.9, nesterov=True, moment_dtype=jnp.bfloat16)),
    Row("scale_by_learning_rate", lambda: oc.scale_by_learning_rate(0.1)),
    Row("scale_by_learning_rate_schedule", lambda: oc.scale_by_learning_rate(HALVED)),
    Row("decay_weights", lambda: oc.decay_weights(0.1, learning_rate=0.5)),
    Row("decay_weights_masked", lambda: oc.decay_weights(jnp.array(0.1), learning_rate=HALVED, mask=only_matrices)),
    Row(
        "decay_weights_cautious",
        lambda: oc.chain(
            oc.scale_by_learning_rate(),
            oc.decay_weights(0.1, cautious=True, max_learning_rate=jnp.array(0.2)),
            learning_rate=HALVED,
        ),
    ),
    Row("decay_by_path", lambda: oc.decay_by_path({"": (0.1, 0.1)}, learning_rate=HALVED)),
    Row("add_l2_penalty", lambda: oc.add_l2_penalty(jnp.array(0.1), mask=only_matrices)),
    Row("scale_negative", lambda: oc.scale(-1.0)),
    Row("scale_by_path", lambda: oc.scale_by_path({"": 0.5})),
    Row("average_params", lambda: oc.average_params(0.5)),
    Row("average_params_overwrite", lambda: oc.average_params(0.9, overwrite_every=2, average_dtype="bfloat16")),
    Row("accumulate", lambda: oc.accumulate(_body(), 3)),
    Row("accumulate_bfloat16", lambda: oc.accumulate(oc.scale_by_learning_rate(0.1), 2, accumulator_dtype="bfloat16")),
    Row("accumulate_schedule", lambda: oc.accumulate(oc.sgd(0.1, 0.9), growing_window)),
    Row("skip_nonfinite", lambda: oc.skip_nonfinite(_body(), 2)),
    Row("skip_spikes", lambda: oc.skip_spikes(_body(), 4, 2.0, 2)),
    Row("dynamic_loss_scale", lambda: oc.dynamic_loss_scale(oc.accumulate(_body(), 2), 8.0, 2)),
    Row("cautious", lambda: oc.cautious(oc.chain(oc.clip_by_norm(0.5), oc.scale_by_adam(amsgrad=True)))),
    Row("cautious_rate", lambda: oc.cautious(oc.chain(oc.scale_by_learning_rate(0.1), oc.apply_momentum(0.9)))),
    Row("masked", lambda: oc.masked(oc.clip_by_global_norm(0.5), only_matrices)),
    Row("compact", lambda: oc.compact(_body(amsgrad=True), moments="bfloat16", min_size=1)),
    Row(
        "compact_gate",
        lambda: oc.compact(
            oc.skip_nonfinite(oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)),
            moments={"nu": "bfloat16"},
            average="bfloat16",
            accumulator="bfloat16",
            min_size=1,
        ),
    ),
    Row("masked_gate", lambda: oc.masked(oc.accumulate(_body(), 2), oc.matching("bias", allow_unmatched=True))),
    Row("masked_average", lambda: oc.masked(oc.average_params(0.5), only_matrices)),
    Row("freeze", lambda: oc.freeze(_body(), oc.matching("bias", "^0", allow_unmatched=True))),
    Row(
        "freeze_gate",
        lambda: oc.freeze(
            oc.adamw(0.1, weight_decay=0.1, use_ema=True, loss_scale_factor=8.0, gradient_accumulation_steps=3),
            only_matrices,
        ),
    ),
    Row(
        "freeze_optax",
        lambda: oc.freeze(OPTAX_ADAM, only_matrices),
        has_code=False,
        owns_all_state=False,
    ),
    Row(
        "multi_optimizer",
        lambda: oc.multi_optimizer(
            ("matrices", only_matrices, oc.adamw(0.1, use_ema=True, gradient_accumulation_steps=2)),
            ("biases", oc.matching("bias", allow_unmatched=True), oc.skip_nonfinite(oc.sgd(0.1, 0.9))),
            default=oc.clip_by_norm(0.5),
        ),
    ),
    Row(
        "multi_optimizer_gradient",
        lambda: oc.chain(
            oc.unscale_gradients(2.0),
            oc.multi_optimizer(("all", "", _body()), default=oc.adam(0.1)),
            oc.average_params(0.5),
        ),
    ),
    Row("lazy_rows", lambda: oc.lazy_rows(oc.adamw(0.1, global_clipnorm=0.5, use_ema=True), catch_up=True)),
    Row("monitor", lambda: oc.monitor(per_subtree=True)),
    Row("project_non_negative", lambda: oc.project_non_negative(), refuses_complex=True),
    Row("project_unit_norm", lambda: oc.project_unit_norm(mask=only_matrices)),
    Row("project_initial_norm", lambda: oc.project_initial_norm(mask=only_matrices)),
    Row(
        "hyperball",
        lambda: oc.chain(
            oc.masked(oc.scale_by_trust_ratio(axis=[0, -1]), only_matrices),
            oc.scale_by_learning_rate(0.1),
            oc.project_initial_norm([0, -1], mask=only_matrices),
        ),
    ),
    Row("project_max_norm", lambda: oc.project_max_norm(jnp.array(0.5), [0, 1], mask=only_matrices)),
    Row(
        "project_min_max_norm",
        lambda: oc.chain(oc.sgd(0.1), oc.project_min_max_norm(0.5, 1.0, 0.5, mask=only_matrices)),
    ),
    Row("unscale_gradients", lambda: oc.unscale_gradients(1024.0)),
    Row("chain", lambda: oc.chain(_body(amsgrad=True), oc.average_params(0.9), name="outer")),
    Row(
        "chain_with_optax",
        lambda: oc.chain(
            ("adam", OPTAX_ADAM), oc.scale_by_learning_rate(), ("trace", OPTAX_TRACE), OPTAX_TRACE, learning_rate=0.1
        ),
        has_code=False,
        owns_all_state=False,
    ),
    Row(
        "adamw",
        lambda: oc.adamw(
            0.1,
            weight_decay=0.1,
            amsgrad=True,
            global_clipnorm=0.5,
            use_ema=True,
            loss_scale_factor=8.0,
            gradient_accumulation_steps=3,
            exclude_from_weight_decay=only_matrices,
        ),
    ),
    Row("adamw_array", lambda: oc.adamw(jnp.array(0.1), jnp.array(0.1), use_ema=True, moment_dtype="float32")),
    Row("adam", lambda: oc.adam(0.1, clipnorm=0.5, decay=0.5, use_ema=True, ema_overwrite_frequency=2)),
    Row("adam_callable", lambda: oc.adam(constant_rate), exports=False),
    Row(
        "sgd",
        lambda: oc.sgd(HALVED, 0.9, nesterov=True, weight_decay=0.1, clipvalue=0.5),
        refuses_complex=True,
    ),
    Row("scale_by_radam", lambda: oc.scale_by_radam(0.5, 0.9)),
    Row("scale_by_radam_arrays", lambda: oc.scale_by_radam(jnp.array(0.5), half_schedule)),
    Row("scale_by_nadam_keras_adamw", lambda: oc.scale_by_nadam(epsilon_in_root=True, next_momentum=False)),
    Row("scale_by_adamax_torch", lambda: oc.scale_by_adamax(epsilon_in_maximum=True)),
    Row("scale_by_rss_torch", lambda: oc.scale_by_rss(0.0, 1e-3, epsilon_in_root=False)),
    Row("scale_by_adam_optax", lambda: oc.scale_by_adam(0.5, epsilon_hat=False, epsilon_root=0.1, nesterov=True)),
    Row("scale_by_rms_optax", lambda: oc.scale_by_rms(0.5, initial_accumulator_value=0.5)),
    Row("optax_adamw", lambda: oc.presets.optax.adamw(0.1, eps_root=0.1, weight_decay=0.1, nesterov=True)),
    Row("optax_adam", lambda: oc.presets.optax.adam(HALVED, 0.8)),
    Row("optax_nadamw", lambda: oc.presets.optax.nadamw(0.1, b2=0.9)),
    Row("optax_nadam", lambda: oc.presets.optax.nadam(jnp.array(0.1))),
    Row("optax_sgd", lambda: oc.presets.optax.sgd(0.1, 0.5, nesterov=True)),
    Row("optax_lion", lambda: oc.presets.optax.lion(0.1, 0.5, weight_decay=0.1)),
    Row("optax_lamb", lambda: oc.presets.optax.lamb(0.1, weight_decay=0.1)),
    Row("optax_rmsprop", lambda: oc.presets.optax.rmsprop(0.1, momentum=0.9, initial_scale=0.5)),
    Row("optax_adagrad", lambda: oc.presets.optax.adagrad(0.1, eps=0.1)),
    Row("torch_adamw", lambda: oc.presets.torch.adamw(0.1, (0.8, 0.9), amsgrad=True, maximize=True)),
    Row("torch_adam", lambda: oc.presets.torch.adam(HALVED, weight_decay=0.1)),
    Row("torch_nadam", lambda: oc.presets.torch.nadam(0.1, weight_decay=0.1, decoupled_weight_decay=True)),
    Row("torch_radam", lambda: oc.presets.torch.radam(0.1, (0.5, 0.9), maximize=True)),
    Row("torch_adamax", lambda: oc.presets.torch.adamax(jnp.array(0.1), weight_decay=0.1)),
    Row("torch_rmsprop", lambda: oc.presets.torch.rmsprop(0.1, momentum=0.9, centered=True, eps=0.1)),
    Row("torch_adagrad", lambda: oc.presets.torch.adagrad(0.1, lr_decay=0.1, weight_decay=0.1)),
    Row("torch_adadelta", lambda: oc.presets.torch.adadelta(0.1, 0.5, 1e-3, weight_decay=0.1)),
    Row("torch_adafactor", lambda: oc.presets.torch.adafactor(0.1, eps=(1e-3, 1e-2), weight_decay=0.1)),
    Row("torch_asgd", lambda: oc.presets.torch.asgd(0.1, 0.1, t0=1, weight_decay=0.1, maximize=True)),
    Row("torch_muon", lambda: oc.masked(oc.presets.torch.muon(0.1, eps=1e-3), only_matrices)),
    Row("torch_rprop", lambda: oc.presets.torch.rprop(0.1, maximize=True)),
    Row("torch_sparse_adam", lambda: oc.presets.torch.sparse_adam(0.1, (0.8, 0.9), 1e-3, True)),
    Row("scale_by_rprop", lambda: oc.chain(oc.scale_by_rprop((0.6, 1.3), (1e-3, 1.0)), learning_rate=0.1)),
    Row("scale_by_asgd", lambda: oc.chain(oc.scale_by_asgd(0.1, 0.5), learning_rate=0.1)),
    Row("polyak_average", lambda: oc.chain(oc.sgd(0.1), oc.polyak_average(1))),
    Row(
        "scale_by_muon_average",
        lambda: oc.masked(oc.scale_by_muon_average(eps=1e-3, iteration_dtype="float32"), only_matrices),
    ),
    Row("scale_by_neuron_rms", lambda: oc.scale_by_neuron_rms(jnp.array(0.9), 1e-3)),
    Row("torch_sgd", lambda: oc.presets.torch.sgd(0.1, 0.9, 0.5, weight_decay=0.1, maximize=True)),
    Row(
        "keras_adamw_adamw",
        lambda: oc.presets.keras_adamw.adamw(
            0.1, total_iterations=3, use_cosine_annealing=True, lr_multipliers={"": 0.5}, weight_decays={"": (0.1, 0.1)}
        ),
    ),
    Row("keras_adamw_nadamw", lambda: oc.presets.keras_adamw.nadamw(0.1)),
    Row(
        "keras_adamw_sgdw",
        lambda: oc.presets.keras_adamw.sgdw(
            HALVED, 0.9, True, total_iterations=3, use_cosine_annealing=True, autorestart=False, eta_min=0.1
        ),
    ),
]


def half_schedule(count: Any) -> Any:
    """A schedule of Adam's second decay."""
    return 0.5 + 0.1 * jnp.minimum(count, 2).astype(jnp.float32)


FAMILY = [
    Row("adadelta", lambda: oc.adadelta(1.0, epsilon=1e-3, moment_dtype="bfloat16")),
    Row("adafactor", lambda: oc.adafactor(0.1, weight_decay=0.1)),
    Row("adagrad", lambda: oc.adagrad(0.1, weight_decay=0.1, clipnorm=0.5)),
    Row("adamax", lambda: oc.adamax(0.1, weight_decay=0.1, gradient_accumulation_steps=2)),
    Row("ftrl", lambda: oc.ftrl(0.5, weight_decay=0.1, l1_regularization_strength=0.1, beta=0.1)),
    Row("lamb", lambda: oc.lamb(0.1, weight_decay=jnp.array(0.1), exclude_from_weight_decay=only_matrices)),
    Row("lion", lambda: oc.lion(0.1, use_ema=True, exclude_from_weight_decay=only_matrices, weight_decay=0.1)),
    Row("loss_scale_optimizer", lambda: oc.loss_scale_optimizer(oc.lamb(0.1, loss_scale_factor=2.0), 8.0, 2)),
    Row(
        "muon",
        lambda: oc.muon(0.1, exclude_from_weight_decay=only_matrices, epsilon=1e-3),
    ),
    Row(
        "muon_adamw",
        lambda: oc.muon_adamw(0.1, scaling="width", coefficients="cans", epsilon=1e-3, use_ema=True),
    ),
    Row("nadam", lambda: oc.nadam(0.1, jnp.array(0.9), weight_decay=0.1)),
    Row("rmsprop", lambda: oc.rmsprop(0.1, momentum=0.9, epsilon=1e-3, centered=True, global_clipnorm=0.5)),
    Row("schedule_free_adamw", lambda: oc.schedule_free_adamw(0.1, warmup_steps=3, weight_decay=0.1, epsilon=1e-3)),
    Row("soap", lambda: oc.soap(0.1, epsilon=1e-3, precondition_frequency=2, merge_dims=True)),
    Row("scale", lambda: oc.scale(half_schedule)),
    Row(
        "scale_by_rms_corrected",
        lambda: oc.scale_by_rms(half_schedule, 1e-3, epsilon_in_root=False, bias_correction=True),
    ),
]
"""Keras's other optimizers and SOAP, and through them the links that they are made of."""

ROWS += FAMILY
ELSEWHERE = {
    "cross_replica_mean": "tests/transforms/test_replicas.py",
    "per_example": "tests/wrappers/test_per_example.py",
}
"""What no row can hold, since it works inside a named axis only or takes other gradients, and where it is tested."""

every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def growing_window(updates: Any) -> Any:
    """A schedule of the number of calls that an update is made of."""
    return 1 + jnp.minimum(updates, 1)


def rows_where(condition: Callable[[Row], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [row for row in ROWS if condition(row)], ids=str)
