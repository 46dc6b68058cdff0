"""The model that MLServer serves: a random forest, fitted on scikit-learn's iris rows. Read by MLServer alone."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler


class Forest(MLModel):  # type: ignore[misc] # MLServer lives in an environment of its own, unseen by mypy
    """Takes `x` FP32 [n,4], scaled, and gives `probabilities` FP32 [n,3]."""

    async def load(self) -> bool:
        """Fit."""
        rows = load_iris()
        scaled = StandardScaler().fit_transform(rows.data)
        self._forest = RandomForestClassifier(n_estimators=50, random_state=7).fit(scaled, rows.target)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        found = self._forest.predict_proba(rows).astype(np.float32)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", found)])
