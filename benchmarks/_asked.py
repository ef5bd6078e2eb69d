"""What was asked of each task, in one place: benchmarks print it beside what they measure, the README's table too."""

ASKED: dict[str, dict[str, float]] = {
    "lane-keeping": {
        "y_rmse": 0.38,
        "v_rmse": 0.45,
        "psi_rmse": 0.11,
        "kernel_share": 0.97,
        "wall_seconds": 90,
        "peak_gib": 3,
        "accepting": 20,
        "policy": 10,
        "corrected": 3,
        "latency_median_us": 300,
        "latency_p99_us": 1000,
        "attack_steps": 1e7,
    },
    "power-loop": {
        "p_rmse": 0.40,
        "v_rmse": 0.50,
        "att_rmse": 0.12,
        "return_gap": 0.05,
        "certified": 0.93,
        "wall_seconds": 300,
        "accepting": 20,
        "policy": 10,
        "corrected": 6,
        "latency_median_us": 800,
        "latency_p99_us": 2000,
        "attack_steps": 1e6,
    },
    "rigid-eight": {"attack_steps": 1e5},
}
"""By task and by what is asked. Largest: RMSEs, the gap of the return to that of optimal control (a share of it), wall time
of a training in s, its memory in GiB, times on one state in us. Smallest: certified shares, attacked steps, and how many
times faster than the published layer (at equal horizon, in the same run) accepting, the policy's mix and correcting are."""


def asked(task: str) -> dict[str, float]:
    """What was asked of a task; nothing of those that are not in the table."""
    return ASKED.get(task, {})
