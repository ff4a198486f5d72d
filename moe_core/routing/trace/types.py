"""Array types of routing analysis (dtype only; the axes are in the names: counts_LE)."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# softmax over all experts, or a function of each logit alone, read as shares of their sum: sigmoid (DeepSeek-V3,
# 2412.19437), sqrt(softplus) (DeepSeek-V4).
ScoreFunction = Literal["softmax", "sigmoid", "sqrtsoftplus"]
