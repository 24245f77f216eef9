"""Metrics by name: which way is better, and how they are averaged. Imports nothing, for those who only read results."""

METRICS = ("mse", "mse_interior", "psnr", "psnr_interior", "cpsnr", "ssim", "error", "pixel_error", "iou", "hit_rate")
HIGHER_IS_BETTER = frozenset(
    {"psnr", "psnr_interior", "cpsnr", "psnr_r", "psnr_g", "psnr_b", "ssim", "iou", "hit_rate"}
)
POOLED_OVER_PIXELS = frozenset({"mse", "mse_interior", "pixel_error"})  # the others are means over examples


def higher_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2] in HIGHER_IS_BETTER
