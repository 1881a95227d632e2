"""Motion distance between a real and a generated clip (METHOD.md; after the code published with arXiv 2502.08234).

The authors take their flow from RAFT-large. Any `flow` fits here; the default is OpenCV's DIS, which needs no weights,
so figures by one flow are not to be compared with figures by the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import KSGenError

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
BINS, LOWEST, HIGHEST, PRIOR = 256, -7.0, 5.0, 0.1


def motion_distance(real: np.ndarray, generated: np.ndarray, flow: Flow | None = None) -> float:
    """Films uint8 [F, H, W, 3] of the same shape -> mean over frame pairs of KL(real, generated), in nats.

    Per pair: the histogram of log2 of the flow's magnitude in pixels, 256 bins on [-7, 5], 0.1 added to each bin.
    """
    if real.shape != generated.shape or real.ndim != 4 or len(real) < 2:
        raise ValueError(f"two films [F >= 2, H, W, 3] of one shape are needed, got {real.shape} and {generated.shape}")
    flow = flow or dis_flow()
    distances = []
    for k in range(len(real) - 1):
        p, q = (_histogram(flow(film[k], film[k + 1])) for film in (real, generated))
        distances.append(float((p * np.log(p / q)).sum()))
    return float(np.mean(distances))


def _histogram(flow: np.ndarray) -> np.ndarray:
    """Flow [H, W, 2] in pixels -> shares [BINS] that sum to 1; what lies outside counts to the outermost bins."""
    magnitude = np.log2(np.maximum(np.hypot(flow[..., 0], flow[..., 1]), 2.0**LOWEST))
    counts, _ = np.histogram(magnitude.clip(LOWEST, HIGHEST), BINS, (LOWEST, HIGHEST))
    return (counts + PRIOR) / (counts.sum() + PRIOR * BINS)


def dis_flow() -> Flow:
    """OpenCV's dense inverse search (Kroeger et al., arXiv 1603.03590), preset medium."""
    try:
        import cv2
    except ImportError as error:
        raise KSGenError("Motion distance needs OpenCV: pip install opencv-python-headless") from error
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in (first, second)]
        return search.calc(*grey, None)

    return flow
