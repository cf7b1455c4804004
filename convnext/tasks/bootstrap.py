"""What the intervals of IoU and of AP share: 95 % of the replicates of a Poisson bootstrap over images.

Each replicate counts each image as often as a Poisson distribution of mean 1 draws, instead of exactly once. Source: Chamandy et al.,
*Estimating Uncertainty for Massive Data Streams* (2012).
"""

import numpy as np

REPLICATES = 1000
MIN_IMAGES = 5  # of fewer, an interval would say more than is known
ENDS = (2.5, 97.5)  # percentiles

Interval = tuple[float, float]  # in percent


def middle(values: np.ndarray) -> Interval:
    """Return the ends of the middle 95 % of the replicates' values (n,)."""
    low, high = np.percentile(values, ENDS)
    return float(low), float(high)
