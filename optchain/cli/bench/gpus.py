"""What XLA's compiler has to know of a GPU that is not there: the figures of the hardware, as its driver gives them."""

_COMMON = """
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536"""


def _target(description: str, figures: str) -> str:
    """A `GpuTargetConfigProto` of XLA, as text."""
    return f"""
gpu_device_info {{{_COMMON}{figures}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{description}"
"""


GPUS = {
    "h100": _target(
        "NVIDIA H100 80GB HBM3",
        """
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }""",
    ),
    "a100": _target(
        "NVIDIA A100-SXM4-80GB",
        """
  core_count: 108
  fpus_per_core: 64
  clock_rate_ghz: 1.41
  memory_bandwidth: 2039000000000
  device_memory_size: 84987740160
  l2_cache_size: 41943040
  shared_memory_per_core: 167936
  shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 }""",
    ),
}
