"""For each transformation that needs arguments: the call that its picture shows."""

MATRICES = "lambda params: {'kernel': True, 'bias': False}"

CALLS = {
    "accumulate": "accumulate(optchain.scale_by_learning_rate(1.0), 4)",
    "adagc": "adagc(warmup_steps=10, max_norm=10.0)",
    "adaptive_grad_clip": "adaptive_grad_clip(0.5)",
    "add_l2_penalty": "add_l2_penalty(0.5)",
    "add_noise": "add_noise(0.3)",
    "apply_momentum": "apply_momentum(0.9)",
    "average_params": "chain(optchain.sgd(0.3), optchain.average_params(0.9))",
    "cautious": "cautious(optchain.apply_momentum(0.9))",
    "chain": "chain(optchain.clip_by_value(1.0), optchain.apply_momentum(0.5))",
    "clip_by_block_rms": "clip_by_block_rms(0.5)",
    "clip_by_global_norm": "clip_by_global_norm(3.0)",
    "clip_by_norm": "clip_by_norm(3.0)",
    "clip_by_value": "clip_by_value(1.0)",
    "compact": "compact(optchain.sgd(0.3, 0.5))",
    "decay_by_path": "decay_by_path({'': (0.1, 0.3)}, learning_rate=1.0)",
    "decay_first": "chain(optchain.decay_first(optchain.apply_ftrl(), 0.1), learning_rate=0.3)",
    "decay_weights": "decay_weights(0.3, learning_rate=1.0)",
    "dynamic_loss_scale": "dynamic_loss_scale(optchain.scale_by_learning_rate(1.0), initial_scale=4.0, growth_steps=8)",
    "freeze": f"freeze(optchain.sgd(0.3), {MATRICES})",
    "loss_scale_optimizer": "loss_scale_optimizer(optchain.sgd(0.3), initial_scale=4.0, dynamic_growth_steps=8)",
    "masked": f"masked(optchain.clip_by_value(0.5), {MATRICES})",
    "multi_optimizer": "multi_optimizer(('biases', 'bias', optchain.adam(0.1)), default=optchain.sgd(0.3, 0.5))",
    "project_initial_norm": "project_initial_norm()",
    "project_max_norm": "project_max_norm(2.0)",
    "project_min_max_norm": "project_min_max_norm(0.5, 2.0)",
    "project_unit_norm": "project_unit_norm()",
    "apply_ftrl": "chain(optchain.apply_ftrl(), learning_rate=0.3)",
    "scale": "scale(0.5)",
    "scale_by_learning_rate": "scale_by_learning_rate(0.5)",
    "scale_by_path": "scale_by_path({'kernel': 0.5})",
    "scale_by_relative_step": "chain(optchain.scale_by_relative_step(), learning_rate=0.1)",
    "schedule_free": "schedule_free(optchain.scale_by_learning_rate(0.3))",
    "skip_nonfinite": "skip_nonfinite(optchain.sgd(0.3))",
    "skip_spikes": "skip_spikes(optchain.sgd(0.3))",
    "unscale_gradients": "unscale_gradients(2.0)",
    "monitor": "monitor()",
}

NO_PICTURE = {"cross_replica_mean", "lazy_rows", "per_example"}
"""What works inside a named axis only, and what is for gradients of another shape or kind."""
