"""The table of metrics in the contract, in its order; 32 and 33 need an account at AWS."""

from __future__ import annotations

CANONICAL = [
    "nvidia_smi_utilization_gpu_ratio",
    "nvidia_smi_utilization_memory_ratio",
    "nvidia_smi_memory_used_bytes",
    "nvidia_smi_memory_total_bytes",
    "nvidia_smi_temperature_gpu_celsius",
    "nvidia_smi_power_draw_watts",
    "nvidia_smi_energy_joules_total",
    "nvidia_smi_clocks_current_sm_clock_hz",
    "nvidia_smi_clocks_throttled",
    "nvidia_smi_ecc_errors_total",
    "nvidia_smi_xid_errors_total",
    "nvidia_smi_gpu_up",
    "nvidia_smi_gpu_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "nginx_upstream_response_seconds",
    "nginx_http_requests_total",
    "animatediff_job_queue_length",
    "animatediff_jobs_in_progress",
    "animatediff_job_oldest_waiting_seconds",
    "animatediff_job_wait_seconds",
    "animatediff_job_success_total",
    "animatediff_job_failures_total",
    "animatediff_job_duration_seconds",
    "animatediff_model_load_time_seconds",
    "animatediff_video_seconds_generated_total",
    "animatediff_gpu_seconds_total",
    "animatediff_worker_last_heartbeat_timestamp_seconds",
    "animatediff_node_price_usd_per_hour",
    "animatediff_job_cost_usd_total",
    "animatediff_cost_usd_per_video_second",
    "animatediff_aws_cost_usd",
    "animatediff_cost_explorer_requests_total",
]
HISTOGRAMS = {
    "nginx_upstream_response_seconds",
    "animatediff_job_wait_seconds",
    "animatediff_job_duration_seconds",
    "animatediff_model_load_time_seconds",
}


def series_of(name: str) -> str:
    """What Prometheus has of this metric."""
    return f"{name}_bucket" if name in HISTOGRAMS else name
