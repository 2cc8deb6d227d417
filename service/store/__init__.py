"""The model store: versions, manifests, aliases and publishing. STORE.md's layout, on a local directory."""

from service.store.aliases import ALIASES, PRODUCTION
from service.store.digests import check_digests, file_digests
from service.store.manifest import (
    ASSETS,
    GOLDEN_OUTPUTS,
    KERAS_MODEL,
    MANIFEST,
    MAX_REFERENCE_FEATURES,
    MODEL_CARD,
    MODEL_NAME_PATTERN,
    PLOTS,
    SAMPLE_REQUEST,
    SCHEMA_VERSION,
    Calibration,
    Corruption,
    FeatureReference,
    Manifest,
    RowCounts,
    SignatureSpec,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from service.store.publish import BuildManifest, Staging, Verify
from service.store.store import Store

__all__ = [
    "ALIASES",
    "ASSETS",
    "GOLDEN_OUTPUTS",
    "KERAS_MODEL",
    "MANIFEST",
    "MAX_REFERENCE_FEATURES",
    "MODEL_CARD",
    "MODEL_NAME_PATTERN",
    "PLOTS",
    "PRODUCTION",
    "SAMPLE_REQUEST",
    "SCHEMA_VERSION",
    "BuildManifest",
    "Calibration",
    "Corruption",
    "FeatureReference",
    "Manifest",
    "RowCounts",
    "SignatureSpec",
    "Staging",
    "Store",
    "TensorSpec",
    "Verify",
    "check_digests",
    "file_digests",
    "read_manifest",
    "write_manifest",
]
